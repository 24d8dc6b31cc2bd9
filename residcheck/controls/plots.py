"""The plots of the page of trained controls, each an SVG file of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from residcheck.controls.comparison import Comparison
from residcheck.controls.rates import LOG_RATE, LOSS, STORED
from residcheck.controls.reading import BASELINE
from residcheck.report import style
from residcheck.report.outline import number
from residcheck.report.plots import settings
from residcheck.report.scales import Limits, even_ticks, log_ticks
from residcheck.report.svg import colour, inline_svg
from residcheck.stats.fits import Floats
from residcheck.stats.phase import RATE_MARGIN

_WIDTH = 720
_ROW, _ABOVE = 20, 66
"""Height of a row of points, and of what stands above and below them."""
_PANELS: tuple[tuple[str, ...], ...] = (
    (LOG_RATE, "attn_out", "mlp_out"),
    ("ln1 gain", "ln2 gain"),
    ("W_OV", "W_in", "W_out"),
    ("W_OV folded", "W_in folded"),
)
_MARKS = ("o", "s", "^")
_TICKS = 3  # of a narrow panel: more would touch


def plots(found: Comparison) -> dict[str, tuple[str, str]]:
    """SVG and text alternative of each plot, by the name of its file."""
    drawn: Mapping[str, tuple[Callable[[Figure, Comparison], None], int, str]] = {
        "training": (_training, 300, "growth rate of each arm against the training step"),
        "norms": (_norms, 300, "norm of the stream per layer at the end, for each arm"),
        "divisors": (_divisors, 220, "what the stream is divided by before each block"),
        "differences": (_differences, _rows(found, 1), "each arm minus the baseline"),
        "stored": (_stored, _rows(found, 0), "log rates per layer of what stores the growth"),
    }
    return {
        f"{name}.svg": (_svg(name, draw, height, text, found), text)
        for name, (draw, height, text) in drawn.items()
        if name != "divisors" or _dividing(found)
    }


def _rows(found: Comparison, left_out: int) -> int:
    return _ABOVE + _ROW * max(2, len(found.all_arms) - left_out)


def _svg(
    name: str, draw: Callable[[Figure, Comparison], None], height: int, text: str, found: Comparison
) -> str:
    with settings(name):
        figure = Figure(figsize=(_WIDTH / 72, height / 72))
        draw(figure, found)
        svg = inline_svg(figure, name, text)
    return _alone(svg, height)


def _alone(svg: str, height: int) -> str:
    """With what an SVG needs outside of a page: its names, its size, and the page's colours."""
    css = files("residcheck.report").joinpath("page.css.j2").read_text(encoding="utf-8")
    colours = css.partition("* { box-sizing")[0]
    font = "text { font-family: system-ui, sans-serif; } svg { background: var(--page); }"
    names = f'xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}"'
    head, _, rest = svg.partition(">")
    opened = head.replace("<svg", f"<svg {names}", 1)
    return f"{opened}><style>{colours}{font}</style>{rest}\n"


def _training(figure: Figure, found: Comparison) -> None:
    axes = _lines(figure, "growth rate per layer", "training step, log scale")
    axes.set_xscale("log")
    for index, arm in enumerate(found.all_arms):
        runs = [found.runs[arm, seed].history for seed in found.seeds_of(arm)]
        steps = np.array([record.step for record in runs[0] if record.step > 0], dtype=np.float64)
        curves = np.array([[r.rate for r in run if r.step > 0] for run in runs])
        _draw_arm(axes, index, arm, steps, curves, curves.mean(axis=0))
    _log_ticks_of_steps(axes, found.zoo.scale.steps)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    _legend(figure, axes)


