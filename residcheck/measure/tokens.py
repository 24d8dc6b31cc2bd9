"""Prompts as token ids, in batches, with position 0 the BOS token."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from residcheck.corpus import Prompts
from residcheck.curves import PromptInfo
from residcheck.errors import LoadError, UsageError

DEFAULT_MAX_TOKENS = 128


@dataclass(frozen=True)
class Encoded:
    """Token ids of prompts, each beginning with BOS; ``bos`` is that token as text.

    ``positions`` is how many the model reads; None where its configuration does not say.
    """

    source: str
    ids: tuple[tuple[int, ...], ...]
    max_tokens: int
    bos: str
    pad_id: int
    positions: int | None = None

    def select(self, indices: list[int]) -> Encoded:
        return replace(self, ids=tuple(self.ids[i] for i in indices))

    def room(self, tokens: int) -> int:
        """``tokens``, or what the model reads if that is less."""
        return tokens if self.positions is None else min(tokens, self.positions)

    def info(self) -> PromptInfo:
        digest = hashlib.sha256()
        for prompt in self.ids:
            digest.update(np.asarray([len(prompt), *prompt], dtype="<i4").tobytes())
        return PromptInfo(
            source=self.source,
            sha256=digest.hexdigest(),
            count=len(self.ids),
            tokens=sum(map(len, self.ids)),
            max_tokens=self.max_tokens,
            bos=self.bos,
        )


@dataclass(frozen=True)
class Batch:
    """Some prompts, right-padded to one length."""

    indices: list[int]
    tokens: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch pos"]


def encode(prompts: Prompts, tokenizer: Any, config: Any, max_tokens: int | None) -> Encoded:
    """Tokenize; position 0 is BOS, or end-of-text where the tokenizer has no BOS.

    Args:
        max_tokens: longest prompt kept, counting BOS; None for the default of 128, or
            what the model can read if that is less.

    Raises:
        UsageError: ``max_tokens`` below 2 or beyond the model's positions.
        LoadError: a tokenizer that does not fit the model.
    """
    if not prompts.texts:
        raise UsageError("there are no prompts to measure")
    limit = _positions(config)
    if max_tokens is None:
        max_tokens = min(DEFAULT_MAX_TOKENS, limit or DEFAULT_MAX_TOKENS)
    if max_tokens < 2:
        raise UsageError(
            f"--max-tokens {max_tokens} leaves no token beside BOS",
            "it counts the BOS token, so it must be at least 2",
        )
    if limit is not None and max_tokens > limit:
        raise UsageError(f"--max-tokens {max_tokens}: the model reads at most {limit} positions")
    bos_id, bos = _bos(tokenizer)
    encoded = tokenizer(list(prompts.texts), add_special_tokens=False)["input_ids"]
    ids = tuple((bos_id, *map(int, prompt[: max_tokens - 1])) for prompt in encoded)
    highest = max(map(max, ids))
    if highest >= config.vocab_size:
        raise LoadError(
            f"the tokenizer does not fit the model: token {highest} of {config.vocab_size}",
            "the folder may hold the tokenizer of another model",
        )
    empty = [number for number, prompt in enumerate(ids, 1) if len(prompt) < 2]
    if empty:
        raise UsageError(f"prompt {empty[0]} of {prompts.source} has no tokens beside BOS")
    pad = tokenizer.pad_token_id
    if pad is None or pad >= config.vocab_size:  # a padding token added to the tokenizer alone
        pad = bos_id
    return Encoded(prompts.source, ids, max_tokens, bos, int(pad), limit)


def _positions(config: Any) -> int | None:
    """The longest prompt that the model reads, where its configuration says so."""
    for name in ("max_position_embeddings", "max_seq_len"):
        limit = getattr(config, name, None)
        if isinstance(limit, int) and limit > 0:
            return limit
    return None


def _bos(tokenizer: Any) -> tuple[int, str]:
    for kind in ("bos", "eos"):
        number = getattr(tokenizer, f"{kind}_token_id", None)
        if number is not None:
            return int(number), str(getattr(tokenizer, f"{kind}_token"))
    raise LoadError(
        "the tokenizer has neither a BOS nor an end-of-text token",
        "position 0 must be such a token; set bos_token in tokenizer_config.json",
    )


def batches(encoded: Encoded, size: int, device: str) -> Iterator[Batch]:
    """Batches of prompts of like length, longest first."""
    order = longest_first(encoded)
    for start in range(0, len(order), size):
        yield batch_of(encoded, order[start : start + size], device)


def longest_first(encoded: Encoded) -> list[int]:
    """The prompts in the order in which they are run, so that rows of a batch are alike."""
    return sorted(range(len(encoded.ids)), key=lambda i: (-len(encoded.ids[i]), i))


def batch_of(encoded: Encoded, indices: Sequence[int], device: str) -> Batch:
    """Some prompts as one batch."""
    tokens, mask = pad([encoded.ids[i] for i in indices], encoded.pad_id, "right")
    return Batch(list(indices), tokens.to(device), mask.to(device))


def pad(
    rows: list[tuple[int, ...]], pad_id: int, side: str, width: int | None = None
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """Token ids and mask (1 at tokens) of rows padded on ``side`` to one width."""
    width = width or max(map(len, rows))
    tokens = torch.full((len(rows), width), pad_id)
    mask = torch.zeros_like(tokens)
    for i, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        tokens[i, where] = torch.tensor(row)
        mask[i, where] = 1
    return tokens, mask
