"""A chart in words: its legend, and the text for those who do not see it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from residcheck.curves import Floats
from residcheck.report.outline import listed, number
from residcheck.report.series import BAND, Chart, Segment, Series, Spread
from residcheck.report.style import BOS, FITTED, LEVEL, LEVELS, MEDIAN, PUBLISHED, Stroke, stroke

_NOTABLE = 1.05
"""A peak or dip is mentioned where it exceeds both ends by this factor."""


@dataclass(frozen=True)
class Key:
    """An entry of the legend: a stroke, or a shaded area where ``stroke`` is None."""

    text: str
    detail: str = ""
    stroke: Stroke | None = None
    area: str = ""


def stroke_of(chart: Chart, series: Series) -> Stroke:
    """How a series is drawn: by its place among the curves; BOS always alike."""
    return BOS if series.bos else stroke(chart.series.index(series))


def legend(chart: Chart) -> list[Key]:
    """What each line and area of the plot is."""
    keys = [Key(s.name, s.reading, stroke_of(chart, s)) for s in chart.series]
    if any(series.low is not None for series in chart.series):
        keys.append(Key("band", f"{BAND[0]}th to {BAND[1]}th percentile of prompts", area="band"))
    if chart.spread is not None:
        shares = ", ".join(f"{level:.0%}" for level in reversed(LEVELS[1:]))
        keys.append(Key("median token", chart.spread.name, MEDIAN))
        keys.append(Key("tokens", f"from dark to pale: the densest {shares}, all", area="tokens"))
    for segment in chart.segments:
        published = segment.published
        detail = "a line through the middle of the window" if published else ""
        keys.append(Key(segment.label, detail, PUBLISHED if published else FITTED))
    if chart.level is not None:
        keys.append(Key(chart.level[1], number(chart.level[0]), LEVEL))
    if chart.phase is not None:
        phase = chart.phase
        keys.append(Key(f"layers {phase.first}-{phase.last}", phase.origin, area="phase"))
    return keys


def in_words(chart: Chart) -> str:
    """What is seen, in numbers."""
    return f"{'; '.join(_said(chart))}."


def _said(chart: Chart) -> Iterator[str]:
    for series in chart.series:
        yield _course(series.name, series.values, chart.axis)
    if chart.spread is not None:
        yield _distribution(chart.spread)
    for segment in chart.segments:
        yield _line(segment)
    if chart.level is not None:
        yield f"level: {chart.level[1]} = {number(chart.level[0])}"
    if chart.phase is not None:
        yield f"shaded: {chart.phase}"


def _course(name: str, values: Floats, axis: str) -> str:
    """From where to where a curve goes, and its extreme where that is neither end."""
    drawn = np.flatnonzero(np.isfinite(values))
    if not drawn.size:
        return f"{name} has no finite value"
    first, last = int(drawn[0]), int(drawn[-1])
    lowest, highest = float(values[drawn].min()), float(values[drawn].max())
    if lowest == highest:
        return f"{name} is {number(lowest)} from {axis} {first} to {axis} {last}"
    start, end = float(values[first]), float(values[last])
    verb = "rises" if end > start else "falls" if end < start else "goes"
    course = (
        f"{name} {verb} from {number(start)} at {axis} {first} to {number(end)} at {axis} {last}"
    )
    extremes: list[str] = []
    if lowest > 0 and highest > _NOTABLE * max(start, end):
        extremes.append(f"a maximum of {number(highest)} at {axis} {int(np.nanargmax(values))}")
    if lowest > 0 and lowest * _NOTABLE < min(start, end):
        extremes.append(f"a minimum of {number(lowest)} at {axis} {int(np.nanargmin(values))}")
    if lowest <= 0:
        extremes.append(f"values between {number(lowest)} and {number(highest)}")
    return f"{course}, with {listed(extremes)}" if extremes else course


def _line(segment: Segment) -> str:
    a, b = (number(float(segment.values[i])) for i in (0, -1))
    first, last = (int(segment.layers[i]) for i in (0, -1))
    return f"line {segment.label}: from {a} at layer {first} to {b} at layer {last}"


def _distribution(spread: Spread) -> str:
    low, high = (number(float(np.exp(spread.edges[i]))) for i in (0, -1))
    course = _course(f"the median token's {spread.name}", spread.median, "layer")
    return f"{course}, and all tokens of all layers lie between {low} and {high}"