def _log_ticks_of_steps(axes: Axes, steps: int) -> None:
    powers = range(int(np.log10(steps)) + 1)
    axes.xaxis.set_major_locator(FixedLocator([10.0**power for power in powers]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _norms(figure: Figure, found: Comparison) -> None:
    axes = _lines(figure, "norm of resid_post, log scale", "layer")
    axes.set_yscale("log")
    window = found.zoo.scale.window
    axes.axvspan(window.first - 0.5, window.last + 0.5, zorder=0, color=colour("shade"),
                 alpha=style.PHASE_OPACITY, linewidth=0)  # fmt: skip
    for index, arm in enumerate(found.all_arms):
        logs = [found.runs[arm, s].measured.log_norms["resid_post_norm"]
                for s in found.seeds_of(arm)]  # fmt: skip
        curves = np.array([log.mean(axis=0) for log in logs])
        layers = np.arange(curves.shape[1], dtype=np.float64)
        _draw_arm(axes, index, arm, layers, np.exp(curves), np.exp(curves.mean(axis=0)))
    limits = Limits(*axes.get_ylim())
    axes.yaxis.set_major_locator(FixedLocator(log_ticks(limits)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(figure, axes)


def _dividing(found: Comparison) -> list[str]:
    """Arms that divide their stream."""
    runs = found.zoo.runs
    return list(dict.fromkeys(r.arm.name for r in runs if r.arm.changes.rescale is not None))


def _divisors(figure: Figure, found: Comparison) -> None:
    axes = _lines(figure, "divisor of the stream", "layer")
    axes.axhline(1, color=colour("muted"), linewidth=1)
    for arm in _dividing(found):
        each = np.array([found.runs[arm, s].measured.divisors for s in found.seeds_of(arm)])
        layers = np.arange(each.shape[1], dtype=np.float64)
        _draw_arm(axes, found.all_arms.index(arm), arm, layers, each, each.mean(axis=0))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    _legend(figure, axes)


def _lines(figure: Figure, up: str, across: str) -> Axes:
    axes = figure.add_axes((0.075, 0.15, 0.62, 0.75))
    axes.set_title(up, loc="left", pad=9)
    axes.set_xlabel(across, labelpad=3)
    return axes


def _draw_arm(axes: Axes, index: int, arm: str, x: Floats, seeds: Floats, mean: Floats) -> None:
    """Thin lines for seeds behind a thick one of their mean."""
    stroke = style.stroke(index)
    for curve in seeds if len(seeds) > 1 else ():
        axes.plot(x, curve, color=colour(stroke.role), linewidth=0.6, alpha=0.6)
    dashes = (0, tuple(d / stroke.width for d in stroke.dashes)) if stroke.dashes else "solid"
    axes.plot(x, mean, color=colour(stroke.role), linewidth=2, linestyle=dashes, label=arm)


def _legend(figure: Figure, axes: Axes) -> None:
    figure.legend(
        handles=[line for line in axes.get_lines() if _labelled(line)],
        loc="center left",
        bbox_to_anchor=(0.7, 0.52),
        frameon=False,
        handlelength=3.2,
        labelcolor=colour("ink"),
        fontsize=style.FONT_SIZE - 1,
    )


def _labelled(line: Line2D) -> bool:
    return not str(line.get_label()).startswith("_")


def _differences(figure: Figure, found: Comparison) -> None:
    arms = [arm for arm in found.all_arms if arm != BASELINE]
    panels = (
        (LOG_RATE, "log rate per layer minus the baseline's"),
        (LOSS, "loss minus the baseline's, nats"),
    )
    for place, (quantity, title) in enumerate(panels):
        axes = _row_axes(figure, arms, place, len(panels), title)
        if quantity == LOG_RATE:
            axes.axvspan(-RATE_MARGIN, RATE_MARGIN, zorder=0, color=colour("shade"), linewidth=0)
        axes.axvline(0, color=colour("muted"), linewidth=1)
        for row, arm in enumerate(arms):
            pairs = [found.values[arm, s][quantity] - found.values[BASELINE, s][quantity]
                     for s in found.paired(arm)]  # fmt: skip
            axes.plot(pairs, [row] * len(pairs), "o", ms=3, mfc="none", color=colour("s1"))
            estimate = found.difference(arm, quantity)
            if np.isfinite(estimate.low):
                axes.plot([estimate.low, estimate.high], [row, row], color=colour("s0"), lw=1.4)
                axes.plot([estimate.value], [row], "o", ms=5, color=colour("s0"))
        _even_ticks(axes)


def _stored(figure: Figure, found: Comparison) -> None:
    arms = found.all_arms
    names = {LOG_RATE: "stream", **{name: name for name in STORED}}
    for place, quantities in enumerate(_PANELS):
        axes = _row_axes(figure, arms, place, len(_PANELS), "")
        axes.axvline(0, color=colour("muted"), linewidth=1)
        for index, quantity in enumerate(quantities):
            role = f"s{index}"
            values = [float(found.of_arm(arm, quantity).mean()) for arm in arms]
            axes.plot(values, range(len(arms)), _MARKS[index], ms=5, color=colour(role),
                      label=names[quantity])  # fmt: skip
        axes.legend(loc="lower left", bbox_to_anchor=(-0.06, 1.0), frameon=False, ncols=1,
                    fontsize=style.FONT_SIZE - 2, labelcolor=colour("ink"),
                    handletextpad=0.2, borderpad=0, labelspacing=0.15)  # fmt: skip
        _even_ticks(axes)


def _row_axes(figure: Figure, arms: Sequence[str], place: int, panels: int, title: str) -> Axes:
    """A panel of points, a row for each arm, the first at the top."""
    height = figure.get_figheight() * 72
    left, gap = 0.235, 0.02
    width = (0.985 - left) / panels
    bottom = 24 / height
    up = _ROW * max(2, len(arms)) / height
    axes = figure.add_axes((left + place * width, bottom, width - gap, up))
    axes.set_ylim(max(1, len(arms)) - 0.5, -0.5)
    axes.set_yticks(range(len(arms)), arms if place == 0 else [""] * len(arms))
    axes.grid(axis="x")
    if title:
        axes.set_title(title, loc="left", pad=9)
    return axes


def _even_ticks(axes: Axes) -> None:
    ticks = even_ticks(Limits(*axes.get_xlim()))
    axes.xaxis.set_major_locator(FixedLocator(ticks[:: -(-len(ticks) // _TICKS)]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
