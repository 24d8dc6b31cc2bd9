"""Faults of a library around a sound model: other tokens, other logits, wrong matrices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from residcheck.backends import AttentionWeights, Backend, LayerWeights, MLPWeights, Taps
from residcheck.faults.base import Fault, Subject, always
from residcheck.faults.taps import Around
from residcheck.faults.weights import has_mlp


class OtherTokens(Around):
    """Runs the model on other tokens than it is given."""

    def __init__(self, backend: Backend, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__(backend)
        self._change = change

    def forward(self, tokens: Tensor, mask: Tensor, taps: Taps, *, logits: bool) -> Tensor | None:
        result: Tensor | None = self.inner.forward(self._change(tokens), mask, taps, logits=logits)
        return result


class OtherWeights(Around):
    """Hands out other matrices than the model computes with."""

    def __init__(
        self, backend: Backend, change: Callable[[Backend, int, LayerWeights], LayerWeights]
    ) -> None:
        super().__init__(backend)
        self._change = change

    def weights(self, layer: int) -> LayerWeights:
        return self._change(self.inner, layer, self.inner.weights(layer))


def _other_tokens(change: Callable[[Tensor], Tensor]) -> Callable[[Backend], Backend]:
    return lambda backend: OtherTokens(backend, change)


def _of_attention(
    change: Callable[[Backend, int, AttentionWeights], AttentionWeights],
) -> Callable[[Backend], Backend]:
    def changed(backend: Backend, layer: int, found: LayerWeights) -> LayerWeights:
        assert found.attention is not None
        return replace(found, attention=change(backend, layer, found.attention))

    return lambda backend: OtherWeights(backend, changed)


def _of_mlp(change: Callable[[MLPWeights], MLPWeights]) -> Callable[[Backend], Backend]:
    def changed(backend: Backend, layer: int, found: LayerWeights) -> LayerWeights:
        assert found.mlp is not None
        return replace(found, mlp=change(found.mlp))

    return lambda backend: OtherWeights(backend, changed)


def _first_replaced(tokens: Tensor) -> Tensor:
    return torch.cat([tokens[:, 1:2], tokens[:, 1:]], dim=1)


def _first_dropped(tokens: Tensor) -> Tensor:
    return torch.cat([tokens[:, 1:], tokens[:, -1:]], dim=1)


def _has_weights(subject: Subject) -> bool:
    return "attention" not in subject.anatomy.missing_weights and subject.anatomy.has("z")


def _has_mlp_weights(subject: Subject) -> bool:
    return has_mlp(subject) and subject.anatomy.has("mlp_post")


def _with_gain(backend: Backend) -> Backend:
    """W_V with the norm's gain in it, while the norm still applies it."""
    gains = [backend.affine(layer, "ln1_out").gain for layer in range(backend.anatomy.n_layers)]

    def change(backend: Backend, layer: int, found: AttentionWeights) -> AttentionWeights:
        return replace(found, W_V=found.W_V * gains[layer][:, None])

    return _of_attention(change)(backend)


def _unfolded(subject: Subject) -> bool:
    if not _has_weights(subject) or subject.processed or not subject.anatomy.has("ln1_out"):
        return False
    norm = subject.modules[0].get_submodule(subject.blocks.parts["ln1_out"].path)
    return getattr(norm, "weight", None) is not None


def _of_layer_before(backend: Backend, layer: int, found: AttentionWeights) -> AttentionWeights:
    stale = backend.weights(max(layer - 1, 0)).attention
    assert stale is not None
    return replace(found, W_V=stale.W_V, W_O=stale.W_O)


def _processed_layer_norm(subject: Subject) -> bool:
    anatomy = subject.anatomy
    return subject.processed and anatomy.centring and _has_weights(subject)


def writes_in_place(backend: Backend) -> Backend:
    """Give what heads write a mean, which no LayerNorm lets through.

    The backend's own matrices are changed: it cannot be used soundly again.
    """
    for layer in range(backend.anatomy.n_layers):
        attention = backend.weights(layer).attention
        assert attention is not None
        spread = attention.W_O.std()
        source = torch.Generator().manual_seed(layer)
        mean = torch.randn(attention.W_O.shape[:-1], generator=source) * spread
        attention.W_O.add_(mean[..., None].to(attention.W_O))
    return backend


def _fault(
    name: str, what: str, applies: Callable[[Subject], bool], wrap: Callable[[Backend], Any]
) -> Fault:
    return Fault(name, what, "library", applies, wrap=wrap)


LIBRARIES: tuple[Fault, ...] = (
    _fault("bos-replaced", "the first token is not BOS", always, _other_tokens(_first_replaced)),
    _fault("bos-dropped", "no BOS is put before the text", always, _other_tokens(_first_dropped)),
    _fault("w-v-zero", "W_V is handed out as zeros", _has_weights,
           _of_attention(lambda b, n, w: replace(w, W_V=torch.zeros_like(w.W_V)))),
    _fault("w-in-transposed", "W_in is handed out transposed", _has_mlp_weights,
           _of_mlp(lambda w: replace(w, W_in=w.W_in.T))),
    _fault("w-v-before-folding", "W_V is handed out with a gain that the norm still applies",
           _unfolded, _with_gain),
    _fault("w-ov-of-the-layer-before", "W_V and W_O are those that were read a layer ago",
           _has_weights, _of_attention(_of_layer_before)),
    _fault("w-o-in-bfloat16", "W_O is handed out rounded to bfloat16", _has_weights,
           _of_attention(lambda b, n, w: replace(w, W_O=w.W_O.bfloat16().to(w.W_O.dtype)))),
    _fault("writes-not-centred", "what heads write has a mean, though processing takes it out",
           _processed_layer_norm, writes_in_place),
)  # fmt: skip
