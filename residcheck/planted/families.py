"""Planted matrices put into the modules of transformers.

Coordinates are turned by a random rotation; under LayerNorm into vectors of mean zero.
Gains of the norms are drawn at random, and what reads through a norm is divided by its
gain: folded, the weights are the planted ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from residcheck.planted.matrices import (
    EARLY,
    HEADS,
    Blueprint,
    Matrices,
    first_token,
    neurons,
    width,
)
from residcheck.planted.plan import Plan
from residcheck.planted.stream import OWN, Slots, Vector, blocks, embedding
from residcheck.planted.tokens import BOS, VOCABULARY

POSITIONS = 1024
EPSILON = 1e-12  # of the norms: what is planted is exact without one
SPEAKS = 0.5  # size of a token's row of the unembedding


def build(plan: Plan, **how: Any) -> Any:
    """The model in memory; ``how`` goes to transformers (dtype, attn_implementation)."""
    import transformers

    name, arguments = _CONFIGURATIONS[plan.family](plan)
    ids = {"vocab_size": VOCABULARY, "bos_token_id": BOS, "eos_token_id": BOS, "pad_token_id": BOS}
    config = getattr(transformers, name)(**arguments, **ids, tie_word_embeddings=False)
    model = transformers.AutoModelForCausalLM.from_config(config, **how)
    model.requires_grad_(requires_grad=False)
    for part, parameter in model.named_parameters():
        if "norm" not in part and "ln_" not in part:
            parameter.zero_()
    planned = blocks(plan)
    _Writer(plan, model).write(Blueprint(plan, planned).matrices(), planned)
    return model


class _Writer:
    """Writes matrices into a model of one family."""

    def __init__(self, plan: Plan, model: Any) -> None:
        self.plan, self.model, self.slots = plan, model, Slots(plan.layers)
        self._rng = np.random.default_rng(23)
        self.basis = _basis(plan, self._rng)

    def write(self, matrices: list[Matrices], planned: list[Any]) -> None:
        parts = self.model.get_submodule(_STACKS[self.plan.family])
        for block, made, plan in zip(parts, matrices, planned, strict=True):
            _BLOCKS[self.plan.family](self, block, made)
            if self.plan.family == "gemma3":  # what is written is normalised, then scaled
                root = width(self.plan) ** 0.5
                block.post_attention_layernorm.weight.fill_(plan.attention.size / root - 1)
                block.post_feedforward_layernorm.weight.fill_(plan.mlp.size / root - 1)
        self._ends()

    def gained(self, norm: Any) -> Tensor:
        """Draw the gain of a norm, and give it."""
        gain = np.exp(0.3 * self._rng.standard_normal(width(self.plan)))
        offset = 1.0 if self.plan.family == "gemma3" else 0.0
        _set(norm.weight, gain - offset)
        return torch.from_numpy(gain)

    def reading(self, rows: Vector, gain: Tensor) -> Tensor:
        """Rows that read the stream through a norm: ``[row, d_model]``."""
        return torch.from_numpy(rows.reshape(-1, rows.shape[-1]) @ self.basis) / gain

    def written(self, rows: Vector) -> Tensor:
        """Rows that are added to the stream: ``[row, d_model]``."""
        return torch.from_numpy(rows.reshape(-1, rows.shape[-1]) @ self.basis)

    def _ends(self) -> None:
        plan, model = self.plan, self.model
        own = self._rng.standard_normal((VOCABULARY, 8))
        own /= np.linalg.norm(own, axis=1, keepdims=True)
        tokens = np.tile(embedding(plan, self.slots), (VOCABULARY, 1))
        sizes = OWN * np.exp(plan.spread * self._rng.standard_normal((VOCABULARY, 1)))
        tokens[:, self.slots.own] = own * sizes
        tokens[BOS] = first_token(plan)
        tokens[BOS, self.slots.position] = 0.0  # positions have an embedding of their own
        scale = width(plan) ** 0.5 if plan.family == "gemma3" else 1.0
        _set(model.get_input_embeddings().weight, self.written(tokens) / scale)
        speaks = np.zeros((VOCABULARY, self.slots.count))
        speaks[:, self.slots.own] = SPEAKS * own
        gain = self.gained(model.get_submodule(_LAST_NORMS[plan.family]))
        _set(model.get_output_embeddings().weight, self.reading(speaks, gain))
        if plan.positions == "apart":
            sign = np.where(np.arange(POSITIONS) < EARLY, OWN, -OWN)
            places = sign[:, None] * self.slots.unit(self.slots.position)
            _set(model.transformer.wpe.weight, self.written(places))


def _basis(plan: Plan, rng: np.random.Generator) -> Vector:
    """Orthonormal rows, one for each slot; of mean zero where norms subtract the mean."""
    d, count = width(plan), Slots(plan.layers).count
    if plan.basis == "standard":  # reflected, so that all but the last have mean zero
        normal = np.full(d, d**-0.5) - np.eye(d)[-1]
        return np.asarray(np.eye(d) - 2 * np.outer(normal, normal) / (normal @ normal))[:count]
    columns = rng.standard_normal((d, count))
    if plan.biased:
        columns -= columns.mean(axis=0)
    return np.asarray(np.linalg.qr(columns)[0].T)


def _set(parameter: Any, values: Any) -> None:
    parameter.copy_(torch.as_tensor(values).reshape(parameter.shape))


def _gpt2(writer: _Writer, block: Any, made: Matrices) -> None:
    gain = writer.gained(block.ln_1)
    rows = np.concatenate([x.reshape(-1, x.shape[-1]) for x in (made.q, made.k, made.v)])
    _set(block.attn.c_attn.weight, writer.reading(rows, gain).T)
    _set(block.attn.c_proj.weight, writer.written(made.o))
    _set(block.attn.c_proj.bias, writer.written(made.b_o))
    _set(block.mlp.c_fc.weight, writer.reading(made.gate, writer.gained(block.ln_2)).T)
    _set(block.mlp.c_fc.bias, made.b_in)
    _set(block.mlp.c_proj.weight, writer.written(made.out))


def _neox(writer: _Writer, block: Any, made: Matrices) -> None:
    gain = writer.gained(block.input_layernorm)
    rows = np.stack([made.q, made.k, made.v], axis=1)  # head by head: q, k, v
    _set(block.attention.query_key_value.weight, writer.reading(rows, gain))
    _set(block.attention.dense.weight, writer.written(made.o).T)
    _set(block.attention.dense.bias, writer.written(made.b_o))
    read = writer.reading(made.gate, writer.gained(block.post_attention_layernorm))
    _set(block.mlp.dense_h_to_4h.weight, read)
    _set(block.mlp.dense_h_to_4h.bias, made.b_in)
    _set(block.mlp.dense_4h_to_h.weight, writer.written(made.out).T)


def _llama(writer: _Writer, block: Any, made: Matrices) -> None:
    _gated(writer, block, made, block.post_attention_layernorm)


def _gemma3(writer: _Writer, block: Any, made: Matrices) -> None:
    _gated(writer, block, made, block.pre_feedforward_layernorm)


def _gated(writer: _Writer, block: Any, made: Matrices, second_norm: Any) -> None:
    gain = writer.gained(block.input_layernorm)
    for name, rows in (("q_proj", made.q), ("k_proj", made.k), ("v_proj", made.v)):
        _set(getattr(block.self_attn, name).weight, writer.reading(rows, gain))
    _set(block.self_attn.o_proj.weight, writer.written(made.o).T)
    gain = writer.gained(second_norm)
    _set(block.mlp.gate_proj.weight, writer.reading(made.gate, gain))
    _set(block.mlp.up_proj.weight, writer.reading(made.up, gain))
    _set(block.mlp.down_proj.weight, writer.written(made.out).T)


def _configuration_gpt2(plan: Plan) -> tuple[str, dict[str, Any]]:
    sizes = {"n_embd": width(plan), "n_layer": plan.layers, "n_head": HEADS}
    more = {"n_inner": neurons(plan), "n_positions": POSITIONS, "layer_norm_epsilon": EPSILON}
    return "GPT2Config", sizes | more


def _sizes(plan: Plan) -> dict[str, Any]:
    return {
        "hidden_size": width(plan),
        "intermediate_size": neurons(plan),
        "num_hidden_layers": plan.layers,
        "num_attention_heads": HEADS,
        "max_position_embeddings": POSITIONS,
    }


def _configuration_neox(plan: Plan) -> tuple[str, dict[str, Any]]:
    return "GPTNeoXConfig", _sizes(plan) | {"layer_norm_eps": EPSILON, "hidden_act": "gelu"}


def _configuration_llama(plan: Plan) -> tuple[str, dict[str, Any]]:
    return "LlamaConfig", _sizes(plan) | {"num_key_value_heads": HEADS, "rms_norm_eps": EPSILON}


def _configuration_gemma3(plan: Plan) -> tuple[str, dict[str, Any]]:
    d_head = width(plan) // HEADS
    heads = {"num_key_value_heads": HEADS, "head_dim": d_head, "query_pre_attn_scalar": d_head}
    return "Gemma3TextConfig", _sizes(plan) | heads | {"rms_norm_eps": EPSILON}


_CONFIGURATIONS = {
    "gpt2": _configuration_gpt2,
    "neox": _configuration_neox,
    "llama": _configuration_llama,
    "gemma3": _configuration_gemma3,
}
_BLOCKS = {"gpt2": _gpt2, "neox": _neox, "llama": _llama, "gemma3": _gemma3}
_STACKS = {
    "gpt2": "transformer.h",
    "neox": "gpt_neox.layers",
    "llama": "model.layers",
    "gemma3": "model.layers",
}
_LAST_NORMS = {
    "gpt2": "transformer.ln_f",
    "neox": "gpt_neox.final_layer_norm",
    "llama": "model.norm",
    "gemma3": "model.norm",
}
