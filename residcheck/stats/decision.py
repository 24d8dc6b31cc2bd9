"""Estimates, and the one rule that turns an interval and a region into an outcome."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from math import inf, isfinite

LEVEL = 0.95
"""Level of every interval. An interval inside a region is two one-sided tests at 2.5 %."""


class Outcome(StrEnum):
    """The four answers."""

    SUPPORTED = "supported"
    REFUTED = "refuted"
    INCONCLUSIVE = "inconclusive"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True)
class Region:
    """Values for which a claim holds: ``low <= value <= high``, fixed beforehand."""

    low: float = -inf
    high: float = inf

    def __str__(self) -> str:
        if not isfinite(self.low):
            return f"at most {self.high:.4g}"
        if not isfinite(self.high):
            return f"at least {self.low:.4g}"
        return f"{self.low + 0.0:.4g} to {self.high:.4g}"


PROMPTS = "other prompts"
DRAWS = "other draws"
LAYERS = "other layers"
CHOICES = "resamples of the prompts"
"""Of an information criterion, which is no property of prompts that an interval could be
about: it grows with what is fitted. What is given is the range of the resamples."""
EVERY_TOKEN = "every token"
"""Population of exact statements: nothing is sampled, there is no interval."""


@dataclass(frozen=True)
class Estimate:
    """A number with its interval, what the interval is about, and where it should lie.

    Args:
        name: what is estimated.
        value, low, high: the estimate and its interval; equal where nothing varies.
        n: how many independent units (prompts, or tokens x layers for exact ones).
        population: what the interval speaks about: ``other prompts``, ``other layers``; or
            ``every token``, ``every matrix`` for statements without sampling.
        region: where the value lies if the claim holds; None where it is only reported.
    """

    name: str
    value: float
    low: float
    high: float
    n: int
    population: str
    region: Region | None = None

    @property
    def exact(self) -> bool:
        return self.population.startswith("every ")

    def __str__(self) -> str:
        if self.exact:
            return f"{self.name} = {self.value:.4g}"
        return f"{self.name} = {self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


@dataclass(frozen=True)
class Decision:
    """An outcome with its evidence; the first estimate is the effect size."""

    outcome: Outcome
    estimates: tuple[Estimate, ...]
    note: str = ""

    def with_note(self, note: str) -> Decision:
        """The same with ``note`` before what was noted already."""
        return replace(self, note="; ".join(filter(None, (note, self.note))))


def outcome_of(estimate: Estimate) -> Outcome:
    """Supported if the interval is inside the region, refuted if wholly outside."""
    region = estimate.region
    if region is None:
        raise ValueError(f"{estimate.name} has no region to be decided against")
    if not (isfinite(estimate.low) and isfinite(estimate.high)):
        return Outcome.INCONCLUSIVE
    if region.low <= estimate.low and estimate.high <= region.high:
        return Outcome.SUPPORTED
    if estimate.high < region.low or region.high < estimate.low:
        return Outcome.REFUTED
    return Outcome.INCONCLUSIVE


def decide(*estimates: Estimate, note: str = "") -> Decision:
    """A claim of several parts: supported if all are, refuted if any is."""
    outcomes = {outcome_of(e) for e in estimates if e.region is not None}
    for outcome in (Outcome.REFUTED, Outcome.INCONCLUSIVE):
        if outcome in outcomes:
            return Decision(outcome, estimates, note)
    return Decision(Outcome.SUPPORTED, estimates, note)


def exactly(
    name: str, value: float, n: int, region: Region | None, population: str = EVERY_TOKEN
) -> Estimate:
    """An exact statement about every one of ``n`` values; no sampling, no interval."""
    return Estimate(name, value, value, value, n, population, region)
