"""Values to steps of colour, and what a step is worth.

The colours span what ordinary tokens have: position 0 is left out, and the largest
hundredth of them shares the last step, so that a few giants leave the others their colours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from residcheck.view.stream import Table, Values

STEPS = 8
"""Steps of colour on each side of zero."""
SHARE = 0.99
"""Share of the ordinary tokens' values that the colours span."""


@dataclass(frozen=True)
class Scale:
    """One way of colouring: each layer's value at the last step, and every cell's step."""

    key: str
    title: str
    limits: Float[np.ndarray, " layer"]
    steps: Int[np.ndarray, "layer position"]

    @property
    def common(self) -> float | None:
        """The value at the last step, where all layers have the same."""
        return float(self.limits[0]) if np.ptp(self.limits) == 0 else None


def scales(values: Values) -> tuple[Scale, ...]:
    """The ways to colour ``values``; the first is the one to begin with."""
    dot, cosine = values.dot, values.cosine
    own = np.array([_limit(row[None]) for row in dot])
    return (
        _scale("dot", "Dot product", dot, _shared(dot)),
        _scale("own", "Dot product, each layer on its own scale", dot, own),
        _scale("cosine", "Cosine", cosine, _shared(cosine)),
    )


def _shared(table: Table) -> Float[np.ndarray, " layer"]:
    return np.full(len(table), _limit(table))


def _limit(table: Table) -> float:
    """The size that ``SHARE`` of the values of ordinary tokens do not exceed."""
    return float(np.quantile(np.abs(table[:, 1:]), SHARE, method="higher"))


def _scale(key: str, title: str, table: Table, limits: Float[np.ndarray, " layer"]) -> Scale:
    smallest = np.finfo(np.float64).tiny  # a table of zeros
    steps = np.rint(table / np.maximum(limits, smallest)[:, None] * STEPS)
    return Scale(key, title, limits, np.clip(steps, -STEPS, STEPS).astype(int))
