"""Averages over named axes of a curve, and what can be drawn of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import numpy as np

from residcheck.curves import Curve, Floats
from residcheck.report.outline import count, listed

BAND = (5, 95)
"""Percentiles between which a band lies."""


def ordered(curve: Curve, dims: Iterable[str]) -> Floats:
    """The curve's values with its axes in the order of ``dims``."""
    return curve.values.astype(np.float64).transpose([curve.dims.index(dim) for dim in dims])


def mean(values: Floats, axis: int | tuple[int, ...], geometric: bool = False) -> Floats:
    """The mean of what is not NaN; of logs if ``geometric``."""
    with (
        warnings.catch_warnings(),  # an axis that is all NaN
        np.errstate(divide="ignore", invalid="ignore"),
    ):
        warnings.simplefilter("ignore", RuntimeWarning)
        if geometric:
            return np.asarray(np.exp(np.nanmean(np.log(values), axis=axis)))
        return np.asarray(np.nanmean(values, axis=axis))


def band(values: Floats) -> tuple[Floats | None, Floats | None]:
    """The percentiles over the first axis; none for a single entry."""
    if len(values) < 2:
        return None, None
    with warnings.catch_warnings():  # a layer that is NaN for every entry
        warnings.simplefilter("ignore", RuntimeWarning)
        low, high = np.nanpercentile(values, BAND, axis=0)
    return low, high


def drawable(values: Floats, log: bool) -> Floats:
    """NaN for what has no place on the axis: infinities, and zeros on a logarithmic one."""
    values = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(values) & ((values > 0) | (not log)), values, np.nan)


def averaged(curve: Curve, dims: Iterable[str], geometric: bool = False) -> str:
    """In words: ``mean over 12 heads and 68 prompts``; empty if over nothing."""
    counts = [count(curve.values.shape[curve.dims.index(dim)], dim) for dim in dims]
    if not counts:
        return ""
    return f"{'geometric mean' if geometric else 'mean'} over {listed(counts)}"
