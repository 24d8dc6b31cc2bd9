"""The identity gate: before any claim, every hook must hold what its name says.

On every layer, for every token of a short text:

* sequential blocks: resid_pre + attn_out = resid_mid and resid_mid + mlp_out = resid_post;
* parallel blocks: resid_pre + attn_out + mlp_out = resid_post;
* resid_post of a block = resid_pre of the next;
* the logits are those of the plain transformers model;
* no position sees a later one.

Model libraries have shipped hooks that break these while the logits stayed right.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from residcheck.backends import SITES, Backend, Site, Tap, Taps
from residcheck.errors import (
    GateError,
    LoadError,
    NonFiniteError,
    ResidcheckError,
    UnsupportedModelError,
    first_line,
)
from residcheck.tolerances import Tolerance


@dataclass(frozen=True)
class Mismatch:
    """An identity that does not hold: where, and by how much of the right-hand side."""

    layer: int
    identity: str
    size: float
    hooks: tuple[str, ...]


class Gate:
    """Taps that test the identities of one pass, holding one block's tensors at a time."""

    def __init__(self, backend: Backend, tolerance: Tolerance) -> None:
        self._backend = backend
        self._tolerance = tolerance
        self._seen: dict[Site, Tensor] = {}
        self._fired: set[tuple[int, Site]] = set()
        self._previous_post: Tensor | None = None
        self.last_post: Tensor | None = None
        self.mismatches: list[Mismatch] = []

    def taps(self) -> Taps:
        anatomy = self._backend.anatomy
        return {
            (layer, site): self._tap(layer, site)
            for layer in range(anatomy.n_layers)
            for site in SITES
            if anatomy.has(site)
        }

    def _tap(self, layer: int, site: Site) -> Tap:
        def see(tensor: Tensor) -> None:
            self._fired.add((layer, site))
            if not bool(tensor.isfinite().all()):
                raise NonFiniteError(
                    f"layer {layer}: {site} holds NaN or infinity "
                    f"({self._backend.hook_name(layer, site)})",
                    "the weights may be damaged, or overflow in this dtype: try dtype=float32",
                )
            if site in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"):
                # A copy: some models add to it in place later.
                self._seen[site] = tensor.to(torch.float64, copy=True)
            if site == "resid_post":
                self._close(layer)

        return see

    def _close(self, layer: int) -> None:
        seen, parallel = self._seen, self._backend.anatomy.parallel
        missing = [s for s in _needed(parallel) if s not in seen]
        if missing:
            raise GateError(
                f"identity gate: layer {layer}: {missing[0]} was never reached "
                f"(hook {self._backend.hook_name(layer, missing[0])})",
                _HINT,
            )
        if self._previous_post is not None:
            self._test(layer, "resid_post[n-1] = resid_pre[n]", self._previous_post, ("resid_pre",))
        if parallel:
            total = seen["resid_pre"] + seen["attn_out"] + seen["mlp_out"]
            sites: tuple[Site, ...] = ("resid_pre", "attn_out", "mlp_out", "resid_post")
            self._test(layer, "resid_pre + attn_out + mlp_out = resid_post", total, sites)
        else:
            total = seen["resid_pre"] + seen["attn_out"]
            sites = ("resid_pre", "attn_out", "resid_mid")
            self._test(layer, "resid_pre + attn_out = resid_mid", total, sites)
            total = seen["resid_mid"] + seen["mlp_out"]
            sites = ("resid_mid", "mlp_out", "resid_post")
            self._test(layer, "resid_mid + mlp_out = resid_post", total, sites)
        self._previous_post = self.last_post = seen["resid_post"]
        self._seen = {}

    def _test(self, layer: int, identity: str, left: Tensor, sites: tuple[Site, ...]) -> None:
        right = self._seen[sites[-1]]
        if left.shape != right.shape:
            size = float("inf")
        else:
            scale = right.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
            size = float(((left - right).norm(dim=-1) / scale).max())
        if size > self._tolerance.identity:
            hooks = tuple(self._backend.hook_name(layer, site) for site in sites)
            self.mismatches.append(Mismatch(layer, identity, size, hooks))

    def silent_hooks(self) -> list[str]:
        """Hooks that the pass never reached."""
        return [
            self._backend.hook_name(*where) for where in self.taps() if where not in self._fired
        ]


