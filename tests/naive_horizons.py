"""Layer horizons as anyone would write them down: one modified forward pass for each.

Plain transformers modules with hooks on what the sublayers read through, every layer of
every pass computed. Formulas are those of :class:`residcheck.horizon.Variant`; nothing
else is shared with the engine.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor

from residcheck.horizon import Variant


class Places(NamedTuple):
    """Where a family has its blocks, what attention and MLP read through, what attention adds."""

    blocks: str
    final_norm: str
    attention_reads: str
    mlp_reads: str | None  # None: the same module as attention
    attn_out: str
    parallel: bool = False


PLACES = {
    "gpt2": Places("transformer.h", "transformer.ln_f", "ln_1", "ln_2", "attn"),
    "gptj": Places("transformer.h", "transformer.ln_f", "ln_1", None, "attn", True),
    "bloom": Places(
        "transformer.h", "transformer.ln_f", "input_layernorm", "post_attention_layernorm",
        "self_attention.dense",
    ),
    "neox": Places(
        "gpt_neox.layers", "gpt_neox.final_layer_norm", "input_layernorm",
        "post_attention_layernorm", "attention", True,
    ),
    "llama": Places(
        "model.layers", "model.norm", "input_layernorm", "post_attention_layernorm", "self_attn"
    ),
    "gemma2": Places(
        "model.layers", "model.norm", "input_layernorm", "pre_feedforward_layernorm",
        "post_attention_layernorm",
    ),
    "olmo2": Places("model.layers", "model.norm", "self_attn", "mlp", "post_attention_layernorm"),
    "cohere": Places("model.layers", "model.norm", "input_layernorm", None, "self_attn", True),
}  # fmt: skip
PLACES |= dict.fromkeys(("mistral", "qwen3", "mixtral", "phi3"), PLACES["llama"])
PLACES["gemma3"] = PLACES["gemma2"]


def naive_logits(
    model: Any,
    places: Places,
    tokens: Tensor,
    mask: Tensor,
    variant: Variant,
    horizon: int,
    originals: dict[int, Tensor],
    means: dict[int, Tensor],
) -> Tensor:
    """Logits of one pass with one horizon.

    Args:
        originals: the unmodified streams, by sublayer (see :func:`plain_streams`).
        means: what stays of a removed stream, by sublayer, ``[pos, d]``; empty for nothing.
    """
    blocks = model.get_submodule(places.blocks)
    depth, own = len(blocks), {}

    def less(stream: Tensor, cut: int, source: dict[int, Tensor]) -> Tensor:
        read = (
            stream.float() - source[cut].float()
            if stream.dtype != torch.float64
            else (stream - source[cut])
        )
        if means:
            read = read + means[cut].to(read)
        return read.to(stream.dtype)

    def cut_of(s: int, layer: int) -> int:
        return 2 * (layer - horizon) if variant.unit == "layers" else s - horizon

    def enforced(layer: int) -> bool:
        return {
            "everywhere": True,
            "from": layer >= (variant.layer or 0),
            "at": layer == variant.layer,
            "unembedding": False,
        }[variant.enforced]

    def reading(s: int, layer: int, *, place: int) -> Any:
        """``s`` numbers the sublayer for its cut; ``place`` the stream that it reads."""

        def hook(module: Any, args: Any, kwargs: Any) -> Any:
            stream = args[0] if args else kwargs["hidden_states"]
            own[place] = stream.clone()
            source = originals if variant.outputs == "original" else own
            read, cut = source[place], cut_of(s, layer)
            if enforced(layer) and cut >= 0:
                read = less(read, cut, source)
            read = read.to(stream.dtype)
            return ((read, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": read})

        return hook

    def noting_middle(layer: int) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            written = output[0] if isinstance(output, tuple) else output
            own[2 * layer + 1] = own[2 * layer] + written

        return hook

    def last(module: Any, args: Any) -> Any:
        own[2 * depth] = args[0].clone()
        cut = cut_of(2 * depth, depth)
        truncated = variant.unembedding == "truncated" or variant.enforced == "unembedding"
        return (less(args[0], cut, own),) if truncated and cut >= 0 else None

    with ExitStack() as hooks:

        def pre(module: Any, hook: Any) -> None:
            hooks.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)

        for n, block in enumerate(blocks):
            pre(block.get_submodule(places.attention_reads), reading(2 * n, n, place=2 * n))
            attention = block.get_submodule(places.attn_out)
            hooks.callback(attention.register_forward_hook(noting_middle(n)).remove)
            if places.mlp_reads:
                s, place = (2 * n, 2 * n) if places.parallel else (2 * n + 1, 2 * n + 1)
                pre(block.get_submodule(places.mlp_reads), reading(s, n, place=place))
        norm = model.get_submodule(places.final_norm)
        hooks.callback(norm.register_forward_pre_hook(last).remove)
        logits: Tensor = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    return logits


@torch.no_grad()
def plain_streams(model: Any, places: Places, tokens: Tensor, mask: Tensor) -> dict[int, Tensor]:
    """The unmodified stream before each sublayer, and after the last."""
    blocks, found = model.get_submodule(places.blocks), {}

    def keep(place: int) -> Any:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            found[place] = (args[0] if args else kwargs["hidden_states"]).clone()

        return hook

    def middle(layer: int) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            written = output[0] if isinstance(output, tuple) else output
            found[2 * layer + 1] = found[2 * layer] + written

        return hook

    with ExitStack() as hooks:
        for n, block in enumerate(blocks):
            reads = block.get_submodule(places.attention_reads)
            attention = block.get_submodule(places.attn_out)
            for handle in (
                reads.register_forward_pre_hook(keep(2 * n), with_kwargs=True),
                attention.register_forward_hook(middle(n)),
            ):
                hooks.callback(handle.remove)
        norm = model.get_submodule(places.final_norm)
        handle = norm.register_forward_pre_hook(keep(2 * len(blocks)), with_kwargs=True)
        hooks.callback(handle.remove)
        model(input_ids=tokens, attention_mask=mask, use_cache=False)
    return found


def naive_means(streams: dict[int, Tensor], mask: Tensor) -> dict[int, Tensor]:
    """Of each stream the mean over ordinary tokens at every position; at position 0 its own."""
    found = {}
    for place, stream in streams.items():
        rows = [x[1 : int(m.sum())] for x, m in zip(stream.double(), mask, strict=True)]
        ordinary = torch.cat(rows).mean(dim=0)
        table = ordinary.repeat(stream.shape[1], 1)
        table[0] = stream[:, 0].double().mean(dim=0)
        found[place] = table
    return found


class NaiveScores(NamedTuple):
    loss: Tensor
    kl: Tensor
    top1: Tensor


def naive_scores(logits: Tensor, full: Tensor, tokens: Tensor, mask: Tensor) -> NaiveScores:
    """Per predicted token, prompt after prompt, in float64."""
    after = mask[:, 1:].bool()
    q = torch.log_softmax(logits[:, :-1][after].double(), -1)
    p = torch.log_softmax(full[:, :-1][after].double(), -1)
    targets = tokens[:, 1:][after]
    loss = torch.nn.functional.nll_loss(q, targets, reduction="none")
    kl = (p.exp() * (p - q)).sum(-1)
    return NaiveScores(loss, kl, (p.argmax(-1) == q.argmax(-1)).double())


@torch.no_grad()
def naive_horizons(
    model: Any, family: str, tokens: Tensor, mask: Tensor, variant: Variant
) -> list[NaiveScores]:
    """Scores at k = 1, 2, ... up to the depth, each by a pass of its own."""
    places = PLACES[family]
    depth = len(model.get_submodule(places.blocks))
    originals = plain_streams(model, places, tokens, mask)
    means = naive_means(originals, mask) if variant.ablation == "mean" else {}
    full = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    scores = []
    for k in range(1, variant.longest(depth) + 1):
        logits = naive_logits(model, places, tokens, mask, variant, k, originals, means)
        scores.append(naive_scores(logits, full, tokens, mask))
    return scores
