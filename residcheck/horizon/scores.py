"""What predictions lose: loss, divergence and top-1 agreement, token by token."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

_CACHE = 2**21  # bytes that a core's own cache holds beside their probabilities, about


class Scores(NamedTuple):
    """Per predicted token: loss and KL(full || these) in nats, and whether top-1 agrees (0, 1)."""

    loss: Float[Tensor, " token"]
    kl: Float[Tensor, " token"]
    top1: Float[Tensor, " token"]


class Reference:
    """The full model's predictions at some tokens, which others are held against."""

    def __init__(
        self, logits: Float[Tensor, "token vocab"], targets: Int[Tensor, " token"]
    ) -> None:
        logits = _wide(logits)
        self._targets = targets[:, None]
        self._best = logits.argmax(dim=-1, keepdim=True)
        logs = logits.log_softmax(dim=-1)
        self._probabilities = logs.exp()
        self._information = _dot(self._probabilities, logs)
        self.own = Scores(
            loss=-logs.gather(-1, self._targets)[:, 0],
            kl=torch.zeros_like(self._information),
            top1=torch.ones_like(self._information),
        )

    def score(self, logits: Float[Tensor, "token vocab"]) -> Scores:
        """Of other predictions q: KL is sum p log p - sum p log q. ``logits`` are used up."""
        logits = _wide(logits)
        rows = _rows_in_cache(logits)
        parts = [
            self._score(slice(start, start + rows), logits[start : start + rows])
            for start in range(0, len(logits), rows)
        ]
        return Scores(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    def _score(self, tokens: slice, logits: Float[Tensor, "token vocab"]) -> Scores:
        highest, likeliest = logits.max(dim=-1, keepdim=True)
        logits = logits.sub_(highest)
        top1 = (likeliest == self._best[tokens])[:, 0]  # of equal logits, one is the likeliest
        target = logits.gather(-1, self._targets[tokens])[:, 0]
        expected = _dot(self._probabilities[tokens], logits)
        # In place: a new array of this size costs more than what is computed in it.
        normaliser = logits.exp_().sum(dim=-1).log()
        kl = self._information[tokens] - expected + normaliser
        return Scores(normaliser - target, kl, top1.to(logits.dtype))


def _rows_in_cache(logits: Float[Tensor, "token vocab"]) -> int:
    """How many tokens to score at a time: six passes over logits are slow in main memory."""
    if logits.device.type != "cpu":
        return max(1, len(logits))
    return max(1, _CACHE // (logits.shape[-1] * logits.element_size()))


def _wide(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x if x.dtype == torch.float64 else x.float()


def _dot(
    a: Float[Tensor, "token vocab"], b: Float[Tensor, "token vocab"]
) -> Float[Tensor, " token"]:
    return (a * b).sum(dim=-1)  # faster than a batch of products of single rows
