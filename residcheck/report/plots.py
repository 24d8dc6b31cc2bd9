"""Charts drawn with matplotlib, each as an inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, log10
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from residcheck.curves import Floats
from residcheck.report import style
from residcheck.report.describe import in_words, stroke_of
from residcheck.report.outline import number
from residcheck.report.series import Chart, Series, Spread
from residcheck.report.style import Stroke
from residcheck.report.svg import colour, inline_svg

_MARGIN = 0.06
"""Free space above and below the curves, as a share of the axis."""
_FLAT = 1e-3
"""A relative range below this is drawn as what it is: a constant."""
_COLUMN = 0.86
"""Width of a layer's column in a histogram; the gaps keep the layers apart."""


@dataclass(frozen=True)
class Limits:
    """Range of the vertical axis; ``constant`` is the value of curves that are flat."""

    low: float
    high: float
    constant: float | None = None


def draw(chart: Chart, key: str, limits: Limits) -> str:
    """The chart as SVG text; ``key`` must be unique on its page."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user's matplotlibrc says
        matplotlib.rcParams |= _settings(key)
        figure = Figure(figsize=(style.WIDTH / 72, style.HEIGHT / 72))
        axes = figure.add_axes((0.135, 0.175, 0.85, 0.7))
        _set_axes(axes, chart, limits)
        _draw_phase(axes, chart)
        if chart.spread is not None:
            _draw_spread(axes, chart.spread)
        for series in chart.series:
            _draw_series(axes, series, stroke_of(chart, series))
        _draw_references(axes, chart)
        return inline_svg(figure, key, in_words(chart))


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


def _settings(key: str) -> dict[Any, Any]:
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": key,
        "text.parse_math": False,
        "font.size": style.FONT_SIZE,
        "text.color": colour("muted"),
        "axes.titlesize": style.FONT_SIZE,
        "axes.titlecolor": colour("muted"),
        "axes.labelcolor": colour("muted"),
        "axes.edgecolor": colour("muted"),
        "xtick.labelcolor": colour("muted"),
        "ytick.labelcolor": colour("muted"),
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "xtick.major.pad": 5,
        "ytick.major.pad": 5,
        "grid.color": colour("rule"),
        "grid.linewidth": 0.8,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "axes.spines.left": False,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.frameon": False,
        "axes.facecolor": "none",
    }


def _set_axes(axes: Axes, chart: Chart, limits: Limits) -> None:
    if chart.log:
        axes.set_yscale("log")
    axes.set_xlim(-0.6, max(chart.size, 1) - 0.4)
    axes.set_ylim(limits.low, limits.high)
    axes.set_title(chart.unit + (", log scale" if chart.log else ""), loc="left", pad=9)
    axes.set_xlabel(chart.axis, labelpad=3)
    ticks = _log_ticks(limits) if chart.log else _even_ticks(limits)
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.xaxis.set_major_locator(FixedLocator(_whole_ticks(chart.size - 1)))
    axes.xaxis.set_major_formatter("{x:.0f}")


def _whole_ticks(last: int) -> list[float]:
    ticks = MaxNLocator(7, integer=True, steps=[1, 2, 5, 10]).tick_values(0, last)
    return [float(tick) for tick in ticks if 0 <= tick <= last and tick == round(tick)]


def _even_ticks(limits: Limits) -> list[float]:
    if limits.constant is not None:
        return [limits.constant]
    ticks = MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(limits.low, limits.high)
    # A step in binary leaves 1e-17 where 0 is meant.
    least = 1e-9 * (limits.high - limits.low)
    return [0.0 if abs(t) < least else float(t) for t in ticks if limits.low <= t <= limits.high]


def _log_ticks(limits: Limits) -> list[float]:
    """Round numbers, fewer per decade the more decades there are."""
    decades = log10(limits.high / limits.low)
    multiples = (1, 2, 5) if decades <= 2 else (1, 3) if decades <= 3 else (1,)
    step = max(1, ceil(decades / 7))
    powers = range(floor(log10(limits.low)), ceil(log10(limits.high)) + 1)
    ticks = [m * 10.0**power for power in powers if power % step == 0 for m in multiples]
    inside = [tick for tick in ticks if limits.low <= tick <= limits.high]
    return inside if len(inside) > 1 else _even_ticks(limits)


def _draw_phase(axes: Axes, chart: Chart) -> None:
    if chart.phase is not None:
        first, last = chart.phase.first - 0.5, chart.phase.last + 0.5
        axes.axvspan(first, last, zorder=0, **_fill("shade", style.PHASE_OPACITY))


def _draw_series(axes: Axes, series: Series, stroke: Stroke) -> None:
    layers = np.arange(len(series.values), dtype=np.float64)
    if series.low is not None and series.high is not None:
        _draw_band(axes, series.low, series.high, stroke)
    _plot(axes, layers, series.values, stroke)
    lonely = _lonely(series.values)
    if lonely.any():  # a line of one point is not seen
        axes.plot(layers[lonely], series.values[lonely], "o", ms=4, color=colour(stroke.role))


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
        kind = style.PUBLISHED if segment.published else style.FITTED
        _plot(axes, segment.layers, segment.values, kind)
    if chart.level is not None:
        ends = np.array([-0.5, chart.size - 0.5])
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
