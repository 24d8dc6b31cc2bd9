"""How the loss decays as the horizon grows: three shapes, fitted and compared.

The excess ``E(k)`` is the loss at horizon k minus that of the model as it is. Shapes:

* exponential: ``A exp(-k / tau)``;
* power law: ``A k^-p``;
* sigmoid: ``A / (1 + exp((k - middle) / width))``, its middle among the horizons fitted.

The importance of what was written k layers back is the fall of the loss from horizon k - 1
to k, ``E(k-1) - E(k)``. Of an exponential that is again an exponential with the same tau;
of a power law it is, for large k, a power law with p + 1; of a sigmoid it is a hump around
the middle, whose tails are exponentials of the width. E is fitted and not its differences:
errors at different horizons are of separate passes, and neighbouring differences share one.

All are fitted by least squares to E in nats, one response scale: E can be below zero, where
it has no log. Real curves stray from any shape by a share of their height (by 10 % and more
in SmolLM2 and Gemma 3 270M), so each horizon has an error of its own, see :func:`errors`;
with equal errors up to a quarter of simulated exponentials were called something else.
Shapes are compared by AIC with its correction for few points (Burnham and Anderson 2002,
section 2.4), the error's variance counted among the parameters.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import product

import numpy as np
from scipy import optimize

from residcheck.stats import resampling
from residcheck.stats.decision import CHOICES, Estimate, Region
from residcheck.stats.fits import Floats
from residcheck.stats.resampling import percentile_estimate, resampled

MIN_WEIGHT = 11.0
"""Horizons' worth of curve that it takes to call a decay exponential.

