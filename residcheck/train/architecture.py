"""GPT-2 from transformers, and what the arms change of it.

A changed model is a ``GPT2LMHeadModel`` whose blocks or norms were exchanged after it was built,
so that every arm draws the same initial weights from the same seed.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from residcheck.train.arms import MODEL_TYPE, Arm, Changes
from residcheck.train.scales import Scale

Stream = Float[Tensor, "batch pos d_model"]


class ControlConfig(GPT2Config):  # type: ignore[misc]
    """A configuration of GPT-2 with ``changes``, the fields of :class:`Changes`."""

    model_type = MODEL_TYPE


class RescaledBlock(GPT2Block):  # type: ignore[misc]
    """``f(x) + x/c``: the block of the divided stream.

    Both sublayers read through a LayerNorm, which does not see the division (but for its
    epsilon), so that only what is passed on is divided.
    """

    inverse: Any  # a number, or a parameter of the block

    def forward(self, hidden_states: Stream, *args: Any, **kwargs: Any) -> Stream:
        result: Stream = super().forward(hidden_states * self.inverse, *args, **kwargs)
        return result


class PostNormBlock(GPT2Block):  # type: ignore[misc]
    """``LN(x + attn(x))``, then ``LN(x + mlp(x))``, as before GPT-2."""

    def forward(
        self,
        hidden_states: Stream,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Stream:
        kwargs.pop("encoder_attention_mask", None)
        attended, _ = self.attn(
            hidden_states, past_key_values=past_key_values, attention_mask=attention_mask, **kwargs
        )
        hidden_states = self.ln_1(hidden_states + attended)
        result: Stream = self.ln_2(hidden_states + self.mlp(hidden_states))
        return result


class DepthScaledNorm(nn.LayerNorm):
    """A LayerNorm that hands on ``factor`` times its output."""

    def __init__(self, width: int, eps: float, factor: float) -> None:
        super().__init__(width, eps=eps)
        self.factor = factor

    def forward(self, x: Stream) -> Stream:
        return super().forward(x) * self.factor


class ControlModel(GPT2LMHeadModel):  # type: ignore[misc]
    """GPT-2 with the changes that its configuration says."""

    config_class = ControlConfig
    _no_split_modules = ["GPT2Block", "RescaledBlock", "PostNormBlock"]  # noqa: RUF012

    def __init__(self, config: ControlConfig) -> None:
        super().__init__(config)
        change(self, Changes(**config.changes))


def change(model: GPT2LMHeadModel, changes: Changes) -> None:
    """Make ``changes`` in a model that was just built; no random number is drawn."""
    stack = model.transformer
    if changes.norm == "RMSNorm":
        _exchange_norms(model)
    for number, block in enumerate(stack.h, 1):
        if changes.depth_scaled:
            _scale_norms(block, number**-0.5, model.config.layer_norm_epsilon)
        if changes.rescale is not None:
            block.__class__ = RescaledBlock  # the same modules, called otherwise
            inverse = 1 / changes.rescale
            learned = changes.rescale_learned
            block.inverse = nn.Parameter(torch.tensor(inverse)) if learned else inverse
        if changes.post_norm:
            block.__class__ = PostNormBlock
    if changes.post_norm:
        stack.ln_f = nn.Identity()


def _exchange_norms(model: GPT2LMHeadModel) -> None:
    width, eps = model.config.n_embd, model.config.layer_norm_epsilon
    for block in model.transformer.h:
        block.ln_1, block.ln_2 = nn.RMSNorm(width, eps=eps), nn.RMSNorm(width, eps=eps)
    model.transformer.ln_f = nn.RMSNorm(width, eps=eps)


def _scale_norms(block: GPT2Block, factor: float, eps: float) -> None:
    for name in ("ln_1", "ln_2"):
        width = getattr(block, name).weight.shape[0]
        setattr(block, name, DepthScaledNorm(width, eps, factor))


def build(arm: Arm, scale: Scale, vocabulary: int, mark: int, seed: int) -> GPT2LMHeadModel:
    """A new model with GPT-2's initial weights, drawn from ``seed``."""
    torch.manual_seed(seed)
    config = ControlConfig(changes=asdict(arm.changes), **arguments(arm, scale, vocabulary, mark))
    config.architectures = [ControlModel.__name__]
    return ControlModel(config)


def arguments(arm: Arm, scale: Scale, vocabulary: int, mark: int) -> dict[str, Any]:
    """What GPT-2's configuration is called with."""
    return {
        "vocab_size": vocabulary,
        "n_positions": scale.context,
        "n_embd": scale.width,
        "n_layer": scale.layers,
        "n_head": arm.heads,
        # The same function as "gelu_new", in one kernel of torch.
        "activation_function": "gelu_pytorch_tanh",
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "bos_token_id": mark,
        "eos_token_id": mark,
        "attn_implementation": "sdpa",
    }


def centred(changes: Changes) -> bool:
    """Whether nothing reads the mean of the stream, which is left out of its norms then."""
    return changes.norm == "LayerNorm" and not changes.post_norm


def register() -> None:
    """Let transformers' Auto classes know the changed architecture."""
    AutoConfig.register(MODEL_TYPE, ControlConfig, exist_ok=True)
    AutoModelForCausalLM.register(ControlConfig, ControlModel, exist_ok=True)
