"""Which tokens each step sees: a pure function of the seed and the step's number.

Every window reads the mark and then ``context - 1`` tokens, and predicts ``context``: position 0
is what residcheck puts there when it measures.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from residcheck.train.corpus import Tokens

Indices = npt.NDArray[np.int64]


class Batches:
    """The windows of a run, epoch after epoch, each in an order of its own.

    Args:
        tokens: of the training part, ``[token]``.
        mark: the token at position 0.
        context: tokens that a window reads and predicts.
        batch: windows a step.

    Raises:
        ValueError: fewer tokens than two windows.
    """

    def __init__(self, tokens: Tokens, mark: int, context: int, batch: int, seed: int) -> None:
        self._tokens, self._mark = tokens, mark
        self._context, self._batch, self._seed = context, batch, seed
        self._windows = (len(tokens) - context) // context  # the last leaves room for an offset
        if self._windows < 1:
            raise ValueError(f"{len(tokens)} tokens are too few for windows of {context}")

    def __call__(self, step: int) -> Indices:
        """Token ids of a step, ``[batch, context + 1]``: column 0 is the mark."""
        places = np.arange(step * self._batch, (step + 1) * self._batch)
        return np.stack([self._window(int(place)) for place in places])

    def _window(self, place: int) -> Indices:
        epoch, number = divmod(place, self._windows)
        order, offset = _order(self._seed, epoch, self._windows, self._context)
        start = int(order[number]) * self._context + offset
        return marked(self._tokens[start : start + self._context], self._mark)


def marked(tokens: Tokens, mark: int) -> Indices:
    """Tokens behind a mark, as torch reads them."""
    return np.concatenate([[mark], tokens]).astype(np.int64)


def spread(tokens: Tokens, mark: int, context: int, windows: int) -> Indices:
    """Windows at even distances over a text, ``[window, context + 1]``: fewer of a short one."""
    there = len(tokens) // context
    chosen = np.unique(np.linspace(0, there - 1, min(windows, there)).round().astype(np.int64))
    return np.stack([marked(tokens[i * context : (i + 1) * context], mark) for i in chosen])


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, windows: int, context: int) -> tuple[Indices, int]:
    """The order of an epoch's windows, and where the first of the text begins."""
    # Counter-based: an epoch's numbers need no other epoch to be drawn before.
    numbers = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    offset = int(numbers.integers(context))
    return numbers.permutation(windows), offset
