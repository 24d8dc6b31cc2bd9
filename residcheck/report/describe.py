"""A chart in words: its legend, and the text for those who do not see it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from residcheck.curves import Floats
from residcheck.report.axis import Axis
from residcheck.report.chart import Chart, Map, Segment, Series, Spread
from residcheck.report.outline import count, listed, number
from residcheck.report.reduce import BAND
from residcheck.report.style import (
    BOS,
    FITTED,
    LEVEL,
    LEVELS,
    MEDIAN,
    PUBLISHED,
    STRAND,
    WINDOW,
    Stroke,
    stroke,
)

_NOTABLE = 1.05
"""A peak or dip is mentioned where it exceeds both ends by this factor."""
_BEYOND = "above half the depth: few layers are touched"


@dataclass(frozen=True)
class Key:
    """An entry of the legend: a stroke, an ``area`` or point, or only what the text says."""

    text: str
    detail: str = ""
    stroke: Stroke | None = None
    area: str = ""


def stroke_of(chart: Chart, series: Series) -> Stroke:
    """How a series is drawn: by its place among the curves; BOS always alike."""
    return BOS if series.bos else stroke(chart.series.index(series))


def stroke_of_segment(chart: Chart, segment: Segment) -> Stroke:
    """A fitted line by its place among the fitted ones; published lines all alike."""
    if segment.published:
        return PUBLISHED
    fitted = [other for other in chart.segments if not other.published]
    return FITTED[next(i for i, other in enumerate(fitted) if other is segment) % len(FITTED)]


def legend(chart: Chart) -> list[Key]:
    """What each line and area of the plot is; of a map, one line of what it shows."""
    if chart.map is not None:
        return [Key(chart.map.name, _caption(chart.map, chart.axis))]
    return [*_keys_of_series(chart), *_keys_of_references(chart)]


def _keys_of_series(chart: Chart) -> Iterator[Key]:
    for series in chart.series:
        yield Key(series.name, series.reading, stroke_of(chart, series))
    for series in chart.series:
        if series.strands is not None:
            yield Key(f"grey: each head of {series.name}", series.strand_reading, STRAND)
    over = dict.fromkeys(series.over for series in chart.series if series.low is not None)
    if over:
        yield Key("band", f"{BAND[0]}th to {BAND[1]}th percentile of {listed(over)}", area="band")


def _keys_of_references(chart: Chart) -> Iterator[Key]:
    if chart.spread is not None:
        shares = ", ".join(f"{level:.0%}" for level in reversed(LEVELS[1:]))
        yield Key("median token", chart.spread.name, MEDIAN)
        yield Key("tokens", f"from dark to pale: the densest {shares}, all", area="tokens")
    for segment in chart.segments:
        if np.isfinite(segment.values).sum() == 1:
            yield Key(segment.label, segment.detail, area="point")
        else:
            yield Key(segment.label, segment.detail, stroke_of_segment(chart, segment))
    if chart.level is not None:
        yield Key(chart.level[1], number(chart.level[0]), LEVEL)
    if chart.window is not None:
        yield Key(chart.window[2], _between(chart, *chart.window[:2]), WINDOW)
    if chart.phase is not None:
        phase = chart.phase
        yield Key(f"layers {phase.first}-{phase.last}", phase.origin, area="phase")
    if chart.beyond is not None:
        yield Key(_BEYOND, area="phase")


def _between(chart: Chart, first: int, last: int) -> str:
    """Two ends of a part of the axis: ``horizons 10-25``."""
    return f"{chart.axis.name}s {first + chart.axis.first}-{last + chart.axis.first}"


def _caption(map: Map, across: Axis) -> str:
    """What a cell is, of what it is the mean, and how rows and columns are paired."""
    values = map.values[np.isfinite(map.values)]
    ends = [number(float(end)) for end in (values.min(), values.max())] if values.size else []
    extent = f"from {' to '.join(ends)}" if ends else ""
    said = [", ".join(part for part in (map.meaning, map.reading, extent) if part)]
    if map.up.pair:
        said.append(f"{map.up.pair[0]} of a layer is below its {map.up.pair[1]}")
    if across.pair:
        said.append(f"its {across.pair[0]} left of its {across.pair[1]}")
    if values.size < map.values.size:
        said.append(f"empty: no value{' above 0' if map.lost else ''}")
    return "; ".join(said)


def in_words(chart: Chart) -> str:
    """What is seen, in numbers."""
    return f"{'; '.join(_said(chart))}."


def _said(chart: Chart) -> Iterator[str]:
    if chart.map is not None:
        yield from _colours(chart.map, chart.axis)
    for series in chart.series:
        yield _course(series.name, series.values, chart.axis)
        if series.strands is not None:
            yield from _heads(series, series.strands, chart.axis)
    if chart.spread is not None:
        yield _distribution(chart.spread, chart.axis)
    for segment in chart.segments:
        yield _line(segment, chart.axis)
    if chart.level is not None:
        yield f"level: {chart.level[1]} = {number(chart.level[0])}"
    if chart.window is not None:
        yield f"marked: {chart.window[2]}, {_between(chart, *chart.window[:2])}"
    if chart.phase is not None:
        yield f"shaded: {chart.phase}"
    if chart.beyond is not None:
        yield f"shaded: {_between(chart, chart.beyond, chart.axis.size - 1)}, {_BEYOND}"


def _course(name: str, values: Floats, axis: Axis) -> str:
    """From where to where a curve goes, and its extreme where that is neither end."""
    drawn = np.flatnonzero(np.isfinite(values))
    if not drawn.size:
        return f"{name} has no finite value"
    first, last = axis.place(int(drawn[0])), axis.place(int(drawn[-1]))
    lowest, highest = float(values[drawn].min()), float(values[drawn].max())
    if lowest == highest:
        return f"{name} is {number(lowest)} from {first} to {last}"
    start, end = float(values[drawn[0]]), float(values[drawn[-1]])
    verb = "rises" if end > start else "falls"
    if number(start) == number(end):
        verb = "goes"
    course = f"{name} {verb} from {number(start)} at {first} to {number(end)} at {last}"
    extremes: list[str] = []
    if lowest > 0 and highest > _NOTABLE * max(start, end):
        where = axis.place(int(np.nanargmax(values)))
        extremes.append(f"a maximum of {number(highest)} at {where}")
    if lowest > 0 and lowest * _NOTABLE < min(start, end):
        where = axis.place(int(np.nanargmin(values)))
        extremes.append(f"a minimum of {number(lowest)} at {where}")
    if lowest <= 0:
        extremes.append(f"values between {number(lowest)} and {number(highest)}")
    return f"{course}, with {listed(extremes)}" if extremes else course


def _heads(series: Series, strands: Floats, axis: Axis) -> Iterator[str]:
    """How many lines there are, and the extremes of all."""
    heads = Axis("head", len(strands))
    if np.isfinite(strands).any():
        low, high = _extremes(strands, heads, axis)
        yield f"the {count(len(strands), 'head')} of {series.name} lie between {low} and {high}"


def _colours(map: Map, across: Axis) -> Iterator[str]:
    values = map.values
    size = f"{count(len(values), map.up.name)} by {count(values.shape[1], across.name)}"
    yield f"map of {map.name} over {size}"
    if np.isfinite(values).any():
        low, high = _extremes(values, map.up, across)
        yield f"the smallest value is {low}, the largest {high}"
        yield f"the median of all cells is {number(float(np.nanmedian(values)))}"
    empty = int(np.isnan(values).sum())
    if empty:
        yield f"{empty:,} of {count(values.size, 'cell')} {'is' if empty == 1 else 'are'} empty"


def _extremes(values: Floats, up: Axis, across: Axis) -> tuple[str, str]:
    """The smallest and the largest value, each with its place."""
    low, high = (
        np.unravel_index(find(values), values.shape) for find in (np.nanargmin, np.nanargmax)
    )
    said = [
        f"{number(float(values[at]))} ({up.place(int(at[0]))}, {across.place(int(at[1]))})"
        for at in (low, high)
    ]
    return said[0], said[1]


def _line(segment: Segment, axis: Axis) -> str:
    """From where to where; of a single point, where it is."""
    drawn = np.flatnonzero(np.isfinite(segment.values))
    if not drawn.size:
        return f"line {segment.label}: no finite value"
    ends = [
        f"{number(float(segment.values[i]))} at {axis.place(int(segment.entries[i]))}"
        for i in (drawn[0], drawn[-1])
    ]
    if drawn.size == 1:
        return f"point {segment.label}: {ends[0]}"
    return f"line {segment.label}: from {' to '.join(ends)}"


def _distribution(spread: Spread, axis: Axis) -> str:
    low, high = (number(float(np.exp(spread.edges[i]))) for i in (0, -1))
    course = _course(f"the median token's {spread.name}", spread.median, axis)
    return f"{course}, and all tokens of all {axis.name}s lie between {low} and {high}"
