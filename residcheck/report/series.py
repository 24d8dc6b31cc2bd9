"""From a run and a :class:`~residcheck.verdict.Figure` to the numbers that are drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from residcheck.curves import TOKEN_DIMS, Curve, Floats, Run
from residcheck.names import SAMPLED_AXES, STATISTICS
from residcheck.report.axis import Axis
from residcheck.report.chart import Chart, Map, Segment, Series
from residcheck.report.horizons import half
from residcheck.report.reduce import averaged, band, drawable, mean, ordered
from residcheck.report.spread import spread_of
from residcheck.verdict import Figure

_LOG_COLOURS = ("norm", "ratio")
"""Units whose maps have logarithmic colours; others may be negative, or near 1 throughout."""
_THROUGH = "a line through the middle of the window"


def chart(run: Run, figure: Figure) -> Chart:
    """What ``figure`` asks for, of the curves that the run holds."""
    curves = [run.curves[name] for name in figure.curves if name in run.curves]
    if figure.kind == "map":
        return _map(run, curves, figure)
    curves = [curve for curve in curves if curve.dims != TOKEN_DIMS[:2]]  # they have no axis
    return (_histogram if figure.kind == "histogram" else _lines)(run, curves, figure)


def _histogram(run: Run, curves: list[Curve], figure: Figure) -> Chart:
    tokens = [curve for curve in curves if curve.per_token][:1]
    axis = _counted(run, _axis(tokens[0])) if tokens else Axis("layer", 0)
    spread = spread_of(tokens[0]) if tokens else None
    phase = figure.phase if axis.name == "layer" else None
    return Chart(True, _unit(curves), axis, spread=spread, phase=phase, beyond=_beyond(run, axis))


def _map(run: Run, curves: list[Curve], figure: Figure) -> Chart:
    """Of the first curve with two axes or more."""
    curve = next((curve for curve in curves if len(curve.dims) > 1), None)
    if curve is None:
        return Chart(figure.log, "", Axis("layer", 0))
    *others, up, across = curve.dims
    log = figure.log and curve.unit in _LOG_COLOURS
    geometric = curve.unit == "norm"
    values = mean(ordered(curve, curve.dims), tuple(range(len(others))), geometric)
    statistic = STATISTICS.get(curve.name)
    drawn = Map(
        curve.name,
        averaged(curve, others, geometric),
        statistic.meaning if statistic else "",
        drawable(values, log),
        Axis(up, len(values)),
        lost=log and bool((values <= 0).any()),
    )
    return Chart(log, curve.unit, _counted(run, Axis(across, values.shape[1])), map=drawn)


def _lines(run: Run, curves: list[Curve], figure: Figure) -> Chart:
    """All curves along the first one's horizontal axis; a curve without it is left out."""
    axis = _axis(curves[0]) if curves else Axis("layer", 0)
    curves = [curve for curve in curves if _axis(curve).name == axis.name]
    series = [line for curve in curves for line in _series(curve, figure.log)]
    if figure.bos:
        series += [_bos(curve, figure.log) for curve in curves if _has_bos(curve)]
    by_layer = axis.name == "layer"
    size = max((len(line.values) for line in series), default=0)
    axis = _counted(run, Axis(axis.name, size))
    return Chart(
        log=figure.log,
        unit=_unit(curves),
        axis=axis,
        series=tuple(series),
        segments=(*(_segments(figure) if by_layer else ()), *_fits(figure, size)),
        phase=figure.phase if by_layer else None,
        level=figure.level,
        window=_window(figure, axis),
        beyond=_beyond(run, axis),
    )


def _unit(curves: list[Curve]) -> str:
    return ", ".join(dict.fromkeys(curve.unit for curve in curves))


def _axis(curve: Curve) -> Axis:
    """The horizontal axis: layers where there are any."""
    name = "layer" if "layer" in curve.dims else curve.dims[-1]
    return Axis(name, curve.values.shape[curve.dims.index(name)])


def _counted(run: Run, axis: Axis) -> Axis:
    """The axis with what its horizons are counted in."""
    if axis.name != "horizon" or run.horizon is None:
        return axis
    return replace(axis, unit=run.horizon.unit)


def _beyond(run: Run, axis: Axis) -> int | None:
    """The first of the horizons above half the model's depth, if the axis has any."""
    middle = half(run)
    if axis.name != "horizon" or middle is None or axis.size <= middle:
        return None
    return middle


