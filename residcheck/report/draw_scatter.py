"""Models as numbered points with their intervals."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from residcheck.report import style
from residcheck.report.outline import number
from residcheck.report.scales import Limits, even_ticks
from residcheck.report.scatter import Point, Scatter, Value
from residcheck.report.svg import colour

_BOX = (0.135, 0.125, 0.83, 0.79)
"""Left, bottom, width and height of the axes, as shares of the plot."""
_MARGIN = 0.08
"""Free space around the points, as a share of an axis."""
_LEAST = 0.02
"""Half of an axis whose points are all alike, as a share of their value."""


def draw_scatter(figure: Figure, scatter: Scatter) -> None:
    """The points on an empty ``figure``."""
    axes = figure.add_axes(_BOX)
    xs = [point.across for point in scatter.points]
    ys = [point.up for point in scatter.points]
    across, up = _limits(xs), _limits(ys)
    axes.set_xlim(across.low, across.high)
    axes.set_ylim(up.low, up.high)
    axes.set_title(scatter.up, loc="left", pad=9)
    axes.set_xlabel(scatter.across, labelpad=3)
    for axis, limits, values in ((axes.xaxis, across, xs), (axes.yaxis, up, ys)):
        ticks = [t for t in even_ticks(limits) if t.is_integer() or not _counts(values)]
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    for point in scatter.points:
        _draw(axes, point)


def _limits(values: Sequence[Value]) -> Limits:
    """Around all intervals; a layer more at each end where layers are counted."""
    low, high = min(v.low for v in values), max(v.high for v in values)
    least = 1.0 if _counts(values) else 0.0
    margin = max(_MARGIN * (high - low), least) or _LEAST * abs(high) or 1.0
    return Limits(low - margin, high + margin)


def _counts(values: Sequence[Value]) -> bool:
    return all(float(v.value).is_integer() for v in values)


def _draw(axes: Axes, point: Point) -> None:
    x, y = point.across, point.up
    axes.plot([x.low, x.high], [y.value, y.value], color=colour("s0"), linewidth=1)
    axes.plot([x.value, x.value], [y.low, y.high], color=colour("s0"), linewidth=1)
    axes.plot([x.value], [y.value], "o", ms=5, color=colour("s0"))
    axes.annotate(
        str(point.number),
        (x.value, y.value),
        (4, 4),
        textcoords="offset points",
        fontsize=style.FONT_SIZE - 2,
        color=colour("ink"),
    )
