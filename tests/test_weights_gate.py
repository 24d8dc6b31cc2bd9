"""Weights that a library gives must be those that its model computes with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from tiny import Tiny
from torch import Tensor

from residcheck.backends import Backend, LayerWeights, PostNorm, Site, lens, open_backend
from residcheck.errors import GateError
from residcheck.models import ModelSpec, load
from residcheck.tolerances import tolerance
from residcheck.weights import gate

FLOAT32 = tolerance("float32")
WAYS = {
    "transformers": {"backend": "transformers"},
    "raw": {"processing": "raw"},
    "processed": {"processing": "processed"},
}
FAMILIES = (
    "gpt2", "gpt_neo", "gptj", "codegen", "neox", "neox_sequential", "opt", "bloom", "falcon",
    "mpt", "llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi",
    "phi3", "stablelm", "stablelm_parallel", "olmo", "olmo2", "granite", "cohere", "glm4",
    "starcoder2", "nemotron", "apertus",
)  # fmt: skip
# Heads wider than the stream, biases everywhere, and the other packings of the same names.
VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("llama", {"head_dim": 64, "attention_bias": True, "mlp_bias": True}),
    ("llama", {"head_dim": 24, "num_key_value_heads": 1}),
    ("gemma3", {"head_dim": 64}),
    ("falcon", {"multi_query": False, "bias": True}),
    ("falcon", {"parallel_attn": False}),
    ("gpt2", {"n_head": 1}),
)


def opened(tiny: Tiny, family: str, way: str, **overrides: Any) -> Backend:
    return _opened(str(tiny(family, **overrides)), way)


@cache
def _opened(folder: str, way: str) -> Backend:
    return open_backend(load(ModelSpec(folder).with_options(**WAYS[way])))


def tokens() -> Tensor:
    return torch.randint(3, 500, (2, 12), generator=torch.Generator().manual_seed(0))


ways = pytest.mark.parametrize("way", WAYS)


@ways
@pytest.mark.parametrize("family", FAMILIES)
def test_the_weights_of_every_family_are_those_it_computes_with(
    family: str, way: str, tiny: Tiny
) -> None:
    gate.check(opened(tiny, family, way), tokens(), FLOAT32)


@ways
@pytest.mark.parametrize(("family", "overrides"), VARIANTS)
def test_variants_of_a_family_are_read_right(
    family: str, overrides: dict[str, Any], way: str, tiny: Tiny
) -> None:
    gate.check(opened(tiny, family, way, **overrides), tokens(), FLOAT32)


@pytest.mark.parametrize("family", ["falcon_new", "gpt_oss"])
def test_what_transformer_lens_gets_wrong_passes_in_plain_modules(family: str, tiny: Tiny) -> None:
    gate.check(opened(tiny, family, "transformers"), tokens(), FLOAT32)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
@pytest.mark.parametrize("family", ["gpt2", "gemma3", "granite"])
def test_other_dtypes_pass_within_their_own_rounding(family: str, dtype: str, tiny: Tiny) -> None:
    for way in WAYS.values():
        backend = open_backend(load(ModelSpec(str(tiny(family)), dtype=dtype).with_options(**way)))
        gate.check(backend, tokens(), tolerance(dtype))


Change = Callable[[LayerWeights], LayerWeights]


class Altered:
    """A backend whose weights are changed in layer 1, and nothing else is."""

    def __init__(self, backend: Backend, change: Change) -> None:
        self._backend, self._change = backend, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def weights(self, layer: int) -> LayerWeights:
        found = self._backend.weights(layer)
        return self._change(found) if layer == 1 else found


def attention(**changes: Callable[[Any], Any]) -> Change:
    def change(w: LayerWeights) -> LayerWeights:
        new = {name: make(getattr(w.attention, name)) for name, make in changes.items()}
        assert w.attention is not None
        return replace(w, attention=replace(w.attention, **new))

    return change


def mlp(**changes: Callable[[Any], Any]) -> Change:
    def change(w: LayerWeights) -> LayerWeights:
        new = {name: make(getattr(w.mlp, name)) for name, make in changes.items()}
        assert w.mlp is not None
        return replace(w, mlp=replace(w.mlp, **new))

    return change


def swap_gate(w: LayerWeights) -> LayerWeights:
    assert w.mlp is not None
    assert w.mlp.W_gate is not None
    return replace(w, mlp=replace(w.mlp, W_in=w.mlp.W_gate, W_gate=w.mlp.W_in))


def slightly(x: Tensor) -> Tensor:
    return x * 1.001


def nothing(x: Tensor) -> None:
    return None


# name: family, change, the identity that must fail
FAULTS: dict[str, tuple[str, Change, str]] = {
    "heads of W_O in another order": ("llama", attention(W_O=lambda w: w.flip(0)), "W_O"),
    "W_O scaled by 1.001": ("llama", attention(W_O=slightly), "W_O"),
    "W_O scaled, behind a post-norm of another size": (
        "gemma3",
        attention(W_O=lambda w: w.flip(1)),
        "W_O",
    ),
    "b_O dropped": ("gpt2", attention(b_O=nothing), "W_O"),
    "W_V zero": ("llama", attention(W_V=torch.zeros_like), "W_V"),
    "value heads in another order": ("llama", attention(W_V=lambda w: w.flip(0)), "W_V"),
    "b_V dropped": ("qwen2", attention(b_V=nothing), "W_V"),
    "W_V of the wrong shape": ("neox", attention(W_V=lambda w: w.mT), "W_V"),
    "W_V of other heads, with sinks": ("gpt_oss", attention(W_V=lambda w: w.flip(0)), "W_V"),
    "W_V negated, with sinks": ("gpt_oss", attention(W_V=torch.neg, b_V=torch.neg), "W_V"),
    "W_in and W_gate exchanged": ("llama", swap_gate, "W_gate"),
    "W_in of other neurons": ("phi3", mlp(W_in=lambda w: w.roll(1, dims=1)), "W_in"),
    "b_in dropped": ("opt", mlp(b_in=nothing), "W_in"),
    "W_out transposed": ("gpt2", mlp(W_out=lambda w: w.T), "W_out"),
    "W_out scaled by 1.001": ("granite", mlp(W_out=slightly), "W_out"),
    "b_out dropped": ("bloom", mlp(b_out=nothing), "W_out"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_weights_are_named_by_layer_and_identity(fault: str, tiny: Tiny) -> None:
    family, change, matrix = FAULTS[fault]
    backend = opened(tiny, family, "transformers")
    with pytest.raises(GateError) as caught:
        gate.check(Altered(backend, change), tokens(), FLOAT32)  # type: ignore[arg-type]
    message = caught.value.message
    assert "layer 1:" in message
    assert f"@ {matrix}" in message
    assert "layers.1" in message or "h.1" in message  # the hooks' names


def test_a_post_norm_whose_gain_is_not_the_modules_is_caught(tiny: Tiny) -> None:
    class WrongNorm(Altered):
        def post_norm(self, layer: int, site: Site) -> PostNorm | None:
            norm = self._backend.post_norm(layer, site)
            assert norm is not None
            return replace(norm, gain=norm.gain.flip(0))

    backend = WrongNorm(opened(tiny, "gemma3", "processed"), lambda w: w)
    with pytest.raises(GateError, match=r"layer 0: z @ W_O .* so do 2 more layers"):
        gate.check(backend, tokens(), FLOAT32)  # type: ignore[arg-type]


def test_experts_leave_only_the_attention_to_be_checked(tiny: Tiny) -> None:
    backend = opened(tiny, "mixtral", "processed")
    assert "experts" in backend.anatomy.missing_weights["mlp"]
    assert backend.weights(0).mlp is None
    wrong = Altered(backend, attention(W_O=slightly))
    with pytest.raises(GateError, match="W_O"):
        gate.check(wrong, tokens(), FLOAT32)  # type: ignore[arg-type]


def test_weights_that_no_hook_shows_are_not_believed(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(lens.HOOKS, "z", "attn.hook_in_no_place")
    backend = open_backend(load(ModelSpec(str(tiny("llama")))))
    with pytest.raises(GateError, match=r"z is needed .* does not fire attn\.hook_in_no_place"):
        gate.check(backend, tokens(), FLOAT32)


@ways
def test_views_are_given_and_no_copies(way: str, tiny: Tiny) -> None:
    weights = opened(tiny, "llama", way).weights(0)
    again = opened(tiny, "llama", way).weights(0)
    assert weights.attention is not None
    assert weights.mlp is not None
    assert again.attention is not None
    assert again.mlp is not None
    for name in ("W_Q", "W_K", "W_V", "W_O"):
        one, other = getattr(weights.attention, name), getattr(again.attention, name)
        assert one.data_ptr() == other.data_ptr(), name
    for name in ("W_in", "W_gate", "W_out"):
        one, other = getattr(weights.mlp, name), getattr(again.mlp, name)
        assert one.data_ptr() == other.data_ptr(), name
    assert not weights.attention.W_Q.requires_grad
