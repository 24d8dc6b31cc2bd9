"""Models as points: the growth rate against the depth, the horizon against the rate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from residcheck.report.describe import Key
from residcheck.report.outline import Outline, count
from residcheck.stats import Estimate

_GROWTH, _RATE = "growth-exponential", "rate per layer"
"""The claim that says how fast a model's stream grows, and what it calls that."""


@dataclass(frozen=True)
class Value:
    """A coordinate with its interval; exact where both ends are the value."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, estimate: Estimate) -> Value:
        return cls(estimate.value, estimate.low, estimate.high)

    @classmethod
    def exact(cls, value: float) -> Value:
        return cls(value, value, value)

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.value:.4g}"
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


@dataclass(frozen=True)
class Point:
    """A model; ``number`` stands beside its point."""

    number: int
    model: str
    across: Value
    up: Value


@dataclass(frozen=True)
class Scatter:
    """Models by two quantities, and what the axes are called."""

    across: str
    up: str
    points: tuple[Point, ...]

    @property
    def in_words(self) -> str:
        """For those who do not see the plot."""
        said = (f"{p.number} {p.model}: {p.up} at {p.across}" for p in self.points)
        return (
            f"{self.up} against {self.across} of {count(len(self.points), 'model')}: "
            f"{'; '.join(said)}."
        )


def keys(scatter: Scatter) -> Iterator[Key]:
    """The legend: which number is which model."""
    for point in scatter.points:
        yield Key(f"{point.number} {point.model}", f"{point.up} at {point.across}")


def across_models(page: Outline) -> list[Scatter]:
    """The plots for which there are two models at least, a model's number the same in all."""
    numbers = {label: n for n, (label, _) in enumerate(page.models, 1)}
    scatters = [
        Scatter("layers", "growth rate per layer", _by_depth(page, numbers)),
        Scatter("growth rate per layer", "effective horizon, in layers", _by_rate(page, numbers)),
    ]
    return [scatter for scatter in scatters if len(scatter.points) > 1]


def _by_depth(page: Outline, numbers: dict[str, int]) -> tuple[Point, ...]:
    found = []
    for answer in page.answers:
        verdict = answer.judged.verdict
        rate = next((e for e in verdict.estimates if e.name == _RATE), None)
        if verdict.claim == _GROWTH and rate is not None:
            depth = Value.exact(float(answer.run.n_layers))
            found.append(Point(numbers[answer.model], answer.model, depth, Value.of(rate)))
    return _finite(found)


def _by_rate(page: Outline, numbers: dict[str, int]) -> tuple[Point, ...]:
    if page.horizons is None:
        return ()
    return _finite(
        Point(numbers[m.model], m.model, Value.of(m.rate), Value.of(m.horizon))
        for m in page.horizons.models
        if m.run.horizon is None or m.run.horizon.unit == "layers"
    )


def _finite(points: Iterable[Point]) -> tuple[Point, ...]:
    """Without those that have no place."""
    return tuple(p for p in points if abs(p.across.value) + abs(p.up.value) < float("inf"))
