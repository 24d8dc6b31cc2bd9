"""Shapes of growth, fitted by least squares to log-ratios of neighbouring layers.

Log norms over layers are a cumulative sum: what a layer does stays. So errors are
independent in the steps ``d(n) = log y(n) - log y(n-1)``, not in the levels, and shapes are
fitted to the steps, one response scale for all, with one parameter each. For layer n
(n + 1 blocks have written) log y is, up to a constant,

* exponential: ``b n``;
* linear: ``log(1 + b n)``;
* square root: ``log(1 + b n) / 2``, what uncorrelated writes of one size give;
* power law: ``b log(n + 1)``.

With equal numbers of parameters, a difference of AIC over N steps is ``N log(RSS / RSS')``.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
# End-to-end log growth of a linear curve over the window: a grid, then the lowest points of
# parabolas through three points ever closer together. Beyond e^8 over a window, a straight
# line is a step at its first layer.
_GRID = np.linspace(-8.0, 8.0, 161)
_CLOSER = (0.1, 0.01)
_THREE = np.array([-1.0, 0.0, 1.0])
# Mean squared residuals below this are rounding: shapes are compared above it.
_ROUNDING = 1e-12


def slopes(log_values: Floats, layers: Floats) -> Floats:
    """Least-squares slope of ``log_values[..., layer]`` against ``layers``: ``[...]``."""
    x = layers - layers.mean()
    return np.asarray(log_values @ (x / (x @ x)))


def rates(log_values: Floats, layers: Floats) -> Floats:
    """Factor per layer: the exponential of the slope."""
    return np.asarray(np.exp(slopes(log_values, layers)))


def evidence_for_exponential(log_values: Floats, layers: Floats) -> Floats:
    """AIC of the best other shape minus AIC of the exponential: ``[...]``.

    Above 0 the exponential fits best (Burnham & Anderson 2002, section 2.6).

    Args:
        layers: ``[layer]``, or one row for each curve.
    """
    steps = np.diff(log_values, axis=-1)
    n = steps.shape[-1]
    floor = _ROUNDING * n
    exponential = _rss(steps, np.ones(n)) + floor
    power = _rss(steps, np.diff(np.log(layers + 1))) + floor
    # Steps of a square root are half those of a line: the linear shape of twice the steps.
    linear, twice = _linear_rss(np.stack([steps, 2 * steps]))
    others = np.minimum(np.minimum(power, linear + floor), twice / 4 + floor)
    return np.asarray(n * np.log(others / exponential))


def r_squared(log_values: Floats, layers: Floats) -> Floats:
    """Share of the variance of log values that a straight line against layers explains."""
    y = log_values - log_values.mean(axis=-1, keepdims=True)
    total = (y**2).sum(axis=-1)
    rest = _rss(y, layers - layers.mean())
    return np.asarray(1 - rest / np.where(total > 0, total, 1.0))


def _rss(y: Floats, x: Floats) -> Floats:
    """Residual sum of squares of y = b x, without intercept."""
    slope = (y * x).sum(axis=-1) / (x * x).sum(axis=-1)
    return np.asarray(((y - slope[..., None] * x) ** 2).sum(axis=-1))


def _linear_rss(steps: Floats) -> Floats:
    """Least squares of a line's steps: its end-to-end log growth is searched for."""
    best = _GRID[_squares(steps, _steps_of_grid(steps.shape[-1])).argmin(axis=-1)]
    for apart in _CLOSER:
        best = best + _lowest(_profile(steps, best[..., None] + _THREE * apart)) * apart
    return np.asarray(_profile(steps, best[..., None])[..., 0])


def _lowest(values: Floats) -> Floats:
    """Where the parabola through values at -1, 0 and 1 is lowest, within those bounds."""
    left, middle, right = (values[..., i] for i in range(3))
    bend = left - 2 * middle + right
    at = (left - right) / (2 * np.where(bend > 0, bend, 1.0))
    return np.where(bend > 0, np.clip(at, -1, 1), np.sign(left - right))


def _profile(steps: Floats, growth: Floats) -> Floats:
    """Residual sums for lines whose last value is ``exp(growth)`` times the first."""
    return _squares(steps, _line_steps(growth, steps.shape[-1]))


def _line_steps(growth: Floats, n: int) -> Floats:
    share = np.linspace(0, 1, n + 1)
    return np.asarray(np.diff(np.log1p(np.expm1(growth)[..., None] * share), axis=-1))


@cache
def _steps_of_grid(n: int) -> Floats:
    return _line_steps(_GRID, n)


def _squares(steps: Floats, shape: Floats) -> Floats:
    """|steps - shape|^2, without the ``[..., growth, step]`` difference."""
    if shape.ndim == 2 and steps.ndim != 1:
        cross = steps @ shape.T
    else:
        cross = (steps[..., None, :] @ np.swapaxes(shape, -1, -2))[..., 0, :]
    return np.asarray((steps**2).sum(axis=-1)[..., None] - 2 * cross + (shape**2).sum(axis=-1))
