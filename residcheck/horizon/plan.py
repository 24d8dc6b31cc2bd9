"""How much runs together, within a budget of memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from residcheck.backends import Anatomy
from residcheck.errors import UsageError
from residcheck.horizon.variant import Schedule

DEFAULT_MEMORY = 2 << 30
# Tokens in a block, and tokens unembedded, that are of use together. Two cores reach their
# speed at about a thousand, and logits of 128 tokens stay in their cache; an accelerator
# takes some ten thousand.
USEFUL_TOKENS = 32768
_USEFUL = {"cpu": (4096, 128), "accelerator": (USEFUL_TOKENS, 2048)}
_SMALLEST_PIECE = 16


@dataclass(frozen=True)
class Plan:
    """Prompts in a batch, horizons that run together, tokens unembedded together."""

    prompts: int
    rows: int
    piece: int

    def smaller(self) -> Plan | None:
        """About half as much together: prompts first, then horizons, then tokens."""
        piece = max(_SMALLEST_PIECE, self.piece // 2)
        if self.prompts > 1:
            return Plan((self.prompts + 1) // 2, self.rows, piece)
        if self.rows > 1:
            return Plan(1, (self.rows + 1) // 2, piece)
        return Plan(1, 1, piece) if piece < self.piece else None


SMALLEST = Plan(1, 1, _SMALLEST_PIECE)


@dataclass(frozen=True)
class Demand:
    """Bytes that the work takes beside the model.

    Args:
        batch: per token of a batch: the unmodified streams and every horizon's last read.
        row: per token and horizon under way: its streams, and what a block makes of it.
        piece: per token that is unembedded: two sets of logits, their logs, probabilities, and
            the products of both.
    """

    batch: int
    row: int
    piece: int

    @classmethod
    def of(
        cls,
        anatomy: Anatomy,
        vocab: int,
        dtype: torch.dtype,
        schedules: Sequence[Schedule],
        *,
        middles: bool,
        original: bool,
        tokens: int,
    ) -> Demand:
        """For prompts of ``tokens``."""
        wide = torch.promote_types(dtype, torch.float32).itemsize
        stream = anatomy.d_model * wide
        boundaries = anatomy.n_layers * (2 if middles else 1) + 1
        kept = max((s.most_kept(original) for s in schedules), default=0)
        return cls(
            batch=(boundaries + len(schedules)) * stream,
            row=(kept + 6) * stream + block_bytes(anatomy, dtype, tokens),
            piece=5 * vocab * wide,
        )


def block_bytes(anatomy: Anatomy, dtype: torch.dtype, tokens: int) -> int:
    """Bytes per token of what one block makes of prompts of ``tokens``."""
    wide = torch.promote_types(dtype, torch.float32).itemsize
    hidden = 4 * (anatomy.d_mlp or 4 * anatomy.d_model)  # gate, linear part, both, and one more
    scores = 3 * anatomy.n_heads * tokens  # of attention that holds them, and a softmax
    return (8 * anatomy.d_model + hidden) * dtype.itemsize + scores * wide


def plan(
    demand: Demand, memory: int, prompts: int, tokens: int, horizons: int, device: str
) -> Plan:
    """The largest batches that fit into ``memory`` bytes and are of use.

    Args:
        prompts: at most so many in a batch, each of ``tokens``.

    Raises:
        UsageError: one horizon of one prompt does not fit.
    """
    in_block, unembedded = _USEFUL["cpu" if device == "cpu" else "accelerator"]
    while True:
        batch, row = (prompts * tokens * cost for cost in (demand.batch, demand.row))
        needed = batch + max(row, _SMALLEST_PIECE * demand.piece)
        if needed <= memory:
            break
        if prompts == 1:
            raise UsageError(
                f"--memory {_mib(memory)} MiB is too little: one horizon of one prompt of "
                f"{tokens} tokens takes about {_mib(needed)} MiB beside the model",
                "allow more memory, or use a smaller --max-tokens",
            )
        prompts = (prompts + 1) // 2
    useful = -(-in_block // (prompts * tokens))
    rows = min((memory - batch) // row, useful, horizons)
    piece = min((memory - batch) // demand.piece, unembedded)
    return Plan(prompts, max(1, rows), max(_SMALLEST_PIECE, piece))


def _mib(size: int) -> int:
    return -(-size >> 20)
