"""Intervals of estimates: over prompts, over shares of tokens, and over layers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats

from residcheck.stats.decision import LAYERS, LEVEL, PROMPTS, Estimate, Region
from residcheck.stats.fits import Floats
from residcheck.stats.resampling import estimate, need_prompts, resampled

_RAISED = 0.3
"""Standard errors by which the correlation of neighbours is raised, see :func:`redundancy`."""
_BATCH = 250
"""Resamples that a statistic is taken of at a time."""


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
        ValueError: fewer than :data:`residcheck.stats.MIN_PROMPTS` prompts.
    """
    n = len(per_prompt)
    summarise = statistic or (lambda rows: rows)
    means = resampled(per_prompt)
    value = float(np.asarray(summarise(per_prompt.mean(axis=0))))
    if np.ptp(per_prompt, axis=0).max(initial=0.0) == 0.0:  # nothing varies between prompts
        return Estimate(name, value, value, value, n, population, region)
    batches = [means[i : i + _BATCH] for i in range(0, len(means), _BATCH)]
    draws = np.concatenate([np.asarray(summarise(batch)) for batch in batches])
    return estimate(name, value, draws, n, region, population)


def share_of_tokens(
    name: str, holds: Floats, trials: int = 1, region: Region | None = None
) -> Estimate:
    """The share of tokens, or of trials of tokens, of which something holds.

    Clopper and Pearson's interval for as many independent trials as would vary as much as
    the prompts' shares do (Korn and Graubard 1998, "Confidence intervals for proportions
    with small expected number of positive counts"), at most those there are. Near 0 and 1
    hardly a prompt differs from the others, and resampling them says nothing.

    Args:
        holds: shares of each token's trials, ``[prompt, position]``; NaN where there is none.
        trials: how many each token has.

    Raises:
        ValueError: fewer than :data:`residcheck.stats.MIN_PROMPTS` prompts.
    """
    shares = np.nanmean(holds, axis=1)
    n, share = len(shares), float(shares.mean())
    need_prompts(n)
    count = int(np.isfinite(holds).sum()) * trials
    variance = float(shares.var(ddof=1)) / n
    effective = float(count)
    if variance > 0:
        quantiles = stats.t.ppf((1 + LEVEL) / 2, [count - 1, n - 1])
        few = share * (1 - share) / variance * (quantiles[0] / quantiles[1]) ** 2
        effective = min(effective, float(few))
    hits, misses = share * effective, (1 - share) * effective
    tail = (1 - LEVEL) / 2
    low = float(stats.beta.ppf(tail, hits, misses + 1)) if hits > 0 else 0.0
    high = float(stats.beta.isf(tail, hits + 1, misses)) if misses > 0 else 1.0
    return Estimate(name, share, low, high, n, PROMPTS, region)


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
    is corrected for the mean that was taken off, which lowers it by (1 + 4 r) / n (Kendall
    1954), and raised by three tenths of its standard error, since r enters the width of an
    interval steeply: intervals of means then cover 93 to 98 % of simulated series of 11 to
    47 layers with correlations of 0 to 0.7 (91 % at 0.82 and 11 layers), where 87 to 97 %
    are covered without. It is held between 0 and 0.9, and two layers are left at least.
    """
    n, total = len(residuals), float((residuals**2).sum())
    if total == 0.0:
        return 1.0
    r = float((residuals[1:] * residuals[:-1]).sum()) / total
    r = (n * r + 1) / max(n - 4, 1)
    r += _RAISED * np.sqrt(max(1 - r**2, 0.0) / n)
    r = float(np.clip(r, 0.0, 0.9))
    return min((1 + r) / (1 - r), n / 2)
