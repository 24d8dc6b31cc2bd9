"""Charts drawn with matplotlib, each as an inline SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from residcheck.report import style
from residcheck.report.chart import Chart
from residcheck.report.describe import in_words
from residcheck.report.draw_lines import draw_lines
from residcheck.report.draw_map import draw_map
from residcheck.report.draw_scatter import draw_scatter
from residcheck.report.scales import Limits, Scale, common_limits, common_scale
from residcheck.report.scatter import Scatter
from residcheck.report.svg import colour, inline_svg

Frame = Limits | Scale
"""What charts side by side have in common: a vertical axis, or the colours of maps."""


def frames(charts: Sequence[Chart]) -> list[Frame]:
    """A frame for each chart: the same for maps, and for plots with a logarithmic axis."""
    maps = [chart for chart in charts if chart.map is not None]
    plots = [chart for chart in charts if chart.map is None]
    colours, shared = common_scale(maps), common_limits([c for c in plots if c.log])
    return [
        colours if chart.map is not None else shared if chart.log else common_limits([chart])
        for chart in charts
    ]


def draw(chart: Chart, key: str, frame: Frame) -> str:
    """The chart as SVG text; ``key`` must be unique on its page."""
    with settings(key):
        height = style.HEIGHT if chart.map is None else style.MAP_HEIGHT
        figure = Figure(figsize=(style.WIDTH / 72, height / 72))
        under = None
        if isinstance(frame, Scale):
            under = draw_map(figure, chart, frame)
        else:
            draw_lines(figure, chart, frame)
        return inline_svg(figure, key, in_words(chart), under)


def draw_models(scatter: Scatter, key: str) -> str:
    """Models as points, as SVG text; ``key`` must be unique on its page."""
    with settings(key):
        figure = Figure(figsize=(style.WIDTH / 72, style.MAP_HEIGHT / 72))
        draw_scatter(figure, scatter)
        return inline_svg(figure, key, scatter.in_words)


@contextmanager
def settings(key: str) -> Iterator[None]:
    """Within: matplotlib draws as the page looks, whatever the user's matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams |= _parameters(key)
        yield


def _parameters(key: str) -> dict[Any, Any]:
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
