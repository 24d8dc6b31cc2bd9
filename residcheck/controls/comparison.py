"""Arms against the baseline of the same seed, with intervals over seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from residcheck.controls import rates
from residcheck.controls.reading import BASELINE, Control, Zoo
from residcheck.stats import Estimate, Region
from residcheck.stats.blocks import MIN_ARMS, MIN_SEEDS, Blocks, no_interval, own_seeds
from residcheck.stats.fits import Floats


@dataclass(frozen=True, eq=False)
class Comparison:
    """All quantities of all runs, and the layout over which seeds are compared.

    Args:
        runs: by arm and seed.
        values: of each run, by the names of :func:`residcheck.controls.rates.values`.
        arms: of the layout, the baseline first; all of them have all of ``seeds``.
        seeds: of the layout; empty where there is none.
    """

    zoo: Zoo
    runs: Mapping[tuple[str, int], Control]
    values: Mapping[tuple[str, int], Mapping[str, float]]
    arms: tuple[str, ...]
    seeds: tuple[int, ...]

    @classmethod
    def of(cls, zoo: Zoo) -> Comparison:
        runs = {(run.arm.name, run.seed): run for run in zoo.runs}
        values = {key: rates.values(run) for key, run in runs.items()}
        return cls(zoo, runs, values, *_layout(list(runs)))

    @property
    def all_arms(self) -> list[str]:
        """Every arm with a run, the baseline first."""
        return list(dict.fromkeys(arm for arm, _ in self.runs))

    def seeds_of(self, arm: str) -> list[int]:
        return [seed for name, seed in self.runs if name == arm]

    def paired(self, arm: str) -> list[int]:
        """Seeds that both the arm and the baseline have."""
        return [seed for seed in self.seeds_of(arm) if (BASELINE, seed) in self.runs]

    def of_arm(self, arm: str, quantity: str) -> Floats:
        """Values of an arm, ``[seed]``."""
        return np.array([self.values[arm, seed][quantity] for seed in self.seeds_of(arm)])

    def blocks(self, quantity: str) -> Blocks | None:
        """The layout of a quantity; None where there is none."""
        if not self.seeds:
            return None
        rows = [[self.values[arm, s][quantity] for s in self.seeds] for arm in self.arms]
        return Blocks(np.array(rows))

    def difference(self, arm: str, quantity: str, region: Region | None = None) -> Estimate:
        """An arm minus the baseline, with an interval over seeds where the layout has the arm."""
        name, blocks = f"{quantity}, {arm} minus {BASELINE}", self.blocks(quantity)
        if blocks is not None and arm in self.arms:
            return blocks.difference(name, self.arms.index(arm), 0, region)
        pairs = [
            self.values[arm, seed][quantity] - self.values[BASELINE, seed][quantity]
            for seed in self.paired(arm)
        ]
        return no_interval(name, np.array(pairs), region)

    def mean(self, arm: str, quantity: str, region: Region | None = None) -> Estimate:
        """An arm by itself, with an interval over its own seeds, where it has two."""
        return own_seeds(f"{quantity} of {arm}", self.of_arm(arm, quantity), region)

    def why_no_mean(self, arm: str) -> str:
        """Why an arm by itself has no interval over seeds; empty if it has one."""
        count = len(self.seeds_of(arm))
        if not count:
            return f"no finished run of {arm}"
        return "" if count >= MIN_SEEDS else f"no interval over seeds: {arm} has {count}"

    def why_no_difference(self, *arms: str) -> str:
        """Why some of ``arms`` have none against the baseline; empty if all have one."""
        missing = [arm for arm in arms if not self.seeds_of(arm)]
        if missing:
            return f"no finished run of {', '.join(missing)}"
        if not self.seeds:
            return (
                f"no interval over seeds: it takes {MIN_SEEDS} seeds that the baseline and "
                f"{MIN_ARMS - 1} other arms have in common"
            )
        outside = [arm for arm in arms if arm not in self.arms]
        if outside:
            seeds = ", ".join(map(str, self.seeds))
            return f"no interval over seeds: {', '.join(outside)} lacks some of the seeds {seeds}"
        return ""


def _layout(runs: list[tuple[str, int]]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The arms and seeds of all complete layouts with the most degrees of freedom.

    Candidates are the seeds that single arms share with the baseline; of layouts alike in
    this, the one with the most seeds is taken.
    """
    seeds: dict[str, set[int]] = {}
    for arm, seed in runs:
        seeds.setdefault(arm, set()).add(seed)
    baseline = seeds.get(BASELINE, set())
    best: tuple[tuple[int, int], tuple[str, ...], tuple[int, ...]] = ((0, 0), (), ())
    for own in seeds.values():
        common = own & baseline
        arms = tuple(arm for arm, has in seeds.items() if common <= has)
        if len(common) >= MIN_SEEDS and len(arms) >= MIN_ARMS:
            merit = ((len(arms) - 1) * (len(common) - 1), len(common))
            best = max(best, (merit, arms, tuple(sorted(common))), key=lambda found: found[0])
    return best[1], best[2]
