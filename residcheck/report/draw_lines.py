"""Lines with their bands and strands, and histograms, against layers or another axis."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from residcheck.curves import Floats
from residcheck.report import style
from residcheck.report.axis import Axis
from residcheck.report.chart import Chart, Series, Spread
from residcheck.report.describe import stroke_of, stroke_of_segment
from residcheck.report.outline import number
from residcheck.report.scales import Limits, even_ticks, log_ticks
from residcheck.report.style import Stroke
from residcheck.report.svg import colour

_LEFT, _BOTTOM, _ACROSS, _UP = 0.135, 0.175, 0.85, 0.7
"""Where the axes are in the plot, as shares of its width and height."""
_WORD = 34
"""Room that a word among the ticks takes, in the plot's units."""
_COLUMN = 0.86
"""Width of a layer's column in a histogram; the gaps keep the layers apart."""


def draw_lines(figure: Figure, chart: Chart, limits: Limits) -> None:
    """The chart of lines, or the histogram, on an empty ``figure``."""
    axes = figure.add_axes((_LEFT, _BOTTOM, _ACROSS, _UP))
    _set_axes(axes, chart, limits)
    _draw_areas(axes, chart)
    if chart.spread is not None:
        _draw_spread(axes, chart.spread)
    for series in chart.series:
        _draw_strands(axes, series)
    for series in chart.series:
        _draw_series(axes, series, stroke_of(chart, series))
    _draw_references(axes, chart)


def _set_axes(axes: Axes, chart: Chart, limits: Limits) -> None:
    if chart.log:
        axes.set_yscale("log")
    size = max(chart.axis.size, 1)
    axes.set_xlim(-0.6, size - 0.4)
    axes.set_ylim(limits.low, limits.high)
    axes.set_title(chart.unit + (", log scale" if chart.log else ""), loc="left", pad=9)
    axes.set_xlabel(chart.axis.label, labelpad=3)
    ticks = log_ticks(limits) if chart.log else even_ticks(limits)
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    _set_ticks(axes, chart.axis, _WORD * size / (style.WIDTH * _ACROSS))


def _set_ticks(axes: Axes, axis: Axis, room: float) -> None:
    ticks = axis.ticks(room)
    axes.set_xticks([at for at, _ in ticks], [text for _, text in ticks])


def _draw_areas(axes: Axes, chart: Chart) -> None:
    """The phase of the layers, or the horizons that say little."""
    if chart.phase is not None:
        _shade(axes, chart.phase.first, chart.phase.last)
    if chart.beyond is not None:
        _shade(axes, chart.beyond, chart.axis.size - 1)


def _shade(axes: Axes, first: int, last: int) -> None:
    axes.axvspan(first - 0.5, last + 0.5, zorder=0, **_fill("shade", style.PHASE_OPACITY))


def _draw_strands(axes: Axes, series: Series) -> None:
    """All heads as one path, which a gap breaks between one head and the next."""
    if series.strands is None:
        return
    heads, size = series.strands.shape
    gap = np.full((heads, 1), np.nan)
    values = np.concatenate([series.strands, gap], axis=1).ravel()
    layers = np.tile(np.arange(size + 1, dtype=np.float64), heads)
    _plot(axes, layers, values, style.STRAND)
    _dots(axes, layers, values, style.STRAND, size=2)


def _draw_series(axes: Axes, series: Series, stroke: Stroke) -> None:
    layers = np.arange(len(series.values), dtype=np.float64)
    if series.low is not None and series.high is not None:
        _draw_band(axes, series.low, series.high, stroke)
    _plot(axes, layers, series.values, stroke)
    _dots(axes, layers, series.values, stroke, size=4)


def _dots(axes: Axes, layers: Floats, values: Floats, stroke: Stroke, size: float) -> None:
    """Points without a neighbour: a line of one point is not seen."""
    lonely = _lonely(values)
    if lonely.any():
        axes.plot(layers[lonely], values[lonely], "o", ms=size, color=colour(stroke.role))


def _lonely(values: Floats) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Where a finite value has no finite neighbour."""
    finite = np.concatenate([[False], np.isfinite(values), [False]])
    return np.asarray(finite[1:-1] & ~finite[:-2] & ~finite[2:])


def _draw_band(axes: Axes, low: Floats, high: Floats, stroke: Stroke) -> None:
    """One polygon per run of finite layers."""
    finite = np.flatnonzero(np.isfinite(low) & np.isfinite(high))
    fill = _fill(stroke.role, style.BAND_OPACITY)
    for run in np.split(finite, np.flatnonzero(np.diff(finite) > 1) + 1):
        if run.size > 1:
            layers = np.concatenate([run, run[::-1]])
            values = np.concatenate([low[run], high[run][::-1]])
            axes.add_patch(PathPatch(Path(np.column_stack([layers, values])), zorder=1, **fill))


def _draw_references(axes: Axes, chart: Chart) -> None:
    for segment in chart.segments:
        kind = stroke_of_segment(chart, segment)
        _plot(axes, segment.entries, segment.values, kind)
        _dots(axes, segment.entries, segment.values, kind, size=5)
    for entry in chart.window[:2] if chart.window is not None else ():
        _plot(axes, np.full(2, float(entry)), np.array(axes.get_ylim()), style.WINDOW)
    if chart.level is not None:
        ends = np.array([-0.5, chart.axis.size - 0.5])
        _plot(axes, ends, np.full(2, chart.level[0]), style.LEVEL)


def _draw_spread(axes: Axes, spread: Spread) -> None:
    """Nested areas, each over the one before, so that dense parts come out dark."""
    for level in style.LEVELS:
        path = _cells(spread, spread.denser < level)
        axes.add_patch(PathPatch(path, zorder=1, **_fill("s0", style.LEVEL_OPACITY)))
    layers = np.arange(len(spread.median), dtype=np.float64)
    _plot(axes, layers, spread.median, style.MEDIAN)


def _cells(spread: Spread, chosen: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Path:
    """The chosen bins as one path: a rectangle for each unbroken run of them in a layer."""
    edges = np.exp(spread.edges)
    rectangles = []
    for layer, row in enumerate(chosen):
        steps = np.diff(np.concatenate([[0], row.astype(int), [0]]))
        left, right = layer - _COLUMN / 2, layer + _COLUMN / 2
        for first, last in zip(np.flatnonzero(steps > 0), np.flatnonzero(steps < 0), strict=True):
            low, high = edges[first], edges[last]
            corners = [(left, low), (left, high), (right, high), (right, low), (left, low)]
            rectangles.append(Path(corners, closed=True))
    return Path.make_compound_path(*rectangles)


def _fill(role: str, opacity: float) -> dict[str, Any]:
    return {"color": colour(role), "alpha": opacity, "linewidth": 0}


def _plot(axes: Axes, x: Floats, y: Floats, stroke: Stroke) -> None:
    # matplotlib measures dashes in line widths, the legend's swatches in units.
    pattern = tuple(length / stroke.width for length in stroke.dashes)
    linestyle = (0, pattern) if pattern else "solid"
    axes.plot(x, y, color=colour(stroke.role), linewidth=stroke.width, linestyle=linestyle)
