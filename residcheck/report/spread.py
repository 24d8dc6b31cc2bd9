"""The numbers of a histogram: how the tokens of each layer are distributed."""

from __future__ import annotations

import numpy as np

from residcheck.curves import Curve, Floats
from residcheck.report.chart import Spread

BINS = 80
"""Bins of a histogram between the smallest and the largest value of all layers."""


def spread_of(curve: Curve) -> Spread | None:
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
