"""The fits against numpy, statsmodels, scipy's nonlinear least squares, and closed forms.

A curve that is exactly of one shape has no residual under it, however shapes are fitted.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.optimize import curve_fit

from residcheck.stats import evidence_for_exponential, rates, slopes
from residcheck.stats.fits import Floats, r_squared
from residcheck.stats.phase import EVIDENCE

NOISE = 0.05
# The best line is searched in steps of 0.005 of log growth. Half a step off moves an AIC
# difference by less than this under NOISE; the bar for evidence is 2.
AIC_AGREEMENT = 0.01

WINDOWS = [(0, 11), (3, 16), (5, 41)]
Shape = Callable[[Floats], Floats]
SHAPES: dict[str, Shape] = {
    "exponential": lambda n: 2 + np.log(1.045) * n,
    "linear": lambda n: np.log(3 + 0.7 * n),
    "square root": lambda n: np.log(3 + 2.0 * n) / 2,
    "power law": lambda n: 1 + 0.6 * np.log(n + 1),
    "falling": lambda n: 3 - 0.05 * n,
}
ALL_WINDOWS = pytest.mark.parametrize("window", WINDOWS, ids=str)
ALL_SHAPES = pytest.mark.parametrize("shape", SHAPES)


def layers_of(window: tuple[int, int]) -> Floats:
    return np.arange(window[0], window[1] + 1, dtype=np.float64)


def noisy(shape: str, layers: Floats, *sizes: int) -> Floats:
    rng = np.random.default_rng(20230509)
    return SHAPES[shape](layers) + NOISE * rng.normal(size=(*sizes, len(layers)))


@ALL_WINDOWS
@ALL_SHAPES
def test_slope_is_that_of_polyfit(shape: str, window: tuple[int, int]) -> None:
    layers = layers_of(window)
    curve = noisy(shape, layers)
    assert slopes(curve, layers) == pytest.approx(np.polyfit(layers, curve, 1)[0])


@ALL_WINDOWS
@ALL_SHAPES
def test_slope_and_r_squared_are_those_of_statsmodels(shape: str, window: tuple[int, int]) -> None:
    layers = layers_of(window)
    curve = noisy(shape, layers)
    oracle = sm.OLS(curve, sm.add_constant(layers)).fit()
    assert slopes(curve, layers) == pytest.approx(oracle.params[1])
    assert r_squared(curve, layers) == pytest.approx(oracle.rsquared)


@pytest.mark.parametrize("rate", [0.9, 1.0, 1.045, 1.24])
def test_rate_is_the_factor_per_layer(rate: float) -> None:
    layers = layers_of((3, 16))
    assert rates(np.log(7.0 * rate**layers), layers) == pytest.approx(rate)


def aic_difference_by_curve_fit(curve: Floats, layers: Floats) -> float:
    """The same quantity from scipy.optimize.curve_fit, each shape from several starts.

    Shapes are fitted to the steps from layer to layer, each with one parameter: a line and
    the root of one by their log growth from end to end, so that they are positive.
    """
    steps = np.diff(curve)
    share = (layers - layers[0]) / (layers[-1] - layers[0])

    def line(_: Floats, growth: float) -> Floats:
        return np.diff(np.log(1 - share + share * np.exp(growth)))

    def root(n: Floats, growth: float) -> Floats:
        return line(n, 2 * growth) / 2

    def power(n: Floats, exponent: float) -> Floats:
        return np.asarray(exponent * np.diff(np.log(n + 1)))

    def exponential(n: Floats, rate: float) -> Floats:
        return np.diff(rate * n)

    def rss(model: Callable[..., Floats]) -> float:
        starts = (curve[-1] - curve[0], 0.1, 1.0, -1.0)
        fits = (curve_fit(model, layers, steps, p0=start)[0] for start in starts)
        return min(float(((steps - model(layers, *fit)) ** 2).sum()) for fit in fits)

    best = min(rss(line), rss(root), rss(power))
    return float(len(steps) * np.log(best / rss(exponential)))


@ALL_WINDOWS
@ALL_SHAPES
def test_evidence_is_the_aic_difference_of_curve_fit(shape: str, window: tuple[int, int]) -> None:
    layers = layers_of(window)
    for curve in noisy(shape, layers, 5):
        expected = aic_difference_by_curve_fit(curve, layers)
        found = evidence_for_exponential(curve, layers)
        assert found == pytest.approx(expected, abs=AIC_AGREEMENT)


@ALL_WINDOWS
@pytest.mark.parametrize("rate", [0.9, 1.01, 1.045, 1.24])
def test_exact_exponential_beats_the_others(rate: float, window: tuple[int, int]) -> None:
    layers = layers_of(window)
    assert evidence_for_exponential(np.log(5 * rate**layers), layers) > EVIDENCE


@ALL_WINDOWS
@pytest.mark.parametrize("growth", [1.3, 2.0, 7.0, 100.0, 0.5])
def test_exact_line_beats_the_exponential(growth: float, window: tuple[int, int]) -> None:
    layers = layers_of(window)
    line = np.linspace(5, 5 * growth, len(layers))
    assert evidence_for_exponential(np.log(line), layers) < -EVIDENCE


@ALL_WINDOWS
@pytest.mark.parametrize("growth", [2.0, 7.0, 100.0, 0.5])
def test_exact_root_of_a_line_beats_the_exponential(growth: float, window: tuple[int, int]) -> None:
    """What uncorrelated writes of one size give: squares of norms add up."""
    layers = layers_of(window)
    line = np.linspace(5, 5 * growth, len(layers))
    assert evidence_for_exponential(np.log(np.sqrt(line)), layers) < -EVIDENCE


@ALL_WINDOWS
@pytest.mark.parametrize(
    "growth",
    [1.0, 1.108, 1.0525, 1.001],
)
def test_line_that_hardly_grows_is_no_evidence_for_the_exponential(
    growth: float, window: tuple[int, int]
) -> None:
    """Where the shapes are nearly one, none may win by what a search for another leaves."""
    layers = layers_of(window)
    line = np.linspace(5, 5 * growth, len(layers))
    assert evidence_for_exponential(np.log(line), layers) < EVIDENCE


@ALL_WINDOWS
@pytest.mark.parametrize("power", [0.3, 0.5, 2.0, -0.5])
def test_exact_power_law_beats_the_exponential(power: float, window: tuple[int, int]) -> None:
    layers = layers_of(window)
    curve = np.log(5 * (layers + 1) ** power)
    assert evidence_for_exponential(curve, layers) < -EVIDENCE


@ALL_SHAPES
def test_evidence_does_not_depend_on_the_unit_of_the_norm(shape: str) -> None:
    layers = layers_of((3, 16))
    curve = noisy(shape, layers)
    scaled = curve + np.log(1000.0)
    expected = evidence_for_exponential(curve, layers)
    assert evidence_for_exponential(scaled, layers) == pytest.approx(expected)


@pytest.mark.parametrize("statistic", [slopes, rates, evidence_for_exponential, r_squared])
def test_leading_axes_are_a_loop(statistic: Callable[[Floats, Floats], Floats]) -> None:
    layers = layers_of((3, 16))
    curves = np.stack([noisy(shape, layers, 3) for shape in SHAPES])
    loop = [[statistic(curve, layers) for curve in row] for row in curves]
    assert statistic(curves, layers) == pytest.approx(np.array(loop))


@pytest.mark.parametrize("level", [0.0, 2.0, -3.0])
def test_constant_curve_is_evidence_for_nothing(level: float) -> None:
    """All the shapes contain the constant: equal residuals, an AIC difference of zero."""
    layers = layers_of((3, 16))
    curve = np.full(len(layers), level)
    assert slopes(curve, layers) == pytest.approx(0)
    assert rates(curve, layers) == pytest.approx(1)
    assert evidence_for_exponential(curve, layers) == pytest.approx(0)
