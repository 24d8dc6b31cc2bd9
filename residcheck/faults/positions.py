"""Faults in positions and masks: rotary angles, learned positions, windows, padding."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from residcheck.faults.base import Fault, Subject

_LEARNED = ("wpe", "positions_embed", "embed_positions")
_SLOPES = ("alibi", "position_bias")
_TABLES = "embed_positions"
_NO_WINDOW = 1 << 20


# Rotary angles: frequencies, or in GPT-J and CodeGen tables of sines and cosines.


def _frequencies(subject: Subject) -> list[Tensor]:
    return [x for name, x in subject.model.named_buffers() if name.endswith("inv_freq")]


def _angle_tables(subject: Subject) -> list[Tensor]:
    return [x for name, x in subject.model.named_buffers() if name.endswith(_TABLES)]


def rotary(subject: Subject) -> bool:
    if getattr(subject.config, "alibi", False):  # Falcon has angles then, and does not use them
        return False
    return bool(_frequencies(subject) or _angle_tables(subject))


def _turn(change: Callable[[Tensor], Tensor]) -> Callable[[Subject], None]:
    """Change every rotary frequency."""

    def apply(subject: Subject) -> None:
        for frequency in _frequencies(subject):
            frequency.copy_(change(frequency.clone()))
        for table in _angle_tables(subject):
            sine, cosine = table[1].chunk(2)
            angles = torch.outer(torch.arange(len(table)), change(torch.atan2(sine, cosine)))
            table.copy_(torch.cat([angles.sin(), angles.cos()], dim=1))

    return apply


def _another_base(frequency: Tensor) -> Tensor:
    """base ** (-i/n) to a power: the base is 10,000 where it was 100,000."""
    return frequency**0.8


def _half(frequency: Tensor) -> Tensor:
    frequency[len(frequency) // 2 :] = 0
    return frequency


def _pair_neighbours(subject: Subject) -> None:
    """Rotate neighbouring coordinates together instead of those of two halves."""
    width = subject.anatomy.d_head
    order = torch.arange(width).view(2, -1).T.flatten()
    for layer in subject.layers:
        found = subject.weights(layer).attention
        assert found is not None
        for matrix in (found.W_Q, found.W_K):
            matrix.copy_(matrix[..., order].clone())
        for bias in (found.b_Q, found.b_K):
            if bias is not None:
                bias.copy_(bias[..., order].clone())


def _scaled_rotary(subject: Subject) -> bool:
    parameters = getattr(subject.config, "rope_parameters", None) or {}
    return bool(parameters.get("rope_type", "default") == "llama3")


def _plain_frequencies(subject: Subject) -> None:
    base = subject.config.rope_parameters["rope_theta"]
    for frequency in _frequencies(subject):
        steps = torch.arange(len(frequency)) / len(frequency)
        frequency.copy_(base**-steps)


# Learned positions.


def learned(subject: Subject) -> list[nn.Embedding]:
    found = [getattr(m, n, None) for m in subject.model.modules() for n in _LEARNED]
    return [module for module in found if isinstance(module, nn.Embedding)]


def _has_learned(subject: Subject) -> bool:
    return bool(learned(subject))


def _off_by_one(subject: Subject) -> None:
    for module in learned(subject):
        module.weight.copy_(module.weight.roll(-1, dims=0).clone())


def _drop_positions(subject: Subject) -> None:
    for module in learned(subject):
        module.weight.zero_()


# What a module is called with.


def calling(module: Any, name: str, change: Callable[[Any, Any], Any]) -> None:
    """Let ``change`` see one argument of every call, and the call's first one, and replace it."""
    signature = inspect.signature(module.forward)
    if name not in signature.parameters:
        return

    def before(_module: Any, args: Any, kwargs: Any) -> Any:
        call = signature.bind_partial(*args, **kwargs)
        given = dict(call.arguments)
        extra = given.pop(next((n for n, p in signature.parameters.items() if p.kind == 4), ""), {})
        given[name] = change(given.get(name), next(iter(given.values())))
        return (), given | extra

    module.register_forward_pre_hook(before, with_kwargs=True)


def _next_row(mask: Any, stream: Tensor) -> Any:
    """A mask in which every query sees what the next one sees."""
    if mask is None:
        n = stream.shape[1]
        least = torch.finfo(stream.dtype).min
        mask = torch.full((n, n), least, dtype=stream.dtype).triu(1)[None, None]
    return torch.cat([mask[..., 1:, :], mask[..., -1:, :]], dim=-2)


