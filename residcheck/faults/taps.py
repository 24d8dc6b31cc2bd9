"""Faults of hooks: a site hands out a tensor that is another one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from residcheck.backends import Anatomy, Backend, Site, Tap, Taps
from residcheck.faults.base import Fault, Subject
from residcheck.measure.identities import normalised

Place = tuple[int, Site]
Seen = Mapping[Site, Tensor]


class Around:
    """A backend inside another, which answers for all that is not changed."""

    def __init__(self, backend: Backend) -> None:
        self.inner: Any = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Elsewhere(Around):
    """Taps at a site are attached at another place; at None, nowhere."""

    def __init__(self, backend: Backend, place: Callable[[Place, Anatomy], Place | None]) -> None:
        super().__init__(backend)
        self._place = place

    def forward(self, tokens: Tensor, mask: Tensor, taps: Taps, *, logits: bool) -> Tensor | None:
        moved: dict[Place, Tap] = {}
        for where, tap in taps.items():
            there = self._place(where, self.inner.anatomy)
            if there is not None:
                moved[there] = _after(moved[there], tap) if there in moved else tap
        result: Tensor | None = self.inner.forward(tokens, mask, moved, logits=logits)
        return result


def _after(first: Tap, second: Tap) -> Tap:
    def tap(x: Tensor) -> Tensor | None:
        replaced = first(x)
        again = second(x if replaced is None else replaced)
        return replaced if again is None else again

    return tap


Lie = Callable[[Backend, int, Tensor, Seen], Tensor]


class Lying(Around):
    """Taps at a site see what ``lie`` makes of the truth and of the block's earlier sites."""

    def __init__(self, backend: Backend, site: Site, lie: Lie, earlier: tuple[Site, ...]) -> None:
        super().__init__(backend)
        self._site, self._lie, self._earlier = site, lie, earlier

    def forward(self, tokens: Tensor, mask: Tensor, taps: Taps, *, logits: bool) -> Tensor | None:
        seen: dict[Site, Tensor] = {}
        with_lies: dict[Place, Tap] = dict(taps)
        for layer in range(self.inner.anatomy.n_layers):
            if (layer, self._site) not in taps:
                continue
            with_lies[layer, self._site] = self._lying(layer, taps[layer, self._site], seen)
            for site in self._earlier:
                keep = _keeping(site, seen)
                other = taps.get((layer, site))
                with_lies[layer, site] = keep if other is None else _after(keep, other)
        result: Tensor | None = self.inner.forward(tokens, mask, with_lies, logits=logits)
        return result

    def _lying(self, layer: int, tap: Tap, seen: Seen) -> Tap:
        def told(x: Tensor) -> Tensor | None:
            return tap(self._lie(self.inner, layer, x, seen))

        return told


def _keeping(site: Site, seen: dict[Site, Tensor]) -> Tap:
    def keep(x: Tensor) -> None:
        seen[site] = x.clone()

    return keep


def _instead(site: Site, other: Site, only: int | None = None) -> Callable[[Backend], Backend]:
    """Hooks of ``site`` that are really at ``other``, in all layers or in one."""

    def place(where: Place, anatomy: Anatomy) -> Place:
        layer, wanted = where
        return (layer, other) if wanted == site and only in (None, layer) else where

    return lambda backend: Elsewhere(backend, place)


def _lie(site: Site, lie: Lie, *earlier: Site) -> Callable[[Backend], Backend]:
    return lambda backend: Lying(backend, site, lie, earlier)


def _has(*sites: Site) -> Callable[[Subject], bool]:
    return lambda subject: all(subject.anatomy.has(site) for site in sites)


def _swap(one: Site, other: Site) -> Callable[[Backend], Backend]:
    names = {one: other, other: one}

    def place(where: Place, anatomy: Anatomy) -> Place:
        return where[0], names.get(where[1], where[1])

    return lambda backend: Elsewhere(backend, place)


