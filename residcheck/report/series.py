"""From a run and a :class:`~residcheck.verdict.Figure` to the numbers that are drawn.

Pure numpy. What is drawn (:class:`Chart`) is separate from how (``plots``), so that the
text alternative of a plot speaks of the very numbers in it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from residcheck.curves import Curve, Floats, Run
from residcheck.stats import Phase
from residcheck.verdict import Figure

BAND = (5, 95)
"""Percentiles of the prompts' means between which the band lies."""
BINS = 80
"""Bins of a histogram between the smallest and the largest value of all layers."""


@dataclass(frozen=True)
class Series:
    """A curve against its last axis, with the band over prompts where there are several.

    ``values``, ``low`` and ``high`` have shape (layer,); what cannot be drawn is NaN.
    """

    name: str
    reading: str
    values: Floats
    low: Floats | None = None
    high: Floats | None = None
    bos: bool = False


@dataclass(frozen=True)
class Segment:
    """A fitted or published line over the phase's window; both arrays have its length."""

    label: str
    layers: Floats
    values: Floats
    published: bool


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
class Chart:
    """All that one plot shows."""

    log: bool
    unit: str
    axis: str = "layer"
    series: tuple[Series, ...] = ()
    segments: tuple[Segment, ...] = ()
    spread: Spread | None = None
    phase: Phase | None = None
    level: tuple[float, str] | None = None

    @property
    def size(self) -> int:
        """How many layers the horizontal axis has."""
        if self.spread is not None:
            return len(self.spread.median)
        return max((len(series.values) for series in self.series), default=0)

    @property
    def empty(self) -> bool:
        """Whether there is no finite value of any curve to draw."""
        drawn = [series.values for series in self.series]
        if self.spread is not None:
            drawn.append(self.spread.median)
        return not any(np.isfinite(values).any() for values in drawn)

    @property
    def extent(self) -> tuple[float, float]:
        """Smallest and largest value that is drawn; NaN if there is none."""
        parts = list(self._drawn())
        values = np.concatenate(parts) if parts else np.empty(0)
        values = values[np.isfinite(values) & ((values > 0) | (not self.log))]
        return (float(values.min()), float(values.max())) if values.size else (np.nan, np.nan)

    def _drawn(self) -> Iterator[Floats]:
        for series in self.series:
            yield from (a for a in (series.values, series.low, series.high) if a is not None)
        yield from (segment.values for segment in self.segments)
        if self.level is not None:
            yield np.array([self.level[0]])
        if self.spread is not None:
            yield np.exp(self.spread.edges)


def chart(run: Run, figure: Figure) -> Chart:
    """What ``figure`` asks for, of the curves that the run holds."""
    curves = [run.curves[name] for name in figure.curves if name in run.curves]
    unit = ", ".join(dict.fromkeys(curve.unit for curve in curves))
    if figure.kind == "histogram":
        tokens = [curve for curve in curves if curve.per_token][:1]
        spread = _spread(tokens[0]) if tokens else None
        return Chart(log=True, unit=unit, spread=spread, phase=figure.phase)
    series = [_series(curve, figure.log) for curve in curves]
    if figure.bos:
        series += [_bos(curve, figure.log) for curve in curves if curve.per_token]
    return Chart(
        log=figure.log,
        unit=unit,
        axis=_axis(curves[0]) if curves else "layer",
        series=tuple(series),
        segments=_segments(figure),
        phase=figure.phase,
        level=figure.level,
    )


def _axis(curve: Curve) -> str:
    return "layer" if "layer" in curve.dims else curve.dims[-1]


def _series(curve: Curve, log: bool) -> Series:
    if curve.per_token:
        geometric = curve.unit == "norm"
        centre = curve.gmean if geometric else curve.mean
        prompts = np.exp(curve.prompt_log) if geometric else curve.prompt_mean
        reading = f"{'geometric mean' if geometric else 'mean'} over ordinary tokens"
        return Series(curve.name, reading, _drawable(centre, log), *_band(prompts, log))
    values, others = _worst(curve)
    if "prompt" in curve.dims:
        centre = _quietly_mean(values)
        return Series(curve.name, "mean over prompts", _drawable(centre, log), *_band(values, log))
    reading = f"largest over {' and '.join(others)}" if others else ""
    return Series(curve.name, reading, _drawable(values, log))


def _worst(curve: Curve) -> tuple[Floats, list[str]]:
    """The largest value over all axes but prompts and the drawn one, and those axes' names."""
    axis = _axis(curve)
    others = [dim for dim in curve.dims if dim not in ("prompt", axis)]
    kept = [dim for dim in ("prompt", axis) if dim in curve.dims]
    values = curve.values.astype(np.float64).transpose(
        [curve.dims.index(dim) for dim in (*others, *kept)]
    )
    for _ in others:
        values = np.fmax.reduce(values, axis=0, initial=-np.inf)
    return values, [f"{dim}s" for dim in others]


def _bos(curve: Curve, log: bool) -> Series:
    norm = curve.unit == "norm"
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.exp(_quietly_mean(np.log(curve.bos))) if norm else _quietly_mean(curve.bos)
    return Series(f"{curve.name} at position 0", "BOS", _drawable(values, log), bos=True)


def _band(prompts: Floats, log: bool) -> tuple[Floats | None, Floats | None]:
    """The percentiles over prompts (prompt x layer); none for a single prompt."""
    if len(prompts) < 2:
        return None, None
    with warnings.catch_warnings():  # a layer that is NaN for every prompt
        warnings.simplefilter("ignore", RuntimeWarning)
        low, high = np.nanpercentile(prompts, BAND, axis=0)
    return _drawable(low, log), _drawable(high, log)


def _segments(figure: Figure) -> tuple[Segment, ...]:
    if figure.phase is None:
        return ()
    layers = figure.phase.layers
    return tuple(
        Segment(
            line.label,
            layers,
            _drawable(np.exp(line.anchor + line.log_rate * layers), figure.log),
            line.kind == "published",
        )
        for line in figure.lines
    )


def _spread(curve: Curve) -> Spread | None:
    """The distribution of the ordinary tokens' logs; None if no value is positive."""
    values = curve.ordinary
    logs = np.log(np.where(values > 0, values, np.nan)).reshape(-1, values.shape[-1])
    logs[~np.isfinite(logs)] = np.nan
    if not np.isfinite(logs).any():
        return None
    low, high = float(np.nanmin(logs)), float(np.nanmax(logs))
    edges = np.linspace(low, high, BINS + 1) if high > low else low + np.array([-0.01, 0.01])
    columns = [column[np.isfinite(column)] for column in logs.T]
    denser = np.stack([_denser(np.histogram(column, edges)[0]) for column in columns])
    median = np.array([np.exp(np.median(c)) if c.size else np.nan for c in columns])
    return Spread(curve.name, edges, denser, median)


def _denser(counts: Floats) -> Floats:
    """For each bin the share of the tokens in bins with more tokens; NaN for empty bins."""
    order = np.argsort(-counts, kind="stable")
    before = np.zeros(len(counts))
    before[order] = np.cumsum(counts[order]) - counts[order]
    return np.where(counts > 0, before / max(counts.sum(), 1), np.nan)


def _drawable(values: Floats, log: bool) -> Floats:
    """NaN for what has no place on the axis: infinities, and zeros on a logarithmic one."""
    values = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(values) & ((values > 0) | (not log)), values, np.nan)


def _quietly_mean(values: Floats) -> Floats:
    with warnings.catch_warnings():  # an axis that is all NaN
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(np.nanmean(values, axis=0))
