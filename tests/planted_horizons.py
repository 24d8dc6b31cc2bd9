"""Llamas whose layers read what a table says, so that what a horizon costs is planted."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from tiny import VOCAB, new_model, tokenizer
from torch import Tensor

from residcheck.corpus import Prompts

WORDS = 8  # kinds of tokens that the models tell apart
LENGTHS = range(8, 26)  # of prompts, in tokens


def repeated() -> Prompts:
    """Prompts of one token each, over and over: what comes next is what is there."""
    words = tokenizer()
    texts: list[str] = []
    for token in range(VOCAB):
        length = LENGTHS[len(texts)]
        text = words.decode([token] * length)
        if words(text, add_special_tokens=False)["input_ids"] == [token] * length:
            texts.append(text)
        if len(texts) == len(LENGTHS):
            break
    return Prompts("one token over and over", tuple(texts))


def reading_llama(
    folder: Path,
    reads: Float[Tensor, "layer slot"],
    answer: Float[Tensor, " slot"],
    distraction: float = 0.0,
) -> Path:
    """A Llama in which layer n writes ``reads[n] @ slots``, saved in ``folder``.

    The stream has a slot for the embedding, which is the kind of the token, and one for each
    layer. Attention writes nothing; the MLP of layer n writes to slot n + 1. To the
    unembedding, ``answer @ slots`` speaks for the tokens of the kind it has there, and the
    embedding's slot, ``distraction`` times, for those of another kind. If that is much the
    larger, the loss is the difference: linear in what is lost of the answer.

    With m slots of size 1 in a read of width d, the norm gives each sqrt(d / m); the gate,
    three times the sum of all, is 3 m sqrt(d / m), so large that it is linear; times sqrt(d / m)
    that is 3 d whatever m. So a slot is copied at its size however many slots are read.
    """
    depth = len(reads)
    width = WORDS * (depth + 1)
    model = new_model(
        "llama", num_hidden_layers=depth, hidden_size=width, intermediate_size=WORDS,
        num_key_value_heads=4, tie_word_embeddings=False, rms_norm_eps=1e-12,
    )  # fmt: skip
    one = torch.eye(WORDS)
    kinds = torch.arange(VOCAB) % WORDS
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.embed_tokens.weight[:, :WORDS] = one[kinds]
        for n, block in enumerate(model.model.layers):
            block.input_layernorm.weight.fill_(1)
            block.post_attention_layernorm.weight.fill_(1)
            block.mlp.gate_proj.weight.fill_(3)
            block.mlp.up_proj.weight.copy_(torch.kron(reads[n], one))
            block.mlp.down_proj.weight[WORDS * (n + 1) : WORDS * (n + 2)] = one / (3 * width)
        model.model.norm.weight.fill_(1)
        model.lm_head.weight.copy_(torch.kron(answer, one[kinds]))
        model.lm_head.weight[:, :WORDS] += distraction * one[(kinds - 1) % WORDS]
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def copying_llama(folder: Path, depth: int, reach: int) -> Path:
    """Layer n copies what layer n - ``reach`` wrote (the embedding where there is no such
    layer), and the unembedding reads the last layer: the horizon is ``reach``."""
    reads = torch.zeros(depth, depth + 1)
    for n in range(depth):
        reads[n, max(0, n - reach + 1)] = 1  # slot 0 is the embedding's, slot n + 1 layer n's
    answer = torch.zeros(depth + 1)
    answer[-1] = 2
    return reading_llama(folder, reads, answer)


def fading_llama(folder: Path, depth: int, tau: float) -> Path:
    """What the last layer reads of the layer k before it, copies of the embedding as all are,
    falls exponentially with k: with horizon k it lacks exp(-k / ``tau``) of all.

    It writes little, so that the norm before the unembedding hardly changes.
    """
    reads = torch.zeros(depth, depth + 1)
    reads[:-1, :-2] = torch.eye(depth - 1)
    left = torch.exp(-torch.arange(depth) / tau)
    left = torch.cat([left, torch.zeros(1)])
    reads[-1, :-1] = 0.25 * (left[:-1] - left[1:]).flip(0)
    answer = torch.zeros(depth + 1)
    answer[-1] = 6
    return reading_llama(folder, reads, answer, distraction=4)


def equal_llama(folder: Path, depth: int) -> Path:
    """Every layer reads the embedding and adds as much to the answer, a small part of the
    stream: with horizon k the layers from k on read nothing, and each costs the same."""
    reads = torch.zeros(depth, depth + 1)
    reads[:, 0] = 0.02
    answer = torch.full((depth + 1,), 1.5)
    answer[0] = 0
    return reading_llama(folder, reads, answer, distraction=1)