def _silent(backend: Backend) -> Backend:
    def place(where: Place, anatomy: Anatomy) -> Place | None:
        return None if where == (anatomy.n_layers // 2, "resid_mid") else where

    return Elsewhere(backend, place)


def _layer_too_far(backend: Backend) -> Backend:
    def place(where: Place, anatomy: Anatomy) -> Place:
        layer, site = where
        return (min(layer + 1, anatomy.n_layers - 1), site) if site == "z" else where

    return Elsewhere(backend, place)


def _written(reads: Site) -> Lie:
    """What a sublayer writes, before its post-norm."""

    def lie(backend: Backend, layer: int, x: Tensor, seen: Seen) -> Tensor:
        weights = backend.weights(layer)
        if reads == "z":
            assert weights.attention is not None
            matrix, bias = weights.attention.W_O.flatten(0, 1), weights.attention.b_O
        else:
            assert weights.mlp is not None
            matrix, bias = weights.mlp.W_out, weights.mlp.b_out
        made = seen[reads] @ matrix
        return made if bias is None else made + bias

    return lie


def _has_post_norm(site: Site, reads: Site) -> Callable[[Subject], bool]:
    def applies(subject: Subject) -> bool:
        part = "attention" if reads == "z" else "mlp"
        readable = part not in subject.anatomy.missing_weights and subject.anatomy.has(reads)
        return readable and site in subject.blocks.post_norms

    return applies


def _with_final_norm(backend: Backend, layer: int, x: Tensor, seen: Seen) -> Tensor:
    norm = backend.final_norm()
    if layer != backend.anatomy.n_layers - 1 or norm is None:
        return x
    return normalised(x, norm, backend.anatomy)


def _before_gain(backend: Backend) -> Backend:
    # Before any pass: reading a gain feeds the norm vectors, which taps would see.
    affines = [backend.affine(layer, "ln1_out") for layer in range(backend.anatomy.n_layers)]

    def lie(backend: Backend, layer: int, x: Tensor, seen: Seen) -> Tensor:
        return (x - affines[layer].bias) / affines[layer].gain

    return _lie("ln1_out", lie)(backend)


def _gain_applied(site: Site) -> Callable[[Subject], bool]:
    """Whether a norm still has a gain when the backend runs it."""

    def applies(subject: Subject) -> bool:
        if not subject.anatomy.has(site) or subject.processed:
            return False
        norm = subject.modules[0].get_submodule(subject.blocks.parts[site].path)
        return getattr(norm, "weight", None) is not None

    return applies


def _linear_part(backend: Backend, layer: int, x: Tensor, seen: Seen) -> Tensor:
    mlp = backend.weights(layer).mlp
    assert mlp is not None
    made = seen[backend.anatomy.mlp_reads] @ mlp.W_in
    return made if mlp.b_in is None else made + mlp.b_in


def _of_the_gate(backend: Backend) -> Backend:
    reads = backend.anatomy.mlp_reads
    return Lying(backend, "mlp_pre", _linear_part, (reads,))


def _other_heads(backend: Backend, layer: int, x: Tensor, seen: Seen) -> Tensor:
    heads: Tensor = x.view(*x.shape[:-1], backend.anatomy.n_heads, -1)
    return heads.flip(-2).flatten(-2)


def _without_bias(backend: Backend, layer: int, x: Tensor, seen: Seen) -> Tensor:
    attention = backend.weights(layer).attention
    assert attention is not None
    bias = attention.b_O
    return x if bias is None else x - backend.anatomy.residual_scale * bias


def _has_output_bias(subject: Subject) -> bool:
    if "attention" in subject.anatomy.missing_weights or "attn_out" in subject.blocks.post_norms:
        return False
    attention = subject.weights(0).attention
    return attention is not None and attention.b_O is not None


def _unscaled(backend: Backend, layer: int, x: Tensor, seen: Seen) -> Tensor:
    return x / backend.anatomy.residual_scale


def _tap(
    name: str,
    what: str,
    applies: Callable[[Subject], bool],
    wrap: Callable[[Backend], Backend],
) -> Fault:
    return Fault(name, what, "taps", applies, wrap=wrap)


TAPS: tuple[Fault, ...] = (
    _tap("attn-out-before-post-norm", "attn_out is what attention writes before its post-norm",
         _has_post_norm("attn_out", "z"), _lie("attn_out", _written("z"), "z")),
    _tap("mlp-out-before-post-norm", "mlp_out is what the MLP writes before its post-norm",
         _has_post_norm("mlp_out", "mlp_post"), _lie("mlp_out", _written("mlp_post"), "mlp_post")),
    _tap("attn-out-is-resid-mid", "attn_out is the stream after it was added",
         _has("resid_mid"), _instead("attn_out", "resid_mid")),
    _tap("mlp-out-is-resid-post", "mlp_out is the stream after it was added",
         _has("mlp_out"), _instead("mlp_out", "resid_post")),
    _tap("resid-post-is-resid-pre", "resid_post is the block's input",
         _has("resid_post"), _instead("resid_post", "resid_pre")),
    _tap("resid-mid-silent", "the hook of one resid_mid never fires", _has("resid_mid"), _silent),
    _tap("resid-mid-is-resid-pre", "resid_mid is the block's input", _has("resid_mid"),
         _instead("resid_mid", "resid_pre")),
    _tap("last-resid-post-normed", "the last resid_post is after the final norm",
         lambda s: s.anatomy.norm != "none", _lie("resid_post", _with_final_norm)),
    _tap("sublayer-outputs-swapped", "attn_out and mlp_out are each other", _has("mlp_out"),
         _swap("attn_out", "mlp_out")),
    _tap("attn-out-without-bias", "attn_out lacks the output bias", _has_output_bias,
         _lie("attn_out", _without_bias)),
    _tap("attn-out-unscaled", "attn_out before the residual multiplier (Granite)",
         lambda s: s.anatomy.residual_scale != 1, _lie("attn_out", _unscaled)),
    _tap("ln1-out-before-gain", "ln1_out lacks gain and bias", _gain_applied("ln1_out"),
         _before_gain),
    _tap("ln2-out-is-resid-mid", "ln2_out is the stream before the norm",
         _has("ln2_out", "resid_mid"), _instead("ln2_out", "resid_mid")),
    _tap("mlp-pre-is-mlp-post", "mlp_pre is after the activation",
         lambda s: _has("mlp_pre", "mlp_post")(s) and s.has_mlp, _instead("mlp_pre", "mlp_post")),
    _tap("mlp-pre-of-the-linear-part", "mlp_pre is what the gate multiplies",
         lambda s: _has("mlp_pre")(s) and s.has_mlp and s.anatomy.gated, _of_the_gate),
    _tap("z-of-other-heads", "z has the heads in another order", _has("z"),
         _lie("z", _other_heads)),
    _tap("z-of-the-next-layer", "z is the next layer's", _has("z"), _layer_too_far),
    _tap("positions-shifted", "mlp_out of each position is the one before's", _has("mlp_out"),
         _lie("mlp_out", lambda backend, layer, x, seen: x.roll(1, dims=1))),
    _tap("rows-swapped", "resid_post has the rows of the batch in another order",
         _has("resid_post"), _lie("resid_post", lambda backend, layer, x, seen: x.flip(0))),
    _tap("handed-out-in-bfloat16", "attn_out is rounded to bfloat16 on its way out",
         _has("attn_out"),
         _lie("attn_out", lambda backend, layer, x, seen: x.to(torch.bfloat16).to(x.dtype))),
)  # fmt: skip