_HINT = (
    "nothing was measured: the library's hooks do not mean what they say here; "
    "try the other backend (backend=transformers or backend=transformer_lens)"
)


def _needed(parallel: bool) -> tuple[Site, ...]:
    if parallel:
        return ("resid_pre", "attn_out", "mlp_out", "resid_post")
    return ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")


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
        GateError: an identity fails, a hook is silent, or the logits differ.
        NonFiniteError: NaN or infinity, named by layer and site.
        UnsupportedModelError: positions see later ones (not a causal model).
    """
    gate = Gate(backend, tolerance)
    mask = torch.ones_like(tokens)
    try:
        logits = backend.forward(tokens, mask, gate.taps(), logits=True)
    except ResidcheckError:
        raise
    except Exception as error:  # libraries fail in many ways on what they do not support
        reason = first_line(error)
        raise LoadError(
            f"{backend.name} cannot run this model: {reason}",
            "try the other backend (backend=transformers or backend=transformer_lens)",
        ) from error
    if gate.mismatches:
        raise _mismatch_error(gate.mismatches, tolerance)
    if silent := gate.silent_hooks():
        raise GateError(f"identity gate: hook {silent[0]} was never reached", _HINT)
    assert logits is not None
    difference = logit_distance(logits, reference)
    if not difference <= tolerance.logits:
        raise GateError(
            f"identity gate: the logits differ from plain transformers' by {difference:.2g} of "
            f"their spread (tolerance {tolerance.logits:.0e})",
            _HINT,
        )
    _check_causal(backend, tokens, mask, gate, tolerance)


def _mismatch_error(mismatches: list[Mismatch], tolerance: Tolerance) -> GateError:
    first = mismatches[0]
    others = len({m.layer for m in mismatches}) - 1
    return GateError(
        f"identity gate: layer {first.layer}: {first.identity} fails: off by "
        f"{first.size:.2g} of the right-hand side (tolerance {tolerance.identity:.0e}); "
        f"hooks: {', '.join(first.hooks)}" + (f"; so do {others} more layers" if others else ""),
        _HINT,
    )


def logit_distance(a: Float[Tensor, "*shape vocab"], b: Float[Tensor, "*shape vocab"]) -> float:
    """Root-mean-square difference of log-probabilities over the spread of ``b``'s.

    Log-probabilities, since folding and centring may shift all logits of a position.
    """
    a, b = torch.log_softmax(a.double(), -1), torch.log_softmax(b.double(), -1)
    return float((a - b).square().mean().sqrt() / b.std(dim=-1).mean())


def _check_causal(
    backend: Backend,
    tokens: Int[Tensor, "batch pos"],
    mask: Int[Tensor, "batch pos"],
    gate: Gate,
    tolerance: Tolerance,
) -> None:
    before = gate.last_post
    changed = tokens.clone()
    changed[:, -1] = tokens[:, 0]
    again = Gate(backend, tolerance)
    backend.forward(changed, mask, again.taps(), logits=False)
    after = again.last_post
    assert before is not None
    assert after is not None
    shift = (before - after)[:, :-1].norm(dim=-1) / before[:, :-1].norm(dim=-1)
    if bool((shift > tolerance.token).any()):
        raise UnsupportedModelError(
            "not a causal language model: changing the last token changes earlier positions "
            f"(by {float(shift.max()):.2g} of their norm)",
            "residcheck measures decoder-only models, where each token reads the earlier ones",
        )
