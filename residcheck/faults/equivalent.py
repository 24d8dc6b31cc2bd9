"""Changes that change nothing: whatever raises an alarm here, raises it falsely."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from residcheck.backends import Anatomy, Backend
from residcheck.faults.base import Fault, Subject, always
from residcheck.faults.positions import calling, learned, rotary
from residcheck.faults.taps import Elsewhere, Place
from residcheck.faults.weights import has_mlp

_FINITE = -1e5


def _finite(mask: Any, stream: Tensor) -> Any:
    if mask is None:
        n = stream.shape[1]
        return torch.full((n, n), _FINITE, dtype=stream.dtype).triu(1)[None, None]
    if mask.dtype == torch.bool:
        return mask
    # Rows of padding see nothing: what is there is the kernel's choice, and no token reads it.
    sees = (mask == 0).any(dim=-1, keepdim=True)
    return torch.where(sees, mask.clamp_min(_FINITE), mask)


def _finite_mask(subject: Subject) -> None:
    for attention in subject.attentions:
        for module in attention.modules():
            calling(module, "attention_mask", _finite)


def _purely_rotary(subject: Subject) -> bool:
    return rotary(subject) and not learned(subject)


def _later(subject: Subject) -> None:
    for module in subject.model.modules():
        own = [name for name, _ in module.named_buffers(recurse=False)]
        if any(name.endswith("inv_freq") for name in own):
            calling(module, "position_ids", lambda ids, _: ids + 1)
        if "embed_positions" in own:
            module.embed_positions.copy_(module.embed_positions.roll(-1, dims=0).clone())


def _can_permute(subject: Subject) -> bool:
    return subject.readable and subject.anatomy.n_kv_heads > 1 and not subject.anatomy.sinks


def _permute_heads(subject: Subject) -> None:
    """The first two groups of heads exchanged, queries, keys, values and outputs alike."""
    anatomy = subject.anatomy
    keys = torch.arange(anatomy.n_kv_heads)
    keys[:2] = torch.tensor([1, 0])
    queries = torch.arange(anatomy.n_heads).view(anatomy.n_kv_heads, -1)[keys].flatten()
    for layer in subject.layers:
        found = subject.weights(layer).attention
        assert found is not None
        for tensor in (found.W_Q, found.b_Q, found.W_O):
            if tensor is not None:
                tensor.copy_(tensor[queries].clone())
        for tensor in (found.W_K, found.W_V, found.b_K, found.b_V):
            if tensor is not None:
                tensor.copy_(tensor[keys].clone())


def _headwise(subject: Subject) -> bool:
    """Nothing but the matrices may depend on which head it is."""
    norms = any(
        "norm" in name for attention in subject.attentions for name, _ in attention.named_modules()
    )
    return _can_permute(subject) and not norms and rotary(subject)


def _reverse_neurons(subject: Subject) -> None:
    for layer in subject.layers:
        found = subject.weights(layer).mlp
        assert found is not None
        for tensor in (found.W_in, found.W_gate):
            if tensor is not None:
                tensor.copy_(tensor.flip(1).clone())
        for tensor in (found.b_in, found.b_gate):
            if tensor is not None:
                tensor.copy_(tensor.flip(0).clone())
        found.W_out.copy_(found.W_out.flip(0).clone())


def _has_head_bias(subject: Subject) -> bool:
    return getattr(subject.model.get_output_embeddings(), "bias", None) is not None


def _shift_logits(subject: Subject) -> None:
    subject.model.get_output_embeddings().bias.add_(0.5)


def _from_next_block(backend: Backend) -> Backend:
    def place(where: Place, anatomy: Anatomy) -> Place:
        layer, site = where
        last = layer == anatomy.n_layers - 1
        return (layer + 1, "resid_pre") if site == "resid_post" and not last else where

    return Elsewhere(backend, place)


EQUIVALENT_CHANGES: tuple[Fault, ...] = (
    Fault("finite-mask", "tokens' scores are masked with -1e5 instead of -inf", "model", always,
          _finite_mask),
    Fault("rotary-shifted", "all rotary positions are one later", "model", _purely_rotary, _later),
    Fault("heads-permuted", "heads in another order in W_Q, W_K, W_V and W_O alike", "model",
          _headwise, _permute_heads, axes=("head", "matrix")),
    Fault("neurons-reversed", "hidden neurons in another order, before and after", "model",
          has_mlp, _reverse_neurons, axes=("neuron", "matrix")),
    Fault("logits-shifted", "a constant is added to every logit", "model", _has_head_bias,
          _shift_logits),
    Fault("resid-post-from-next-block", "resid_post is hooked as the next block's resid_pre",
          "taps", always, wrap=_from_next_block),
)  # fmt: skip
