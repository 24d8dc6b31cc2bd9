"""Ranges of values that charts are drawn on: vertical axes, and colours in steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, log10

import numpy as np
import numpy.typing as npt
from matplotlib.ticker import MaxNLocator

from residcheck.curves import Floats
from residcheck.report.chart import Chart

_MARGIN = 0.06
"""Free space above and below the curves, as a share of the axis."""
_FLAT = 1e-3
"""A relative range below this is drawn as what it is: a constant."""
_STEPS = 20
"""At most so many colours in a map: more cannot be told apart."""
_FAR = 0.5
"""Values further out than this, in ranges of the middle 98 %, share the last colour."""
_BOUNDS = {"relative projection": (-1.0, 2.0)}
"""What colours span at most, if most values are within: 0 is all removed, 1 all kept."""


@dataclass(frozen=True)
class Limits:
    """Range of the vertical axis; ``constant`` is the value of curves that are flat."""

    low: float
    high: float
    constant: float | None = None


@dataclass(frozen=True)
class Scale:
    """Colours of a map, in even steps of the value or of its log.

    Args:
        first: the lower edge of the first step, as a number of steps above 0.
        steps: how many there are.
        step: the size of one, in decades if ``log``.
        below: whether values lie under the first step; they have its colour.
        above: the same of the last.
        ticks: values to be written beside the colours.
    """

    log: bool
    first: int
    steps: int
    step: float
    below: bool
    above: bool
    ticks: tuple[float, ...]

    def position(self, values: Floats | float) -> Floats:
        """How many steps above the lower edge of the first."""
        scaled = np.log10(values) if self.log else np.asarray(values)
        return np.asarray(scaled / self.step - self.first)

    def colours(self, values: Floats) -> npt.NDArray[np.intp]:
        """The step of each value; -1 where it is NaN."""
        # What is on an edge but for rounding belongs to the step above it.
        step = np.floor(np.nan_to_num(self.position(values)) + 1e-6)
        chosen = np.clip(step, 0, self.steps - 1).astype(np.intp)
        return np.where(np.isnan(values), -1, chosen)


def common_limits(charts: Sequence[Chart]) -> Limits:
    """One vertical axis for several charts of one kind, with room around the curves."""
    extents = [chart.extent for chart in charts if not chart.empty]
    low = min((low for low, _ in extents if isfinite(low)), default=1.0)
    high = max((high for _, high in extents if isfinite(high)), default=1.0)
    if any(chart.log for chart in charts):
        margin = max((high / low) ** _MARGIN, 1 + _MARGIN)
        return Limits(low / margin, high * margin)
    size = max(abs(low), abs(high))
    if high - low <= _FLAT * size:
        margin = _MARGIN * size or 1.0
        return Limits(low - margin, high + margin, constant=(low + high) / 2)
    margin = _MARGIN * (high - low)
    return Limits(low - margin, high + margin)


def common_scale(charts: Sequence[Chart]) -> Scale:
    """One scale of colours for several maps."""
    log = all(chart.log for chart in charts)
    parts = [np.ravel(chart.map.values) for chart in charts if chart.map is not None]
    values = np.concatenate([np.empty(0), *parts])
    values = values[np.isfinite(values) & ((values > 0) | (not log))]
    scaled = (np.log10(values) if log else values) if values.size else np.zeros(1)
    low, high = _core(scaled)
    bounds = [_BOUNDS[chart.unit] for chart in charts if chart.unit in _BOUNDS]
    if bounds and bounds[0][0] < np.median(scaled) < bounds[0][1]:
        low, high = max(low, bounds[0][0]), min(high, bounds[0][1])
    step = _step(low, high)
    # A value on an edge but for rounding needs no step of its own.
    first = floor(low / step + 1e-6)
    last = max(ceil(high / step - 1e-6), first + 1)
    below, above = scaled.min() < (first - 1e-6) * step, scaled.max() > (last + 1e-6) * step
    limits = Limits(first * step, last * step)
    if log:
        limits = Limits(10**limits.low * (1 - 1e-9), 10**limits.high * (1 + 1e-9))
    ticks = log_ticks(limits) if log else _with_zero_and_one(even_ticks(limits), limits)
    return Scale(log, first, last - first, step, bool(below), bool(above), tuple(ticks))


def _core(values: Floats) -> tuple[float, float]:
    """The range of the values, but for a few that are far from the others."""
    low, high = (float(p) for p in np.percentile(values, (1, 99)))
    far = _FAR * (high - low)
    return max(float(values.min()), low - far), min(float(values.max()), high + far)


def _step(low: float, high: float) -> float:
    """The smallest of 1, 2 or 5 times a power of ten that needs few enough steps."""
    least = max((high - low) / _STEPS, 1e-3 * max(abs(low), abs(high)), 1e-12)
    power = floor(log10(least))
    sizes = [m * 10.0**p for p in (power, power + 1) for m in (1, 2, 5)]
    return next(s for s in sizes if s >= least and ceil(high / s) - floor(low / s) <= _STEPS)


def _with_zero_and_one(ticks: list[float], limits: Limits) -> list[float]:
    """All and nothing are what shares are read by."""
    close = 0.04 * (limits.high - limits.low)
    marks = [mark for mark in (0.0, 1.0) if limits.low <= mark <= limits.high]
    if limits.high - limits.low < 0.5:
        marks = [mark for mark in marks if mark == 0.0]
    kept = [tick for tick in ticks if all(abs(tick - mark) > close for mark in marks)]
    return sorted({*kept, *marks})


def even_ticks(limits: Limits) -> list[float]:
    if limits.constant is not None:
        return [limits.constant]
    ticks = MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(limits.low, limits.high)
    # A step in binary leaves 1e-17 where 0 is meant.
    least = 1e-9 * (limits.high - limits.low)
    return [0.0 if abs(t) < least else float(t) for t in ticks if limits.low <= t <= limits.high]


def log_ticks(limits: Limits) -> list[float]:
    """Round numbers, fewer per decade the more decades there are."""
    decades = log10(limits.high / limits.low)
    multiples = (1, 2, 5) if decades <= 2 else (1, 3) if decades <= 3 else (1,)
    step = max(1, ceil(decades / 7))
    powers = range(floor(log10(limits.low)), ceil(log10(limits.high)) + 1)
    ticks = [m * 10.0**power for power in powers if power % step == 0 for m in multiples]
    inside = [tick for tick in ticks if limits.low <= tick <= limits.high]
    return inside if len(inside) > 1 else even_ticks(limits)
