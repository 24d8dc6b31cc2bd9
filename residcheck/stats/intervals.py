"""Intervals over prompts: the cluster bootstrap.

Tokens of one prompt and layers of one model are not independent; prompts are. So the
prompt is the unit that is resampled, and every interval speaks about other prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from residcheck.stats.decision import LEVEL, Estimate, Region

Floats = npt.NDArray[np.floating[Any]]
MIN_PROMPTS = 8
"""Fewer prompts say too little about the spread between prompts."""
RESAMPLES = 1999
PROMPTS = "other prompts"
DRAWS = "other draws"
LAYERS = "other layers"
_SEED = 0


def expanded_level(n: int, level: float = LEVEL) -> float:
    """The level at which a percentile bootstrap of n units covers ``level``.

    The percentile interval is too narrow by sqrt((n-1)/n) and by the normal against the t
    quantile; asking for this higher level makes up for both (Hesterberg 2015, "What
    teachers should know about the bootstrap", section 5.2 on expanded percentiles).
    """
    t = stats.t.ppf((1 + level) / 2, n - 1) * np.sqrt(n / (n - 1))
    return float(2 * stats.norm.cdf(t) - 1)


def over_prompts(
    name: str,
    per_prompt: Floats,
    statistic: Callable[[Floats], Floats] | None = None,
    region: Region | None = None,
    population: str = PROMPTS,
) -> Estimate:
    """Estimate with a bootstrap interval over prompts, or over units of another population.

    Args:
        per_prompt: one row per prompt, ``[prompt, ...]``.
        statistic: from mean rows ``[..., *row]`` to numbers ``[...]``; the mean itself
            when rows are numbers and this is None.

    Raises:
        ValueError: fewer than :data:`MIN_PROMPTS` prompts.
    """
    n = len(per_prompt)
    if n < MIN_PROMPTS:
        raise ValueError(f"{n} prompts; at least {MIN_PROMPTS} are needed")
    summarise = statistic or (lambda rows: rows)
    rows = per_prompt.reshape(n, -1)

    def resampled(index: npt.NDArray[np.int64], axis: int = -1) -> Floats:
        draws = index.reshape(-1, n)
        offsets = np.arange(len(draws))[:, None] * n
        counts = np.bincount((draws + offsets).ravel(), minlength=draws.size).reshape(draws.shape)
        means = counts @ rows / n
        return summarise(means.reshape(*index.shape[:-1], *per_prompt.shape[1:]))

    # Resampling adds noise, which can shift a curved statistic off its own estimate: the
    # interval is widened to hold the estimate.

    value = float(np.asarray(summarise(per_prompt.mean(axis=0))))
    if np.ptp(rows, axis=0).max(initial=0.0) == 0.0:  # nothing varies between prompts
        return Estimate(name, value, value, value, n, population, region)
    interval = stats.bootstrap(
        (np.arange(n),),
        resampled,
        n_resamples=RESAMPLES,
        batch=250,
        confidence_level=expanded_level(n),
        method="percentile",
        rng=np.random.default_rng(_SEED),
    ).confidence_interval
    low, high = min(float(interval.low), value), max(float(interval.high), value)
    return Estimate(name, value, low, high, n, population, region)


def rate_over_layers(
    name: str, log_curve: Floats, layers: Floats, region: Region | None = None
) -> Estimate:
    """Log rate per layer of a curve whose layers are separate, as weights' norms are.

    Theil and Sen's median of pairwise slopes with its interval (scipy's ``theilslopes``):
    a statement about other layers of such a model, not about other prompts. Neighbouring
    layers are alike (correlated by 0 to 0.7 in SmolLM2 and Gemma 3 270M), so that there are
    fewer than there seem to be: the standard error behind the interval is enlarged by it
    (as Hamed and Rao 1998 do for the test of a trend), and Student's t takes the place of
    the normal quantile.
    """
    slope, intercept, *_ = stats.theilslopes(log_curve, layers)
    times = redundancy(log_curve - intercept - slope * layers)
    quantile = stats.t.ppf((1 + LEVEL) / 2, len(layers) - 2) * np.sqrt(times)
    level = 1 - 2 * float(stats.norm.sf(quantile))
    _, _, low, high = stats.theilslopes(log_curve, layers, alpha=min(level, 1 - 1e-12))
    return Estimate(name, float(slope), float(low), float(high), len(layers), LAYERS, region)


def mean_over_layers(name: str, per_layer: Floats, region: Region | None = None) -> Estimate:
    """Mean of numbers of single layers, of which neighbours are alike.

    Student's t with as many layers as there would be if they were independent.
    """
    n, value = len(per_layer), float(per_layer.mean())
    times = redundancy(per_layer - value)
    # Layers that are alike also vary less about their mean than about the true one.
    error = float(per_layer.std()) * np.sqrt(times / n / (1 - times / n))
    half = float(stats.t.ppf((1 + LEVEL) / 2, max(n / times - 1, 1.0))) * error
    return Estimate(name, value, float(value - half), float(value + half), n, LAYERS, region)


def redundancy(residuals: Floats) -> float:
    """How many layers it takes to say as much as one would if all were independent.

    Of a first-order autoregression it is (1 + r) / (1 - r). The correlation r of neighbours
    is corrected for the mean that was taken off, which lowers it by (1 + 3 r) / n (Marriott
    and Pope 1954); it is held between 0 and 0.9, and two layers are left at least.
    """
    n, total = len(residuals), float((residuals**2).sum())
    if total == 0.0:
        return 1.0
    r = float((residuals[1:] * residuals[:-1]).sum()) / total
    r = float(np.clip((n * r + 1) / max(n - 3, 1), 0.0, 0.9))
    return min((1 + r) / (1 - r), n / 2)
