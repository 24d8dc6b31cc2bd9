"""What a right answer looks like: the reference's arrays, in every form that is right.

Libraries may choose: processed weights are folded and centred or not, keys and values of
grouped queries are repeated or not, biases that an architecture lacks are zero or absent. What
is chosen must agree with one form all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from residcheck.regress.cells import Library, Seen
from residcheck.regress.stand.witness.asked import ATTENTION, MLP, PLAIN_SITES

STREAM = ("hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post")
"""The stream and what is added to it."""


@dataclass(frozen=True)
class Expected:
    """The reference of one model and what it is built like."""

    seen: Seen
    anatomy: Mapping[str, Any]

    @classmethod
    def of(cls, reference: Seen) -> Expected:
        return cls(reference, reference.facts["anatomy"])

    @property
    def n_layers(self) -> int:
        return int(self.anatomy["n_layers"])

    @property
    def centring(self) -> bool:
        return bool(self.anatomy["norm"] == "LayerNorm")

    @property
    def plain(self) -> set[str]:
        """Sites that the plain backend has."""
        return set(PLAIN_SITES.values())

    def get(self, dtype: str, name: str) -> Any:
        """An array of the reference, or None."""
        key = f"{dtype}/raw/{name}"
        return self.seen.get(key)


def kept(library: Library) -> tuple[str, ...]:
    """The weights that are judged."""
    return () if library == "transformers" else (*ATTENTION, *MLP)


def accepted_sites(
    expected: Expected, dtype: str, layer: int, site: str, processing: str
) -> list[Any]:
    """Right answers at a site; none where the architecture has no such site."""
    if site.startswith("ln"):
        return _norms(expected, dtype, layer, site)
    x = expected.get(dtype, f"blocks.{layer}.{site}")
    if x is None:
        return []
    if site == "attn.hook_z":
        return [x, *_without_bias(expected, dtype, layer, x, processing)]
    if processing != "raw" and expected.centring and site in STREAM:
        x = x - x.mean(axis=-1, keepdims=True)
    return [x]


def _without_bias(expected: Expected, dtype: str, layer: int, z: Any, processing: str) -> list[Any]:
    """Processing moves value biases to ``b_O``: what heads hand on lacks them then."""
    bias = expected.get(dtype, f"blocks.{layer}.attn.b_V")
    if processing == "raw":
        return []
    total = _folded_value_bias(expected, dtype, layer, bias)
    return [] if total is None else [z - _repeated(total, expected.anatomy["n_heads"]).reshape(-1)]


def _folded_value_bias(expected: Expected, dtype: str, layer: int, bias: Any) -> Any:
    """``b_V`` with the norm's bias through ``W_V`` in it, as folding leaves it."""
    matrix = expected.get(dtype, f"blocks.{layer}.attn.W_V")
    if matrix is None:
        return bias
    _, shift = _affine(expected, dtype, layer, "attn")
    more = 0 if shift is None else np.einsum("d,hde->he", shift, matrix)
    return None if bias is None and shift is None else (0 if bias is None else bias) + more


def _norms(expected: Expected, dtype: str, layer: int, site: str) -> list[Any]:
    norm, _, what = site.partition(".")
    if norm == "ln_final":
        if expected.get(dtype, "ln_final.w") is None:
            return []
        x = expected.get(dtype, f"blocks.{expected.n_layers - 1}.hook_resid_post")
    else:
        if expected.get(dtype, f"blocks.{layer}.{norm}.hook_out") is None:
            return []
        parallel = expected.anatomy["parallel"]
        read = "hook_resid_pre" if norm == "ln1" or parallel else "hook_resid_mid"
        x = expected.get(dtype, f"blocks.{layer}.{read}")
    if what == "hook_out":
        return [expected.get(dtype, f"blocks.{layer}.{norm}.hook_out")]
    if expected.centring:
        x = x - x.mean(axis=-1, keepdims=True)
    scale = np.sqrt((x**2).mean(axis=-1, keepdims=True) + expected.anatomy["norm_eps"])
    return [scale] if what == "hook_scale" else [x / scale]


def _affine(expected: Expected, dtype: str, layer: int, part: str) -> tuple[Any, Any]:
    """Gain and bias of the norm that a sublayer reads through; None where there is none."""
    for norm in ("ln1",) if part == "attn" else ("ln2", "ln1"):
        gain = expected.get(dtype, f"blocks.{layer}.{norm}.w")
        if gain is not None and (norm == "ln1") <= (part == "attn" or expected.anatomy["parallel"]):
            bias = expected.get(dtype, f"blocks.{layer}.{norm}.b")
            return gain, bias if bias is not None and bias.any() else None
    return None, None


def _repeated(x: Any, heads: int) -> Any:
    return np.repeat(x, heads // x.shape[0], axis=0)


def accepted_weights(
    expected: Expected, dtype: str, layer: int, name: str, processing: str
) -> list[Any]:
    """Right answers for a weight; none where the reference cannot say."""
    part = "attn" if name in ATTENTION else "mlp"
    whole = expected.get(dtype, f"blocks.{layer}.{part}.W_{name[2:]}")
    if whole is None:
        return []
    x = expected.get(dtype, f"blocks.{layer}.{part}.{name}")
    absent = x is None
    if absent:
        x = _zeros(name, whole, expected)
    forms = [x] if processing == "raw" else _processed(expected, dtype, layer, name, x, whole)
    if name[2:] in ("K", "V"):
        forms += [_repeated(form, expected.anatomy["n_heads"]) for form in forms]
    return forms


def _zeros(name: str, matrix: Any, expected: Expected) -> Any:
    shape: tuple[int, ...]
    shape = (expected.anatomy["d_model"],) if name in ("b_O", "b_out") else (matrix.shape[-1],)
    if name[2:] in ("Q", "K", "V"):
        shape = (matrix.shape[0], matrix.shape[-1])
    return np.zeros(shape, matrix.dtype)


def _processed(
    expected: Expected, dtype: str, layer: int, name: str, x: Any, matrix: Any
) -> list[Any]:
    part = "attn" if name in ATTENTION else "mlp"
    gain, shift = _affine(expected, dtype, layer, part)
    if name in ("W_O", "W_out", "b_O", "b_out"):
        return _written(expected, dtype, layer, name, x, matrix)
    if name.startswith("W"):
        forms = [x] if gain is None else [x, x * gain[:, None]]
        return [*forms, *(form - form.mean(axis=-2, keepdims=True) for form in forms)]
    moved = 0 if shift is None else shift @ matrix
    forms = [x, x + moved]
    return [*forms, np.zeros_like(x)] if name == "b_V" else forms


def _written(
    expected: Expected, dtype: str, layer: int, name: str, x: Any, matrix: Any
) -> list[Any]:
    """Written to the stream: as stored or without its mean; ``b_O`` with value biases or not."""
    forms = [x]
    if name == "b_O":
        own = expected.get(dtype, f"blocks.{layer}.attn.b_V")
        for bias in (own, _folded_value_bias(expected, dtype, layer, own)):
            if bias is not None:
                heads = _repeated(bias, matrix.shape[0])
                forms.append(x + np.einsum("he,hed->d", heads, matrix))
    return [*forms, *(form - form.mean(axis=-1, keepdims=True) for form in forms)]
