"""Maps: colours over two axes, with a bar that says what a colour is worth.

matplotlib draws the axes; the cells are written here, one path for each colour, in units
of a cell. A browser must not smooth their edges: the page would shine through between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree.ElementTree import Element, SubElement

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from residcheck.report import style
from residcheck.report.axis import Axis
from residcheck.report.chart import Chart, Map
from residcheck.report.outline import number
from residcheck.report.scales import Scale

_BOX = (0.125, 0.12, 0.725, 0.8)
_BAR = (0.875, 0.12, 0.03, 0.8)
"""Left, bottom, width and height of the map and of the bar, as shares of the plot."""
_WORD = 34
_LINE = 13
"""Room that a word takes among the ticks, across and up, in the plot's units."""
_TIP = 7
"""Height of a triangle on the bar, in the same units."""
_RAMP = (0.04, 0.97)
"""The part of the colour map that is used: its ends come near those of the pages."""


def draw_map(figure: Figure, chart: Chart, scale: Scale) -> Element:
    """The axes on an empty ``figure``; gives the cells, to be put under them."""
    assert chart.map is not None
    axes = figure.add_axes(_BOX)
    _set_axes(axes, chart, chart.map)
    _set_bar(figure.add_axes(_BAR), chart, scale)
    cells = Element("g", {"shape-rendering": "crispEdges"})
    cells.append(_cells(scale.colours(chart.map.values), scale.steps, _BOX))
    bar = _cells(np.arange(scale.steps)[:, None], scale.steps, _BAR)
    bar.extend(_tips(scale))
    cells.append(bar)
    return cells


def shades(steps: int) -> list[str]:
    """Colours from low to high. Lightness rises with them, which every eye can follow."""
    ramp = matplotlib.colormaps["viridis"]
    return [to_hex(ramp(at)) for at in np.linspace(*_RAMP, steps)]


def _set_axes(axes: Axes, chart: Chart, map: Map) -> None:
    width, height = style.WIDTH * _BOX[2], style.MAP_HEIGHT * _BOX[3]
    axes.set_xlim(-0.5, chart.axis.size - 0.5)
    axes.set_ylim(-0.5, map.up.size - 0.5)
    axes.grid(False)
    axes.spines["left"].set_visible(True)
    axes.set_title(_up_label(map.up), loc="left", pad=11)
    axes.set_xlabel(_across_label(chart.axis, map.up), labelpad=3)
    across = chart.axis.ticks(_WORD * chart.axis.size / width)
    up = map.up.ticks(_LINE * map.up.size / height)
    axes.set_xticks([at for at, _ in across], [text for _, text in across])
    axes.set_yticks([at for at, _ in up], [text for _, text in up])


def _up_label(axis: Axis) -> str:
    return "layer that writes" if axis.name == "write" else _name(axis)


def _across_label(axis: Axis, up: Axis) -> str:
    return "layer that reads" if axis.name == "read" or up.name == "write" else _name(axis)


def _name(axis: Axis) -> str:
    """Pairs are told apart in the legend."""
    return axis.name if axis.pair else axis.label


def _set_bar(axes: Axes, chart: Chart, scale: Scale) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(0, scale.steps)
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    axes.set_title(chart.unit + (", log scale" if scale.log else ""), loc="right", pad=11)
    axes.set_xticks([])
    axes.yaxis.tick_right()
    at = [float(scale.position(tick)) for tick in scale.ticks]
    axes.set_yticks(at, [number(tick) for tick in scale.ticks])


def _cells(
    colours: npt.NDArray[np.intp], steps: int, box: tuple[float, float, float, float]
) -> Element:
    """One path a colour, of cells that count from the top."""
    left, bottom, width, height = box
    rows, columns = colours.shape
    x, y = style.WIDTH * left, style.MAP_HEIGHT * (1 - bottom - height)
    across, up = style.WIDTH * width / columns, style.MAP_HEIGHT * height / rows
    group = Element("g", {"transform": f"translate({x:g} {y:g}) scale({across:.6g} {up:.6g})"})
    for step, shade in enumerate(shades(steps)):
        path = "".join(_rectangles(colours[::-1] == step))
        if path:
            SubElement(group, "path", {"d": path, "fill": shade})
    return group


def _tips(scale: Scale) -> Iterator[Element]:
    """Triangles on the ends of the bar, where values lie beyond them."""
    high = _TIP * scale.steps / (style.MAP_HEIGHT * _BAR[3])
    colours = shades(scale.steps)
    if scale.above:
        yield Element("path", {"d": f"M0 0L.5 {-high:.3g}L1 0", "fill": colours[-1]})
    if scale.below:
        foot = scale.steps
        path = f"M0 {foot}L.5 {foot + high:.4g}L1 {foot}"
        yield Element("path", {"d": path, "fill": colours[0]})


def _rectangles(chosen: npt.NDArray[np.bool_]) -> Iterator[str]:
    """A rectangle for each unbroken run of chosen cells in a row, from the end of the last."""
    x = y = 0
    for row, cells in enumerate(chosen):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], cells.astype(int), [0]])))
        for first, last in edges.reshape(-1, 2).tolist():
            down = f"{row - y:+d}".replace("+", " ")
            yield f"m{first - x}{down}h{last - first}v1h{first - last}"
            x, y = first, row + 1