def _window(figure: Figure, axis: Axis) -> tuple[int, int, str] | None:
    """The figure's window by the axis' entries, as far as the axis goes."""
    if figure.window is None:
        return None
    first, last, label = figure.window
    first, last = max(first - axis.first, 0), min(last - axis.first, axis.size - 1)
    return (first, last, label) if first <= last else None


def _series(curve: Curve, log: bool) -> Iterator[Series]:
    axis = _axis(curve).name
    if curve.per_token:
        yield _of_tokens(curve, log)
    elif "head" in curve.dims and axis != "head":
        yield _of_heads(curve, axis, log)
    elif "matrix" in curve.dims and axis != "matrix":
        yield from _of_matrices(curve, axis, log)
    else:
        yield _sampled(curve, axis, log)


def _of_tokens(curve: Curve, log: bool) -> Series:
    geometric = curve.unit == "norm"
    centre = curve.gmean if geometric else curve.mean
    prompts = np.exp(curve.prompt_log) if geometric else curve.prompt_mean
    reading = f"{'geometric mean' if geometric else 'mean'} over ordinary tokens"
    return _banded(curve.name, reading, centre, prompts, "prompts", log)


def _of_heads(curve: Curve, axis: str, log: bool) -> Series:
    """Each head's line, averaged over all else, and the mean of the heads."""
    others = [dim for dim in curve.dims if dim not in ("head", axis)]
    geometric = curve.unit == "norm"
    values = ordered(curve, (*others, "head", axis))
    heads = mean(values, tuple(range(len(others))), geometric)
    return Series(
        curve.name,
        averaged(curve, ("head", *others), geometric),
        drawable(mean(heads, 0, geometric), log),
        strands=drawable(heads, log),
        strand_reading=averaged(curve, others, geometric),
    )


def _of_matrices(curve: Curve, axis: str, log: bool) -> Iterator[Series]:
    """A line for each matrix that the model has."""
    others = [dim for dim in curve.dims if dim not in ("matrix", axis)]
    values = mean(ordered(curve, (*others, "matrix", axis)), tuple(range(len(others))))
    for name, line in zip(_matrices(len(values)), values, strict=True):
        if np.isfinite(line).any():
            reading = averaged(curve, others)
            yield Series(f"{curve.name} of {name}", reading, drawable(line, log))


def _matrices(size: int) -> list[str]:
    axis = Axis("matrix", size)
    return [axis.place(i) for i in range(size)]


def _sampled(curve: Curve, axis: str, log: bool) -> Series:
    """The mean over sampled axes, with a band; the largest value over any other axes."""
    sampled = [dim for dim in curve.dims if dim in SAMPLED_AXES and dim != axis]
    others = [dim for dim in curve.dims if dim not in (*sampled, axis)]
    values = ordered(curve, (*others, *sampled, axis))
    for _ in others:
        values = np.fmax.reduce(values, axis=0, initial=-np.inf)
    if not sampled:
        reading = f"largest over {' and '.join(f'{dim}s' for dim in others)}" if others else ""
        return Series(curve.name, reading, drawable(values, log))
    entries = mean(values, tuple(range(1, len(sampled)))) if len(sampled) > 1 else values
    centre = mean(values, tuple(range(len(sampled))))
    reading = averaged(curve, sampled)
    return _banded(curve.name, reading, centre, entries, f"{sampled[0]}s", log)


def _banded(
    name: str, reading: str, centre: Floats, entries: Floats, over: str, log: bool
) -> Series:
    low, high = (None if edge is None else drawable(edge, log) for edge in band(entries))
    return Series(name, reading, drawable(centre, log), low, high, over)


def _bos(curve: Curve, log: bool) -> Series:
    values = mean(curve.bos, 0, geometric=curve.unit == "norm")
    return Series(f"{curve.name} at position 0", "BOS", drawable(values, log), bos=True)


def _has_bos(curve: Curve) -> bool:
    """Nothing predicts BOS: losses have no value there."""
    return curve.per_token and not np.isnan(curve.bos).all()


def _fits(figure: Figure, size: int) -> tuple[Segment, ...]:
    return tuple(
        Segment(
            fit.label,
            np.arange(len(fit.values[:size]), dtype=np.float64),
            drawable(np.array(fit.values[:size]), figure.log),
            fit.kind == "published",
        )
        for fit in figure.fits
    )


def _segments(figure: Figure) -> tuple[Segment, ...]:
    if figure.phase is None:
        return ()
    layers = figure.phase.layers
    return tuple(
        Segment(
            line.label,
            layers,
            drawable(np.exp(line.anchor + line.log_rate * layers), figure.log),
            line.kind == "published",
            _THROUGH if line.kind == "published" else "",
        )
        for line in figure.lines
    )