The correction of AIC costs a sigmoid more than an exponential: with eight horizons 9, and a
third of simulated ones whose curve was jagged by 15 % were taken for exponentials; with ten
6, and one in eight; with eleven 5, and none of 60.
"""
# Errors are proportional to the excess down to a tenth of its largest value, and equal below.
# Down to there the number of touched layers bends a decay little; further down, more and more.
TENTH = 0.1
# Residuals of 1 % of the excess are as wide as the line of a plot: two shapes that are both
# closer than that to the curve are not told apart by their residuals.
VISIBLE = 0.01
# A curve that varies by less than this share of itself is flat: there is nothing to explain.
_ROUNDING = 1e-6


class Decay(StrEnum):
    """The shapes that are compared."""

    EXPONENTIAL = "exponential"
    POWER_LAW = "power law"
    SIGMOID = "sigmoid"


@dataclass(frozen=True)
class _Form:
    """A shape of amplitude one.

    Args:
        names: its parameters, but for the amplitude.
        unit: values ``[..., k]`` at horizons ``[k]``, of parameters ``[..., parameter]``.
        low, high: bounds of the parameters, the longest horizon given.
    """

    names: tuple[str, ...]
    unit: Callable[[Floats, Floats], Floats]
    low: Callable[[float], tuple[float, ...]]
    high: Callable[[float], tuple[float, ...]]


def _exponential(theta: Floats, k: Floats) -> Floats:
    return np.asarray(np.exp(-k / theta[..., :1]))


def _power_law(theta: Floats, k: Floats) -> Floats:
    return np.asarray(k ** -theta[..., :1])


def _sigmoid(theta: Floats, k: Floats) -> Floats:
    """1 / (1 + exp(x)) written so that it cannot overflow."""
    return np.asarray((1 - np.tanh((k - theta[..., :1]) / (2 * theta[..., 1:]))) / 2)


# A tau or width of a fifth of a layer is a step from one horizon to the next, and one of
# several times the depth a straight line, as are the powers at either end. A sigmoid with
# its middle before the first horizon would be an exponential.
_FORMS = {
    Decay.EXPONENTIAL: _Form(("tau",), _exponential, lambda n: (0.2,), lambda n: (10 * n,)),
    Decay.POWER_LAW: _Form(("p",), _power_law, lambda n: (0.01,), lambda n: (10.0,)),
    Decay.SIGMOID: _Form(("middle", "width"), _sigmoid, lambda n: (1.0, 0.2), lambda n: (n, 2 * n)),
}


@dataclass(frozen=True)
class Fit:
    """One shape fitted to one curve.

    ``parameters`` are the amplitude, then those that ``names`` has.
    """

    shape: Decay
    parameters: tuple[float, ...]
    r_squared: float
    aic: float

    @property
    def names(self) -> tuple[str, ...]:
        return _FORMS[self.shape].names

    def at(self, horizons: Floats) -> Floats:
        """The fitted excess."""
        amplitude, *theta = self.parameters
        return amplitude * _FORMS[self.shape].unit(np.array(theta), horizons)

    def __str__(self) -> str:
        values = zip(self.names, self.parameters[1:], strict=True)
        listed = ", ".join(f"{name} {value:.3g}" for name, value in values)
        return f"{self.shape.value} ({listed}; R2 {self.r_squared:.2f})"


@dataclass(frozen=True)
class Choice:
    """The shapes in the order of their AIC, and how sure that order is over prompts.

    Args:
        fits: best first; a shape that could not be fitted is not here.
        frequency: in what share of resamples of the prompts each shape is best.
        evidence: AIC of the best other shape minus that of the exponential.
        parameters: of every shape of ``fits``, but for its amplitude.
        weight: how many horizons' worth of curve they were fitted to.
    """

    fits: tuple[Fit, ...]
    frequency: Mapping[Decay, float]
    evidence: Estimate
    parameters: Mapping[Decay, tuple[Estimate, ...]]
    weight: float

    @property
    def best(self) -> Fit:
        return self.fits[0]

    def __str__(self) -> str:
        return ", ".join(f"{fit} best in {self.frequency[fit.shape]:.0%}" for fit in self.fits)


def horizons_fitted(n_horizons: int) -> Floats:
    """All horizons but the last, at which the excess is zero by definition: 1 ... L-1.

    Long horizons touch few layers, which alone bends the tail of the curve down. Leaving
    them out costs more than it saves: on the first half of the horizons of 12 layers,
    simulated sigmoids were taken for exponentials, and on all of them they were not. The
    errors make little of the tail: an exponential times the share of touched layers is
    never called something else if tau is 0.15 L. If tau is 0.3 L, such curves are bent
    throughout, and up to a third are.
    """
    return np.arange(1, n_horizons, dtype=np.float64)


def errors(excess: Floats) -> Floats:
    """The relative size of the error at each horizon of a mean curve ``[k]``.

    Proportional to the curve that falls throughout and is closest to it (scipy's
    ``isotonic_regression``), which no fitted shape has a part in. NaN where
    nothing is above zero.
    """
    if not (len(excess) and np.isfinite(excess).all()):
        return np.full(len(excess), np.nan)
    falling = np.maximum(optimize.isotonic_regression(excess, increasing=False).x, 0.0)
    top = falling[0] if falling[0] > 0 else np.nan
    return np.asarray(np.hypot(falling / top, TENTH) * top)


def weight(error: Floats) -> float:
    """How many horizons' worth of curve there is: each counts by its square over the error's.

    The tail of a curve that has come down to zero fits every shape, and counts for nothing.
    """
    floor = TENTH / np.hypot(1.0, TENTH) * error[0]
    return float((1 - (floor / error) ** 2).sum())


def fit_decay(shape: Decay, excess: Floats, horizons: Floats) -> Fit | None:
    """``shape`` fitted to ``excess[k]`` by scipy's ``curve_fit``; None if it cannot be.

    That is: too little of a curve for its AIC, nothing above zero, or no convergence.
    """
    error = errors(excess)
    if not np.isfinite(error).all() or not len(error):
        return None
    penalty = _penalty(shape, weight(error))
    amplitude, theta, _ = search(shape, excess, horizons, error)
    if not (np.isfinite(penalty) and amplitude > 0):
        return None
    form, n = _FORMS[shape], float(horizons[-1])
    low, high = form.low(n), form.high(n)
    try:
        with warnings.catch_warnings():  # of covariances, which are not used
            warnings.simplefilter("ignore", optimize.OptimizeWarning)
            found, _ = optimize.curve_fit(
                lambda k, a, *p: a * form.unit(np.array(p), k),
                horizons,
                excess,
                p0=(amplitude, *np.clip(theta, low, high)),  # on a bound but for rounding
                sigma=error,
                bounds=((0.0, *low), (np.inf, *high)),
            )
    except RuntimeError:  # no convergence
        return None
    residuals = excess - found[0] * form.unit(found[1:], horizons)
    total = float(((excess - excess.mean()) ** 2).sum())
    flat = total <= excess.size * (_ROUNDING * float(np.abs(excess).max())) ** 2
    r_squared = float("nan") if flat else 1 - float((residuals**2).sum()) / total
    aic = float(_misfit(np.asarray(((residuals / error) ** 2).sum()), weight(error))) + penalty
    return Fit(shape, tuple(float(value) for value in found), r_squared, aic)


def choose_decay(excess: Floats) -> Choice | None:
    """Which shape the mean of ``excess[prompt, k]`` over prompts has; None if no two fit.

    Args:
        excess: at the horizons of :func:`horizons_fitted`, at least :data:`MIN_PROMPTS` rows.
    """
    horizons = np.arange(1, excess.shape[1] + 1, dtype=np.float64)
    mean = excess.mean(axis=0)
    found = [fit_decay(shape, mean, horizons) for shape in Decay]
    fits = {fit.shape: fit for fit in found if fit is not None}
    if Decay.EXPONENTIAL not in fits or len(fits) < 2:
        return None
    draws = resampled(excess, resampling.RESAMPLES // 2)
    error = errors(mean)
    points = weight(error)
    searched = {shape: search(shape, draws, horizons, error) for shape in fits}
    aics = {
        shape: _misfit(rest, points) + _penalty(shape, points)
        for shape, (_, _, rest) in searched.items()
    }
    order = np.array(list(aics))[np.argmin(list(aics.values()), axis=0)]
    others = np.min([aic for shape, aic in aics.items() if shape != Decay.EXPONENTIAL], axis=0)
    other = min(fit.aic for shape, fit in fits.items() if shape != Decay.EXPONENTIAL)
    n = len(excess)
    evidence = percentile_estimate(
        "AIC advantage of the exponential",
        other - fits[Decay.EXPONENTIAL].aic,
        others - aics[Decay.EXPONENTIAL],
        n,
        Region(low=0.0),
        CHOICES,
    )
    parameters = {
        shape: tuple(
            percentile_estimate(f"{name} of the {shape.value}", value, searched[shape][1][:, i], n)
            for i, (name, value) in enumerate(zip(fit.names, fit.parameters[1:], strict=True))
        )
        for shape, fit in fits.items()
    }
    ranked = tuple(sorted(fits.values(), key=lambda fit: fit.aic))
    frequency = {shape: float(np.mean(order == shape)) for shape in fits}
    return Choice(ranked, frequency, evidence, parameters, points)


def _penalty(shape: Decay, points: float) -> float:
    """Of AIC with its correction; infinite where there are too few points for it."""
    count = len(_FORMS[shape].names) + 2  # with the amplitude and the error's variance
    if points <= count + 1:
        return float("inf")
    return 2 * count + 2 * count * (count + 1) / (points - count - 1)


def _misfit(rest: Floats, points: float) -> Floats:
    """n log of the mean squared residual in units of the error, above what is visible."""
    return np.asarray(points * np.log(rest / points + VISIBLE**2))


# A grid over places and the logs of scales, then small ones that move to their best point, or
# halve where that is in the middle: a sigmoid's middle and width lie along a bent valley.
_GRID_POINTS = {1: 129, 2: 25}  # a parameter, by the number of parameters
_LOCAL = np.linspace(-1, 1, 5)
_ROUNDS = 14


def search(
    shape: Decay, excess: Floats, horizons: Floats, error: Floats
) -> tuple[Floats, Floats, Floats]:
    """Least squares for many curves at once, ``excess[..., k]``, by a grid that is refined.

    Returns:
        The amplitude ``[...]`` (0 where nothing is above zero), the other parameters
        ``[..., parameter]`` and the sum of squared residuals, over the error's, ``[...]``.
    """
    form = _FORMS[shape]
    n = float(horizons[-1])
    excess = excess / error
    low, high = np.array(form.low(n)), np.array(form.high(n))
    place = [name == "middle" for name in form.names]

    def parameters(at: Floats) -> Floats:
        return np.asarray(np.where(place, low + (high - low) * at, low * (high / low) ** at))

    def shapes(at: Floats) -> Floats:
        return form.unit(parameters(at), horizons) / error

    axis = np.linspace(0, 1, _GRID_POINTS[len(low)])
    grid = np.array(list(product(axis, repeat=len(low))))
    local = np.array(list(product(_LOCAL, repeat=len(low))))
    best = grid[_explained(excess @ shapes(grid).T, shapes(grid)).argmax(axis=-1)]
    step = np.full((*excess.shape[:-1], 1), axis[1])
    for _ in range(_ROUNDS):
        places = np.clip(best[..., None, :] + step[..., None] * local, 0, 1)
        values = shapes(places)
        explained = _explained((values @ excess[..., None])[..., 0], values)
        chosen = explained.argmax(axis=-1)[..., None, None]
        better = np.take_along_axis(places, chosen, axis=-2)[..., 0, :]
        stays = (better == best).all(axis=-1, keepdims=True)
        best, step = better, np.where(stays, step / 2, step)
    unit = shapes(best)
    amplitude = np.maximum((unit * excess).sum(axis=-1), 0) / (unit**2).sum(axis=-1)
    rest = ((excess - amplitude[..., None] * unit) ** 2).sum(axis=-1)
    return amplitude, parameters(best), rest


def _explained(cross: Floats, values: Floats) -> Floats:
    """How much of a curve's square a shape explains, whose amplitude is at least zero.

    Args:
        cross: products of curve and shape, ``[..., place]``.
        values: the shapes, ``[..., place, k]``.
    """
    return np.asarray(np.maximum(cross, 0) ** 2 / (values**2).sum(axis=-1))
