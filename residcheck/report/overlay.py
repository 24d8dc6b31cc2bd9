"""Charts of one curve in two versions, from what JSON says of it: a snapshot has no more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from residcheck.compare import Comparison, Difference, kept_axes
from residcheck.curves import Floats
from residcheck.report.axis import Axis
from residcheck.report.chart import Chart, Series
from residcheck.report.reduce import drawable

_READINGS = {
    "mean": "mean",
    "gmean": "geometric mean",
    "bos": "at position 0",
    "values": "",
}


def overlay(
    one: Mapping[str, Any] | None,
    other: Mapping[str, Any],
    labels: tuple[str, str],
    found: Comparison | None,
) -> Chart | None:
    """Two summaries of a curve as two lines, of the part that is worst, where it is worst.

    Args:
        one: the first summary; None where there is only one to show.
        other: the second.
        found: what is known of their difference, if anything.

    Returns:
        None for a curve of single numbers, which has no line.
    """
    worst = found.closest if found is not None else None
    part = _part(other, worst)
    lines = [
        (label, _line(summary, part, worst))
        for label, summary in zip(labels, (one, other), strict=True)
        if summary is not None and part in summary
    ]
    size = max((len(values) for _, (values, _) in lines), default=0)
    if size < 2:
        return None
    log = other.get("unit") == "norm"
    series = tuple(
        Series(label, ", ".join(filter(None, (_READINGS[part], where))), drawable(values, log))
        for label, (values, where) in lines
    )
    return Chart(log, str(other.get("unit", "")), Axis(_axis(other, part), size), series)


def beyond(found: Comparison) -> Chart | None:
    """Size over bound of what left its bounds, along the axis; None where there is no axis.

    Of the part that is worst; the largest over all other axes.
    """
    if not found.differences or not found.axis:
        return None
    part = found.differences[0].part
    size = len(found.picture)
    if size < 2:
        return None
    values = np.full(size, np.nan)
    for one in (d for d in found.differences if d.part == part):
        place = _index(one, found)
        if place < size and np.isfinite(one.ratio):
            values[place] = np.fmax(values[place], one.ratio)
    if not np.isfinite(values).any():
        return None
    series = (Series("difference over its bound", f"{part}, where it is beyond", values),)
    axis = Axis(found.axis, size)
    return Chart(True, "difference over bound", axis, series, level=(1.0, "the bound"))


def _part(summary: Mapping[str, Any], worst: Difference | None) -> str:
    if worst is not None and worst.part in _READINGS:
        return worst.part
    return next((part for part in _READINGS if part in summary), "values")


def _axis(summary: Mapping[str, Any], part: str) -> str:
    if part != "values":
        return "horizon" if "horizon" in summary else "layer"
    names = [name for name, _ in kept_axes(summary)]
    return "layer" if "layer" in names or not names else names[-1]


def _line(summary: Mapping[str, Any], part: str, worst: Difference | None) -> tuple[Floats, str]:
    """A part along its axis, and which one of its other axes' entries it is."""
    values = np.atleast_1d(np.array(summary[part], dtype=np.float64))  # null becomes NaN
    if values.ndim == 1:
        return values, ""
    axes = kept_axes(summary)
    along = [name for name, _ in axes].index(_axis(summary, part))
    index = worst.index if worst is not None and worst.part == part else 0
    at = [int(i) for i in np.unravel_index(min(index, values.size - 1), values.shape)]
    others = [f"{axes[i][0]} {at[i]}" for i in range(values.ndim) if i != along]
    chosen = tuple(slice(None) if i == along else at[i] for i in range(values.ndim))
    return values[chosen], ", ".join(others)


def _index(one: Difference, found: Comparison) -> int:
    names = [name for name, _ in found.axes]
    if one.part != "values" or found.axis not in names:
        return one.index
    shape = tuple(size for _, size in found.axes)
    if one.index >= np.prod(shape):
        return one.index
    return int(np.unravel_index(one.index, shape)[names.index(found.axis)])
