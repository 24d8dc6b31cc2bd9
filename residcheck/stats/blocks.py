"""Arms and seeds as a randomised block design: intervals over seeds.

All arms of a seed begin with the same weights and see the same batches, so that a seed is a
block. With an effect for each arm and one for each seed, what is left varies as much in all arms
(an assumption, which the residuals show the worth of), and is estimated from all of them
together: two seeds alone would leave an arm one degree of freedom.
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

    def mean(self, name: str, arm: int, region: Region | None) -> Estimate:
        """Mean of an arm, which other seeds move as a whole, too.

        It is the mean of all arms, whose variance is that between seeds (few of them), and the
        arm's distance from it, whose variance is that of the residuals. Each is given Student's
        t of its own and the squares are added (Banerjee 1960, "Approximate confidence interval
        for linear functions of means"), which never covers less than it says. Satterthwaite's
        degrees of freedom did: 90 % of 600 simulated pairs of seeds that differ a lot.
        """
        arms, seeds = self.values.shape
        between = float(self.values.mean(axis=0).var(ddof=1)) / seeds
        within = (1 - 1 / arms) * self.variance / seeds
        half = np.hypot(
            _quantile(seeds - 1) * np.sqrt(between), _quantile(self.dof) * np.sqrt(within)
        )
        return _interval(name, float(self.values[arm].mean()), half, seeds, region)


@cache
def _quantile(dof: int) -> float:
    return float(stats.t.ppf((1 + LEVEL) / 2, dof))


def _interval(name: str, value: float, half: float, seeds: int, region: Region | None) -> Estimate:
    return Estimate(name, value, float(value - half), float(value + half), seeds, SEEDS, region)


def no_interval(name: str, values: Floats, region: Region | None) -> Estimate:
    """The mean of what there is, with an interval that rules nothing out; NaN of nothing."""
    value = float(values.mean()) if len(values) else float("nan")
    return Estimate(name, value, -np.inf, np.inf, len(values), SEEDS, region)
