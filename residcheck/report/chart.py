"""What a plot shows, in numbers: charts of lines, histograms and maps.

What is drawn is separate from how, so that the text alternative of a plot speaks of the
very numbers in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from residcheck.curves import Floats
from residcheck.report.axis import Axis
from residcheck.stats import Phase


@dataclass(frozen=True)
class Series:
    """A line along the horizontal axis, with a band around it or strands behind it.

    All arrays end with the horizontal axis; what cannot be drawn is NaN.

    Args:
        reading: what was averaged.
        over: what the band's percentiles are taken over.
        strands: one thin line a head, of which ``values`` is the mean: head x layer.
        strand_reading: what each strand is.
    """

    name: str
    reading: str
    values: Floats
    low: Floats | None = None
    high: Floats | None = None
    over: str = ""
    strands: Floats | None = None
    strand_reading: str = ""
    bos: bool = False


@dataclass(frozen=True)
class Segment:
    """A fitted or published line: its values at the entries of the axis that it runs over."""

    label: str
    entries: Floats
    values: Floats
    published: bool
    detail: str = ""


@dataclass(frozen=True)
class Spread:
    """How the tokens of each layer are distributed.

    Args:
        edges: of the bins, in logs of the values: bin + 1.
        denser: layer x bin: the share of the layer's tokens in bins that hold more than
            this one; NaN for an empty bin.
        median: layer.
    """

    name: str
    edges: Floats
    denser: Floats
    median: Floats


@dataclass(frozen=True)
class Map:
    """Values of a curve over its last two axes; NaN for a cell that stays empty.

    ``up`` is the vertical axis, the first of ``values``; it counts from below. ``lost``:
    whether values are left out, those that are not above 0 on a logarithmic scale.
    """

    name: str
    reading: str
    meaning: str
    values: Floats
    up: Axis
    lost: bool = False


@dataclass(frozen=True)
class Chart:
    """All that one plot shows.

    Args:
        log: said of the vertical axis, or of a map's colours.
        window: the first and the last entry between marked ends, and their label.
        beyond: the first of the horizons above half the depth, which say little.
    """

    log: bool
    unit: str
    axis: Axis
    series: tuple[Series, ...] = ()
    segments: tuple[Segment, ...] = ()
    spread: Spread | None = None
    map: Map | None = None
    phase: Phase | None = None
    level: tuple[float, str] | None = None
    window: tuple[int, int, str] | None = None
    beyond: int | None = None

    @property
    def empty(self) -> bool:
        """Whether there is no finite value of any curve to draw."""
        drawn = [series.values for series in self.series]
        drawn += [series.strands for series in self.series if series.strands is not None]
        if self.spread is not None:
            drawn.append(self.spread.median)
        if self.map is not None:
            drawn.append(self.map.values)
        return not any(np.isfinite(values).any() for values in drawn)

    @property
    def extent(self) -> tuple[float, float]:
        """Smallest and largest value on the vertical axis; NaN if there is none."""
        parts = [np.ravel(part) for part in self._drawn()]
        values = np.concatenate(parts) if parts else np.empty(0)
        values = values[np.isfinite(values) & ((values > 0) | (not self.log))]
        return (float(values.min()), float(values.max())) if values.size else (np.nan, np.nan)

    def _drawn(self) -> Iterator[Floats]:
        for series in self.series:
            parts = (series.values, series.low, series.high, series.strands)
            yield from (part for part in parts if part is not None)
        yield from (segment.values for segment in self.segments)
        if self.level is not None:
            yield np.array([self.level[0]])
        if self.spread is not None:
            yield np.exp(self.spread.edges)
