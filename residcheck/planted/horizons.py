"""Llamas whose layers read what a table says, so that what a horizon costs is planted.

The stream has a slot for the embedding, which is the kind of the byte at hand (a vowel, a
digit, a space, ...), and one for each layer. Attention writes nothing; the MLP of layer n
writes to slot n + 1. The unembedding turns what the slots say of the kind into
log-probabilities of the next byte, as they are in the shipped passages.
"""

from __future__ import annotations

import string
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from residcheck.corpus import shipped
from residcheck.planted.plan import Plan
from residcheck.planted.tokens import BOS, VOCABULARY, tokenizer

# Kinds of bytes that the models tell apart; all others are one more.
KINDS = (
    "aeiou",
    "bcdfghjklm",
    "npqrstvwxyz",
    string.ascii_uppercase,
    string.digits,
    " \n",
    ".,;:!?",
)
WORDS = len(KINDS) + 1
# So weak an answer costs in proportion to what is lost of it: log-probabilities of the next
# byte times this, of which the loss is a nearly straight line.
WEAK = 0.1
LAST = 0.25  # what the last layer writes, over a slot: its size hardly moves the final norm
PART = 0.02  # what each layer writes where all cost alike


def build(plan: Plan, **how: Any) -> Any:
    """The model in memory; ``how`` goes to transformers."""
    if plan.horizon is not None:
        reads, answer = copying(plan.layers, plan.horizon)
    elif plan.decay is not None:
        reads, answer = fading(plan.layers, plan.decay)
    else:
        assert plan.toll is not None
        reads, answer = equal(plan.layers, plan.toll)
    return reading_llama(reads, answer, **how)


def copying(depth: int, reach: int) -> tuple[Tensor, Tensor]:
    """Layer n copies what layer n - ``reach`` wrote (the embedding where there is no such
    layer), and the unembedding reads the last layer: the horizon is ``reach``."""
    reads = torch.zeros(depth, depth + 1)
    for n in range(depth):
        reads[n, max(0, n - reach + 1)] = 1  # slot 0 is the embedding's, slot n + 1 layer n's
    answer = torch.zeros(depth + 1)
    answer[-1] = 1
    return reads, answer


def fading(depth: int, tau: float) -> tuple[Tensor, Tensor]:
    """What the last layer reads of the layer k before it, copies of the embedding as all are,
    falls exponentially with k: with horizon k it lacks exp(-k / ``tau``) of all."""
    reads = torch.zeros(depth, depth + 1)
    reads[:-1, :-2] = torch.eye(depth - 1)
    left = torch.exp(-torch.arange(depth) / tau)
    left = torch.cat([left, torch.zeros(1)])
    reads[-1, :-1] = LAST * (left[:-1] - left[1:]).flip(0)
    answer = torch.zeros(depth + 1)
    answer[-1] = WEAK / LAST
    return reads, answer


def equal(depth: int, toll: float) -> tuple[Tensor, Tensor]:
    """Every layer reads the embedding and adds as much to the answer, a small part of the
    stream: with horizon k the layers from k on read nothing, and each costs the same."""
    reads = torch.zeros(depth, depth + 1)
    reads[:, 0] = PART
    answer = torch.full((depth + 1,), toll / PART)
    answer[0] = 0
    return reads, answer


def reading_llama(
    reads: Float[Tensor, "layer slot"], answer: Float[Tensor, " slot"], **how: Any
) -> Any:
    """A Llama in which layer n writes ``reads[n] @ slots``.

    To the unembedding ``answer @ slots``, whatever is read of a kind, is a factor on the
    log-probabilities of what follows that kind.

    With m slots of size 1 in a read of width d, the norm gives each sqrt(d / m); the gate,
    three times the sum of all, is 3 m sqrt(d / m), so large that it is linear; times sqrt(d / m)
    that is 3 d whatever m. So a slot is copied at its size however many slots are read.
    """
    import transformers

    depth = len(reads)
    width = WORDS * (depth + 1)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, bos_token_id=BOS, eos_token_id=BOS, pad_token_id=BOS,
        hidden_size=width, intermediate_size=WORDS, num_hidden_layers=depth,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=1024,
        rms_norm_eps=1e-12, tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config, **how)
    model.requires_grad_(requires_grad=False)
    one, size = torch.eye(WORDS), _slot_size(reads, width)
    for name, parameter in model.named_parameters():
        parameter.fill_(float("norm" in name))
    model.model.embed_tokens.weight[:, :WORDS] = one[_kinds()]
    for n, block in enumerate(model.model.layers):
        block.mlp.gate_proj.weight.fill_(3)
        block.mlp.up_proj.weight.copy_(torch.kron(reads[n], one))
        block.mlp.down_proj.weight[WORDS * (n + 1) : WORDS * (n + 2)] = one / (3 * width)
    model.lm_head.weight.copy_(torch.kron(answer / size, _follows()))
    return model


def _slot_size(reads: Tensor, width: int) -> float:
    """What the final norm makes of a slot of size 1."""
    slots = torch.zeros(len(reads) + 1)
    slots[0] = 1
    for n, row in enumerate(reads):
        slots[n + 1] = row @ slots
    return float((width / slots.square().sum()).sqrt())


@cache
def _kinds() -> Tensor:
    """The kind of each token."""
    words = tokenizer()
    kinds = torch.full((VOCABULARY,), WORDS - 1)
    for kind, letters in enumerate(KINDS):
        kinds[words(letters)["input_ids"]] = kind
    return kinds


@cache
def _follows() -> Tensor:
    """Log-probabilities of the next token after each kind, in the shipped passages:
    ``[token, kind]``, with one more of each counted."""
    counts = np.ones((VOCABULARY, WORDS))
    kinds = _kinds().numpy()
    for ids in tokenizer()(list(shipped().texts))["input_ids"]:
        np.add.at(counts, (np.array(ids[1:]), kinds[ids[:-1]]), 1)
    return torch.from_numpy(np.log(counts / counts.sum(axis=0))).float()