def _see_the_next(subject: Subject) -> None:
    for attention in subject.attentions:
        for module in attention.modules():
            calling(module, "attention_mask", _next_row)
            own = getattr(module, "bias", None)  # masks of GPT-1 and GPT-Neo
            if isinstance(own, Tensor) and own.ndim == 4:
                own.copy_(torch.cat([own[..., 1:, :], own[..., -1:, :]], dim=-2))


def _biased_by_distance(subject: Subject) -> bool:
    slopes = any(
        name in inspect.signature(attention.forward).parameters
        for attention in subject.attentions
        for name in _SLOPES
    )
    return slopes and not rotary(subject)


def _halve_slopes(subject: Subject) -> None:
    for attention in subject.attentions:
        for name in _SLOPES:
            calling(attention, name, lambda bias, _: None if bias is None else bias * 0.5)


# Windows.


def _window(subject: Subject) -> bool:
    size = getattr(subject.config, "sliding_window", None)
    return size is not None or bool(_local_masks(subject))


def _local_masks(subject: Subject) -> list[tuple[Any, int]]:
    """GPT-Neo's masks of local layers, and their window."""
    size: int = getattr(subject.config, "window_size", 0)
    modules = [m for a in subject.attentions for m in a.modules()]
    local = [m for m in modules if size and getattr(m, "attention_type", "") == "local"]
    return [(m, size) for m in local if hasattr(m, "bias")]


def _set_window(change: Callable[[int], int]) -> Callable[[Subject], None]:
    def apply(subject: Subject) -> None:
        for module, size in _local_masks(subject):
            causal = torch.ones_like(module.bias).tril()
            module.bias.copy_(causal & ~causal.tril(-change(size)))
        old = getattr(subject.config, "sliding_window", None)
        if old is not None:
            subject.config.sliding_window = change(old)
            for module, name in list(subject.holding("sliding_window")):
                setattr(module, name, change(old))

    return apply


# Padding.


def _by_index(subject: Subject) -> None:
    """OPT's positions counted from the first token of the row, padding or not."""
    for module in learned(subject):
        calling(module, "position_ids", lambda _, mask: torch.arange(mask.shape[1])[None])


def _by_mask(_: Any, given: dict[str, Any]) -> Any:
    mask = given.get("attention_mask")
    return None if mask is None else (mask.cumsum(dim=1) - 1).clamp_min(0)


def counts_tokens(subject: Subject) -> bool:
    """Whether learned positions are counted from the first token of the text (OPT)."""
    return any("attention_mask" in inspect.signature(m.forward).parameters
               for m in learned(subject))  # fmt: skip


def _count_tokens(subject: Subject) -> None:
    def before(_module: Any, args: Any, kwargs: Any) -> Any:
        return args, kwargs | {"position_ids": _by_mask(None, kwargs)}

    subject.model.register_forward_pre_hook(before, with_kwargs=True)


def _see_padding(subject: Subject) -> None:
    calling(subject.model, "attention_mask", lambda mask, ids: torch.ones_like(ids))


def _fault(
    name: str, what: str, applies: Callable[[Subject], bool], apply: Callable[[Subject], None]
) -> Fault:
    return Fault(name, what, "model", applies, apply)


POSITIONS: tuple[Fault, ...] = (
    _fault("rotary-base", "another base of the rotary angles", rotary, _turn(_another_base)),
    _fault("rotary-halved", "half of the dimensions are not rotated", rotary, _turn(_half)),
    _fault("rotary-dropped", "no dimension is rotated", rotary, _turn(torch.zeros_like)),
    _fault("rotary-pairs", "neighbours rotated together instead of halves",
           lambda s: rotary(s) and bool(_frequencies(s)) and s.readable, _pair_neighbours),
    _fault("rotary-scaling-lost", "angles not stretched for long contexts (Llama 3)",
           _scaled_rotary, _plain_frequencies),
    _fault("positions-off-by-one", "each token gets the next one's learned position",
           _has_learned, _off_by_one),
    _fault("positions-dropped", "learned positions are zero", _has_learned, _drop_positions),
    _fault("next-token-seen", "every query sees one token too many", lambda s: True,
           _see_the_next),
    _fault("alibi-slopes", "slopes of the distance bias are half as steep", _biased_by_distance,
           _halve_slopes),
    _fault("window-ignored", "sliding windows see everything", _window,
           _set_window(lambda size: _NO_WINDOW)),
    _fault("window-off-by-one", "sliding windows see one token more", _window,
           _set_window(lambda size: size + 1)),
    _fault("padding-counted", "positions count left padding (OPT)", counts_tokens, _by_index),
    _fault("padding-not-counted", "learned positions skip left padding, which the model counts",
           lambda s: _has_learned(s) and not counts_tokens(s), _count_tokens),
    _fault("padding-seen", "tokens attend to left padding", lambda s: True, _see_padding),
)  # fmt: skip
