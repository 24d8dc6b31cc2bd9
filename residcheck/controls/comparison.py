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


@dataclass(frozen=True)
class Layout:
    """Arms that all have the same seeds, the baseline first; empty where there are none."""

    arms: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()

    @property
    def merit(self) -> tuple[int, int]:
        """Degrees of freedom of what is left, then seeds."""
        return (len(self.arms) - 1) * (len(self.seeds) - 1), len(self.seeds)


@dataclass(frozen=True, eq=False)
class Comparison:
    """All quantities of all runs, and the layouts over which seeds are compared.

    Args:
        runs: by arm and seed.
        values: of each run, by the names of :func:`residcheck.controls.rates.values`.
        layouts: by question: its arms and the baseline. Arms of another question are left out:
            how much seeds differ depends on what is done to the stream.
    """

    zoo: Zoo
    runs: Mapping[tuple[str, int], Control]
    values: Mapping[tuple[str, int], Mapping[str, float]]
    layouts: Mapping[str, Layout]

    @classmethod
    def of(cls, zoo: Zoo) -> Comparison:
        runs = {(run.arm.name, run.seed): run for run in zoo.runs}
        values = {key: rates.values(run) for key, run in runs.items()}
        asked: dict[str, set[str]] = {}
        for run in zoo.runs:
            if run.arm.name != BASELINE:
                asked.setdefault(run.arm.question, {BASELINE}).add(run.arm.name)
        layouts = {
            question: _layout([(arm, seed) for arm, seed in runs if arm in arms])
            for question, arms in asked.items()
        }
        return cls(zoo, runs, values, layouts)

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

    def layout(self, arm: str) -> Layout:
        """The one in which an arm is held against the baseline; an empty one if there is none."""
        own = (found for found in self.layouts.values() if arm in found.arms[1:])
        return next(own, Layout())

    def blocks(self, layout: Layout, quantity: str) -> Blocks | None:
        """A quantity over a layout; None over an empty one."""
        if not layout.arms:
            return None
        rows = [[self.values[a, s][quantity] for s in layout.seeds] for a in layout.arms]
        return Blocks(np.array(rows))

    def difference(self, arm: str, quantity: str, region: Region | None = None) -> Estimate:
        """An arm minus the baseline, with an interval over seeds where the layout has the arm."""
        name, layout = f"{quantity}, {arm} minus {BASELINE}", self.layout(arm)
        if blocks := self.blocks(layout, quantity):
            return blocks.difference(name, layout.arms.index(arm), 0, region)
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
        return "" if count >= MIN_SEEDS else f"no interval over seeds: {arm} has one"

    def why_no_difference(self, arm: str) -> str:
        """Why an arm has none against the baseline; empty if it has one."""
        if not self.seeds_of(arm):
            return f"no finished run of {arm}"
        if self.layout(arm).arms:
            return ""
        return (
            f"no interval over seeds: it takes {MIN_SEEDS} seeds that {arm}, the baseline and "
            "another arm of its question have in common"
        )


def _layout(runs: list[tuple[str, int]]) -> Layout:
    """The complete layout of these arms and seeds with the most degrees of freedom.

    Candidates are the seeds that single arms share with the baseline; of layouts alike in
    this, the one with the most seeds is taken.
    """
    seeds: dict[str, set[int]] = {}
    for arm, seed in runs:
        seeds.setdefault(arm, set()).add(seed)
    baseline = seeds.get(BASELINE, set())
    found = [Layout()]
    for own in seeds.values():
        common = own & baseline
        arms = tuple(arm for arm, has in seeds.items() if common <= has)
        if len(common) >= MIN_SEEDS and len(arms) >= MIN_ARMS:
            found.append(Layout(arms, tuple(sorted(common))))
    return max(found, key=lambda layout: layout.merit)
