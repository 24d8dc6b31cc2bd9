"""The identity gate: before any claim, every hook must hold what its name says.

On every layer, for every token of a short text:

* sequential blocks: resid_pre + attn_out = resid_mid and resid_mid + mlp_out = resid_post;
* parallel blocks: resid_pre + attn_out + mlp_out = resid_post;
* resid_post of a block = resid_pre of the next;
* ln1_out and ln2_out are the norm of the stream that their sublayer reads;
* the MLP moves with what its own block's attention adds in a sequential block, and does
  not in a parallel one;
* the logits are those of the plain transformers model;
* no position sees a later one.

Model libraries have shipped hooks that break these while the logits stayed right.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from residcheck.backends import Backend, Site, Tap, Taps
from residcheck.errors import (
    GateError,
    LoadError,
    NonFiniteError,
    ResidcheckError,
    UnsupportedModelError,
    first_line,
)
from residcheck.logits import logit_distance
from residcheck.measure.blocks import Reaction
from residcheck.measure.identities import HINT, OVERFLOW_HINT, Identities, distance
from residcheck.tolerances import Tolerance


def check(
    backend: Backend,
    tokens: Int[Tensor, "batch pos"],
    reference: Float[Tensor, "batch pos vocab"],
    tolerance: Tolerance,
) -> None:
    """Pass the gate, or raise.

    Args:
        reference: logits of the plain transformers model on the same tokens.

    Raises:
        GateError: an identity fails, a hook is silent, the logits differ, or the blocks
            are parallel where they were taken for sequential, or the reverse.
        NonFiniteError: NaN or infinity, named by layer and site, or in the logits.
        LoadError: the backend cannot run the model.
        UnsupportedModelError: positions see later ones (not a causal model).
    """
    identities = Identities(backend, tolerance)
    logits = _run(backend, tokens, identities.taps(), logits=True)
    identities.verify()
    assert logits is not None
    _check_logits(backend, logits, reference, tolerance)
    assert identities.last_post is not None
    _check_causal(backend, tokens, identities.last_post, tolerance)
    _check_blocks(backend, tokens, tolerance)


def _run(
    backend: Backend, tokens: Int[Tensor, "batch pos"], taps: Taps, *, logits: bool
) -> Float[Tensor, "batch pos vocab"] | None:
    try:
        return backend.forward(tokens, torch.ones_like(tokens), taps, logits=logits)
    except (ResidcheckError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # libraries fail in many ways on what they do not support
        reason = first_line(error)
        raise LoadError(
            f"{backend.name} cannot run this model: {reason}",
            "try another backend (transformers, transformer_lens or nnsight)",
        ) from error


def _check_logits(
    backend: Backend,
    logits: Float[Tensor, "batch pos vocab"],
    reference: Float[Tensor, "batch pos vocab"],
    tolerance: Tolerance,
) -> None:
    for whose, values in (("plain transformers", reference), (backend.name, logits)):
        if not bool(values.isfinite().all()):
            raise NonFiniteError(f"the logits of {whose} hold NaN or infinity", OVERFLOW_HINT)
    difference = logit_distance(logits, reference)
    if not difference <= tolerance.logits:
        raise GateError(
            f"identity gate: the logits differ from plain transformers' by {difference:.2g} of "
            f"their spread (tolerance {tolerance.logits:.0e})",
            HINT,
        )


def _check_causal(
    backend: Backend,
    tokens: Int[Tensor, "batch pos"],
    before: Float[Tensor, "batch pos d"],
    tolerance: Tolerance,
) -> None:
    """Earlier positions of the last stream, ``before``, stay when the last token changes."""
    changed = tokens.clone()
    changed[:, -1] = tokens[:, 0]
    shifts: list[float] = []

    def compare(after: Float[Tensor, "batch pos d"]) -> None:
        shifts.append(distance(after[:, :-1].double(), before[:, :-1]))

    taps: Taps = {(backend.anatomy.n_layers - 1, "resid_post"): compare}
    _run(backend, changed, taps, logits=False)
    if not max(shifts) <= tolerance.token:
        raise UnsupportedModelError(
            "not a causal language model: changing the last token changes earlier positions "
            f"(by {max(shifts):.2g} of their norm)",
            "residcheck measures decoder-only models, where each token reads the earlier ones",
        )


def _check_blocks(backend: Backend, tokens: Int[Tensor, "batch pos"], tolerance: Tolerance) -> None:
    """Each block is of the kind, sequential or parallel, that it is taken for."""
    anatomy = backend.anatomy
    reactions = [Reaction(tolerance.token) for _ in range(anatomy.n_layers)]
    taps: dict[tuple[int, Site], Tap] = {}
    for layer, reaction in enumerate(reactions):
        taps |= reaction.taps(layer)
    _run(backend, tokens[[0, 0]], taps, logits=False)
    for layer, reaction in enumerate(reactions):
        if reaction.parallel is not None and reaction.parallel != anatomy.parallel:
            raise _wrong_blocks(backend, layer)


def _wrong_blocks(backend: Backend, layer: int) -> GateError:
    parallel = backend.anatomy.parallel
    reacts, kind = ("moves", "parallel") if parallel else ("does not move", "sequential")
    attention, mlp = (backend.hook_name(layer, site) for site in ("attn_out", "mlp_out"))
    return GateError(
        f"identity gate: layer {layer}: the block was taken for {kind}, but mlp_out {reacts} "
        f"when attn_out is replaced; hooks: {attention}, {mlp}",
        HINT,
    )
