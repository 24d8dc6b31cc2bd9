"""A trained control as a model folder, as plain a GPT-2 as it can be.

Norms before the sublayers do not see how large the stream is (but for their epsilon). So the
stream x of a model that divides it before each block is, times the product of what it was divided
by so far, the stream y of a plain GPT-2: ``y_l = P_l x_l`` with ``P_0 = 1`` and ``P_(l+1) = c_l
P_l``, where block l writes ``P_(l+1)`` times what it wrote.

What the epsilon does: a norm over ``x_l / c_l`` with epsilon is one over ``y_l`` with epsilon
times ``P_(l+1)^2``; the plain model has one epsilon for all. Its norms so hand on ``1 + e`` times
as much, ``e`` up to half of epsilon over the variance of ``x_l / c_l``.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from residcheck.train.arms import Changes


def residual_factors(model: Any) -> list[float]:
    """``P_l`` for the stream before each block and after the last, ``[layer + 1]``.

    Norms of the trained stream are those of the plain one over these.
    """
    products = [1.0]
    for block in model.transformer.h:
        inverse = getattr(block, "inverse", 1.0)
        number = inverse.item() if isinstance(inverse, Tensor) else inverse
        products.append(products[-1] / number)
    return products


def is_gpt2(changes: Changes) -> bool:
    """Whether an arm's models are the same function as a plain GPT-2."""
    return changes.norm == "LayerNorm" and not changes.post_norm


@torch.no_grad()
def as_gpt2(model: Any) -> GPT2LMHeadModel:
    """The plain GPT-2 that is the same function, with ``residual_factors`` in its configuration.

    Raises:
        ValueError: there is none: the model has another kind of norm, or has them elsewhere.
    """
    changes = Changes(**model.config.changes)
    if not is_gpt2(changes):
        raise ValueError(f"no plain GPT-2 is the same function: {changes}")
    said = model.config.to_dict()
    dropped = ("changes", "model_type", "architectures", "transformers_version", "dtype")
    kept = {name: value for name, value in said.items() if name not in dropped}
    kept |= {"activation_function": "gelu_new", "residual_factors": residual_factors(model)}
    plain = GPT2LMHeadModel(GPT2Config(**kept)).to(model.lm_head.weight)
    weights = {name: value.clone() for name, value in model.state_dict().items()
               if not name.endswith(".inverse")}  # fmt: skip
    plain.load_state_dict(weights)
    blocks = zip(plain.transformer.h, model.transformer.h, strict=True)
    for product, (block, trained) in zip(residual_factors(model)[1:], blocks, strict=True):
        for sublayer in (block.attn, block.mlp):
            _scale(sublayer.c_proj, product)
        for name in ("ln_1", "ln_2"):
            _scale(getattr(block, name), getattr(getattr(trained, name), "factor", 1.0))
    return plain.eval()


def _scale(layer: Any, factor: float) -> None:
    layer.weight.mul_(factor)
    layer.bias.mul_(factor)


def exported(model: Any) -> Any:
    """What is written of a trained model: the plain GPT-2, or itself where there is none."""
    return as_gpt2(model) if is_gpt2(Changes(**model.config.changes)) else model


def write_model(model: Any, tokenizer: Any, card: str, folder: Path) -> None:
    """Write float16 safetensors, tokenizer and card to ``folder``, which is whole or not there."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.to(torch.float16).save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    (partial / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)


@torch.no_grad()
def shift(trained: Any, plain: Any, windows: Tensor) -> Float[Tensor, ""]:
    """The largest change of a log-probability between two models, in float64."""
    first, second = (
        model.double()(windows, use_cache=False).logits.log_softmax(dim=-1)
        for model in (trained, plain)
    )
    result: Tensor = (first - second).abs().max()
    return result
