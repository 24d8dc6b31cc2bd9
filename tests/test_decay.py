"""Shapes of decay: closed forms, statsmodels as the oracle, and error rates."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm  # type: ignore[import-untyped]

from residcheck.stats import Decay, choose_decay, fit_decay, horizons_fitted
from residcheck.stats import decay as module
from residcheck.stats.decay import errors, search, weight
from residcheck.stats.fits import Floats
from residcheck.stats.resampling import percentiles, resampled

K = np.arange(1, 48, dtype=np.float64)
EXACT = {
    Decay.EXPONENTIAL: ((6.0, 7.0), 6 * np.exp(-K / 7)),
    Decay.POWER_LAW: ((5.0, 0.8), 5 * K**-0.8),
    Decay.SIGMOID: ((8.0, 17.0, 3.0), 8 / (1 + np.exp((K - 17) / 3))),
}


def prompts(
    mean: Floats,
    n: int,
    rng: np.random.Generator,
    jagged: float = 0.05,
    between: float = 0.12,
    along: float = 0.1,
) -> Floats:
    """``[prompt, k]`` around a curve that the model itself strays from, the same for all.

    Args:
        jagged: by what share of its height, independently at every horizon.
        between: log spread of prompts' heights.
        along: log spread within a prompt, correlated between neighbours (0.8), as in SmolLM2.
    """
    own = rng.normal(size=(n, len(mean)))
    for k in range(1, len(mean)):
        own[:, k] = 0.8 * own[:, k - 1] + 0.6 * own[:, k]
    height = np.exp(between * rng.normal(size=(n, 1)) + along * own)
    return np.asarray(mean * np.exp(jagged * rng.normal(size=len(mean))) * height)


@pytest.mark.parametrize("shape", Decay)
def test_exact_curves_give_their_parameters(shape: Decay) -> None:
    right, curve = EXACT[shape]
    fit = fit_decay(shape, curve, K)
    assert fit is not None
    assert fit.parameters == pytest.approx(right, rel=1e-4)
    assert fit.at(K) == pytest.approx(curve, rel=1e-3, abs=1e-6)
    assert fit.r_squared == pytest.approx(1)
    choice = choose_decay(np.tile(curve, (8, 1)))
    assert choice is not None
    assert choice.best.shape is shape
    assert choice.frequency[shape] == 1


def test_falls_are_of_the_shapes_that_the_fits_say() -> None:
    """An exponential's with the same tau; a sigmoid's largest about its middle."""
    fall = -np.diff(EXACT[Decay.EXPONENTIAL][1])
    fit = fit_decay(Decay.EXPONENTIAL, fall, K[1:])
    assert fit is not None
    assert fit.parameters[1] == pytest.approx(7, rel=1e-4)
    hump = -np.diff(EXACT[Decay.SIGMOID][1])
    assert abs(K[hump.argmax()] + 0.5 - 17) <= 0.5


def test_an_exponential_without_curve_fit(rng: np.random.Generator) -> None:
    """Proportional errors above a tenth: close to a straight line in logs, by statsmodels."""
    curve = 6 * np.exp(-K[:16] / 7) * np.exp(0.02 * rng.normal(size=16))
    line = sm.OLS(np.log(curve), sm.add_constant(K[:16])).fit()
    fit = fit_decay(Decay.EXPONENTIAL, curve, K[:16])
    assert fit is not None
    assert fit.parameters[1] == pytest.approx(-1 / line.params[1], rel=0.01)
    assert fit.parameters[0] == pytest.approx(np.exp(line.params[0]), rel=0.01)


@pytest.mark.parametrize("shape", Decay)
@pytest.mark.parametrize("truth", Decay)
def test_the_search_finds_what_curve_fit_does(
    shape: Decay, truth: Decay, rng: np.random.Generator
) -> None:
    curves = prompts(EXACT[truth][1], 6, rng)
    for curve in curves:
        error = errors(curve)
        amplitude, theta, rest = search(shape, curve, K, error)
        fit = fit_decay(shape, curve, K)
        assert fit is not None
        squares = (((curve - fit.at(K)) / error) ** 2).sum()
        assert rest == pytest.approx(squares, rel=1e-3)
        assert (amplitude, *theta) == pytest.approx(fit.parameters, rel=0.02)


def test_many_curves_are_searched_as_one_is(rng: np.random.Generator) -> None:
    curves = prompts(EXACT[Decay.SIGMOID][1], 5, rng)
    error = errors(curves.mean(axis=0))
    together = search(Decay.SIGMOID, curves, K, error)
    for i, curve in enumerate(curves):
        alone = search(Decay.SIGMOID, curve, K, error)
        for one, all_ in zip(alone, together, strict=True):
            assert one == pytest.approx(all_[i])


def test_aic_is_that_of_statsmodels(rng: np.random.Generator) -> None:
    """Up to constants: twice the log likelihood of normal errors, and what is visible."""
    curve = prompts(EXACT[Decay.EXPONENTIAL][1], 1, rng)[0]
    error, n = errors(curve), weight(errors(curve))
    fits = [fit_decay(shape, curve, K) for shape in (Decay.POWER_LAW, Decay.EXPONENTIAL)]
    squares = []
    for fit in fits:
        assert fit is not None
        unit = fit.at(K) / fit.parameters[0]
        squares.append(sm.WLS(curve, unit, weights=error**-2).fit().ssr)
    one, other = fits
    assert one is not None
    assert other is not None
    right = n * np.log((squares[0] / n + 1e-4) / (squares[1] / n + 1e-4))
    assert one.aic - other.aic == pytest.approx(right, rel=1e-3)


def test_weight_counts_horizons_where_something_is_left() -> None:
    step = np.where(K <= 9, 5.0, 0.0)
    assert weight(errors(step)) == pytest.approx(9 / 1.01)
    assert weight(errors(np.ones(20))) == pytest.approx(20 / 1.01)
    exponential = weight(errors(EXACT[Decay.EXPONENTIAL][1]))
    assert exponential == pytest.approx(7 * np.log(10), rel=0.05)  # down to a tenth


@pytest.mark.parametrize(
    "curve",
    [np.zeros(20), -np.ones(20), np.full(20, np.nan), np.ones(3), np.array([2.0]), np.array([])],
    ids=["zero", "below zero", "missing", "three", "one", "none"],
)
def test_where_there_is_nothing_to_fit_there_is_no_fit(curve: Floats) -> None:
    horizons = np.arange(1, len(curve) + 1, dtype=np.float64)
    assert [fit_decay(shape, curve, horizons) for shape in Decay] == [None] * 3
    assert choose_decay(np.tile(curve, (8, 1))) is None


def test_a_fit_that_does_not_converge_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise RuntimeError("maximum number of function evaluations is exceeded")

    monkeypatch.setattr(module.optimize, "curve_fit", fails)
    assert fit_decay(Decay.EXPONENTIAL, EXACT[Decay.EXPONENTIAL][1], K) is None


def test_curves_on_the_bounds_raise_nothing(rng: np.random.Generator) -> None:
    """Steps, constants, rising curves, and a curve of noise alone."""
    for curve in (
        np.where(K <= 9, 5.0, 0.0),
        np.where(K <= 1, 5.0, 0.0),
        np.ones(len(K)),
        K.copy(),
        rng.normal(size=len(K)),
        1e-9 * np.exp(-K / 5),
        1e9 * np.exp(-K / 5),
    ):
        for shape in Decay:
            fit_decay(shape, curve, K)
        choose_decay(np.tile(curve, (8, 1)))


def test_the_last_horizon_is_not_fitted() -> None:
    assert horizons_fitted(5).tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("layers", [12, 48])
def test_intervals_of_tau_cover(layers: int, rng: np.random.Generator) -> None:
    """Over prompts of one smooth model: jaggedness is the model's and not the prompts'."""
    k, tau, n = np.arange(1, layers, dtype=np.float64), layers / 5, 10
    covered = []
    for _ in range(100):
        rows = prompts(6 * np.exp(-k / tau), n, rng, jagged=0.0)
        draws = search(Decay.EXPONENTIAL, resampled(rows, 199), k, errors(rows.mean(axis=0)))
        low, high = percentiles(draws[1][:, 0], n)
        covered.append(low <= tau <= high)
    assert np.mean(covered) >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / 100)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240723)
