"""Faults in the numbers of a model: biases lost, heads exchanged, matrices damaged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from residcheck.backends import AttentionWeights, MLPWeights
from residcheck.backends.base import affine_of
from residcheck.faults.base import Fault, Subject, always

_PLUS_ONE = ("GemmaRMSNorm", "Gemma2RMSNorm", "Gemma3RMSNorm", "NemotronLayerNorm1P")


def attention(subject: Subject, layer: int | None = None) -> AttentionWeights:
    found = subject.weights(subject.middle if layer is None else layer).attention
    assert found is not None
    return found


def mlp(subject: Subject, layer: int | None = None) -> MLPWeights:
    found = subject.weights(subject.middle if layer is None else layer).mlp
    assert found is not None
    return found


def has_mlp(subject: Subject) -> bool:
    return subject.has_mlp


def has_attention(subject: Subject) -> bool:
    return "attention" not in subject.anatomy.missing_weights


def _has_bias(part: Callable[[Subject], Any], name: str) -> Callable[[Subject], bool]:
    def applies(subject: Subject) -> bool:
        needed = subject.readable if part is attention else subject.has_mlp
        bias = getattr(part(subject), name) if needed else None
        return bias is not None and bool(bias.any())

    return applies


def _lose_bias(part: Callable[[Subject, int], Any], name: str) -> Callable[[Subject], None]:
    def apply(subject: Subject) -> None:
        for layer in subject.layers:
            getattr(part(subject, layer), name).zero_()

    return apply


def _bias_lost(name: str, part: Callable[..., Any], bias: str, what: str) -> Fault:
    return Fault(name, what, "model", _has_bias(part, bias), _lose_bias(part, bias))


def _exchange(a: Tensor, b: Tensor) -> None:
    kept = a.clone()
    a.copy_(b)
    b.copy_(kept)


def _grouped(subject: Subject) -> bool:
    anatomy = subject.anatomy
    return subject.readable and 1 < anatomy.n_kv_heads < anatomy.n_heads


def _several_values(subject: Subject) -> bool:
    return subject.readable and subject.anatomy.n_kv_heads > 1


def _same_heads(subject: Subject) -> bool:
    return subject.readable and subject.anatomy.n_kv_heads == subject.anatomy.n_heads


def _map_groups_wrongly(subject: Subject) -> None:
    """Query head h reads key head h mod n instead of h div (heads per group)."""
    n, keys = subject.anatomy.n_heads, subject.anatomy.n_kv_heads
    order = torch.arange(n).view(-1, keys).T.flatten()
    for layer in subject.layers:
        found = attention(subject, layer)
        for tensor in (found.W_Q, found.W_O, found.b_Q):
            if tensor is not None:
                tensor.copy_(tensor[order].clone())


def _swap_values(subject: Subject) -> None:
    found = attention(subject)
    for tensor in (found.W_V, found.b_V):
        if tensor is not None:
            _exchange(tensor[0], tensor[1])


def _swap_queries_and_keys(subject: Subject) -> None:
    found = attention(subject)
    _exchange(found.W_Q, found.W_K)
    if found.b_Q is not None and found.b_K is not None:
        _exchange(found.b_Q, found.b_K)


def _scale_head(subject: Subject) -> None:
    attention(subject).W_O[0].mul_(1.01)


def _zero_neuron(subject: Subject) -> None:
    mlp(subject).W_out[0].zero_()


def _scale_writer(subject: Subject) -> None:
    mlp(subject).W_out.mul_(1.001)


def _square(subject: Subject) -> bool:
    anatomy = subject.anatomy
    return has_attention(subject) and anatomy.n_heads * anatomy.d_head == anatomy.d_model


def _transpose_output(subject: Subject) -> None:
    matrix = attention(subject).W_O.flatten(0, 1)
    matrix.copy_(matrix.T.clone())


def _swap_layers(subject: Subject) -> None:
    first, second = (dict(block.named_parameters()) for block in subject.modules[:2])
    for name, one in first.items():
        other = second.get(name)
        if other is not None and other.shape == one.shape:
            _exchange(one.data, other.data)


def _gated(subject: Subject) -> bool:
    return subject.has_mlp and subject.anatomy.gated


def _swap_gate(subject: Subject) -> None:
    for layer in subject.layers:
        found = mlp(subject, layer)
        assert found.W_gate is not None
        _exchange(found.W_in, found.W_gate)
        if found.b_in is not None and found.b_gate is not None:
            _exchange(found.b_in, found.b_gate)


def _forget_plus_one(subject: Subject) -> None:
    for module in subject.model.modules():
        if type(module).__name__ in _PLUS_ONE:
            module.weight.sub_(1)


def _has_plus_one(subject: Subject) -> bool:
    return any(type(module).__name__ in _PLUS_ONE for module in subject.model.modules())


def _has_gain(subject: Subject) -> bool:
    return any(getattr(norm, "weight", None) is not None for norm in subject.norms(subject.middle))


def _lose_gains(subject: Subject) -> None:
    for norm in subject.norms(subject.middle):
        norm.weight.fill_(0.0 if type(norm).__name__ in _PLUS_ONE else 1.0)


def _has_norm_bias(subject: Subject) -> bool:
    return any(getattr(norm, "bias", None) is not None for norm in subject.norms(subject.middle))


def _lose_norm_biases(subject: Subject) -> None:
    for layer in subject.layers:
        for norm in subject.norms(layer):
            norm.bias.zero_()


def _fold_twice(subject: Subject) -> None:
    """Gains into the weights that read, while the norm still applies them."""
    path = subject.blocks.parts["ln1_out"].path
    for layer in subject.layers:
        norm = subject.modules[layer].get_submodule(path)
        gain = affine_of(norm, subject.anatomy.d_model).gain
        found = attention(subject, layer)
        for matrix in (found.W_Q, found.W_K, found.W_V):
            matrix.mul_(gain[:, None])


def _can_fold(subject: Subject) -> bool:
    return subject.readable and "ln1_out" in subject.blocks.parts and _has_gain(subject)


def _head_of(subject: Subject) -> Any:
    return subject.model.get_output_embeddings()


def _round_unembedding(subject: Subject) -> None:
    head = _head_of(subject)
    head.weight = nn.Parameter(head.weight.bfloat16().to(head.weight.dtype))


def _tied(subject: Subject) -> bool:
    head = _head_of(subject)
    return head is not None and head.weight is subject.model.get_input_embeddings().weight


def _untie(subject: Subject) -> None:
    """The unembedding keeps what it was initialised with."""
    head, source = _head_of(subject), torch.Generator().manual_seed(0)
    drawn = torch.randn(head.weight.shape, generator=source) * float(head.weight.std())
    head.weight = nn.Parameter(drawn.to(head.weight))


WEIGHTS: tuple[Fault, ...] = (
    _bias_lost("value-bias-lost", attention, "b_V", "b_V is zero in every layer"),
    _bias_lost("query-bias-lost", attention, "b_Q", "b_Q is zero in every layer"),
    _bias_lost("output-bias-lost", attention, "b_O", "b_O is zero in every layer"),
    _bias_lost("mlp-input-bias-lost", mlp, "b_in", "b_in is zero in every layer"),
    _bias_lost("mlp-output-bias-lost", mlp, "b_out", "b_out is zero in every layer"),
    Fault(
        "groups-mapped-wrongly",
        "query heads read the keys and values of another group (repeat for repeat_interleave)",
        "model",
        _grouped,
        _map_groups_wrongly,
    ),
    Fault(
        "value-heads-swapped",
        "the values of two heads exchanged, in one layer",
        "model",
        _several_values,
        _swap_values,
    ),
    Fault(
        "queries-and-keys-swapped",
        "W_Q and W_K exchanged, in one layer",
        "model",
        _same_heads,
        _swap_queries_and_keys,
    ),
    Fault(
        "head-scaled",
        "one head writes 1.01 times what it should",
        "model",
        has_attention,
        _scale_head,
    ),
    Fault("neuron-zeroed", "one neuron writes nothing", "model", has_mlp, _zero_neuron),
    Fault("w-out-scaled", "one layer's W_out times 1.001", "model", has_mlp, _scale_writer),
    Fault(
        "w-o-transposed", "one layer's square W_O transposed", "model", _square, _transpose_output
    ),
    Fault(
        "layers-swapped",
        "the first two blocks have each other's weights",
        "model",
        always,
        _swap_layers,
    ),
    Fault(
        "gate-and-up-swapped",
        "the gate's matrix and the linear one exchanged",
        "model",
        _gated,
        _swap_gate,
    ),
    Fault(
        "plus-one-forgotten", "gains w instead of 1 + w", "model", _has_plus_one, _forget_plus_one
    ),
    Fault(
        "norm-gain-lost",
        "one layer's norm gains are one: dropped, and not folded into what reads",
        "model",
        _has_gain,
        _lose_gains,
    ),
    Fault(
        "norm-bias-lost",
        "the biases of the norms are zero",
        "model",
        _has_norm_bias,
        _lose_norm_biases,
    ),
    Fault(
        "norm-gain-folded-twice",
        "attention's gains folded into W_Q, W_K and W_V, and applied by the norm as well",
        "library",
        _can_fold,
        _fold_twice,
    ),
    Fault(
        "unembedding-in-bfloat16", "W_U rounded to bfloat16", "model", always, _round_unembedding
    ),
    Fault(
        "embeddings-untied",
        "the unembedding is not the embedding's, but random",
        "model",
        _tied,
        _untie,
    ),
)
