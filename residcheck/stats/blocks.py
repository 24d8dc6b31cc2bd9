"""Arms and seeds as a randomised block design: intervals over seeds.

All arms of a seed begin with the same weights and see the same batches, so that a seed is a
block. With an effect for each arm and one for each seed, what is left is taken to vary as much
in all arms, and is estimated from all of them together: two seeds alone would leave an arm one
degree of freedom.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import stats

from residcheck.stats.decision import LEVEL, Estimate, Region
from residcheck.stats.fits import Floats

SEEDS = "other seeds"
MIN_SEEDS, MIN_ARMS = 2, 3
"""With two arms the residuals would be those of the one difference that is asked for."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """Values of every arm with every seed, ``[arm, seed]``."""

    values: Floats

    def __post_init__(self) -> None:
        arms, seeds = self.values.shape
        if arms < MIN_ARMS or seeds < MIN_SEEDS:
            raise ValueError(f"{arms} arms and {seeds} seeds are no layout")

    @property
    def residuals(self) -> Floats:
        """What neither arm nor seed explains, ``[arm, seed]``."""
        v = self.values
        return np.asarray(v - v.mean(axis=1, keepdims=True) - v.mean(axis=0) + v.mean())

    @property
    def dof(self) -> int:
        arms, seeds = self.values.shape
        return int((arms - 1) * (seeds - 1))

    @property
    def variance(self) -> float:
        """Of the residuals."""
        return float((self.residuals**2).sum()) / self.dof

    def difference(self, name: str, arm: int, reference: int, region: Region | None) -> Estimate:
        """Mean of an arm minus that of another, with Student's t over seeds."""
        seeds = self.values.shape[1]
        value = float((self.values[arm] - self.values[reference]).mean())
        half = _quantile(self.dof) * np.sqrt(2 * self.variance / seeds)
        return _interval(name, value, half, seeds, region)


def own_seeds(name: str, values: Floats, region: Region | None) -> Estimate:
    """Mean of an arm by itself, with Student's t over its own seeds.

    Whatever moves all arms of a seed moves this arm, too, which pairs do not show: few seeds
    say little of it.
    """
    seeds = len(values)
    if seeds < MIN_SEEDS:
        return no_interval(name, values, region)
    half = _quantile(seeds - 1) * values.std(ddof=1) / np.sqrt(seeds)
    return _interval(name, float(values.mean()), half, seeds, region)


@cache
def _quantile(dof: int) -> float:
    return float(stats.t.ppf((1 + LEVEL) / 2, dof))


def _interval(name: str, value: float, half: float, seeds: int, region: Region | None) -> Estimate:
    return Estimate(name, value, float(value - half), float(value + half), seeds, SEEDS, region)


def no_interval(name: str, values: Floats, region: Region | None) -> Estimate:
    """The mean of what there is, with an interval that rules nothing out; NaN of nothing."""
    value = float(values.mean()) if len(values) else float("nan")
    return Estimate(name, value, -np.inf, np.inf, len(values), SEEDS, region)
