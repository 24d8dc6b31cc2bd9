"""What becomes of what was written, and losses over horizons, with a planted effect."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from proof.rules_growth import window_of
from proof.rules_weights import streams
from proof.simulate import Drawn, Rng, Rows, correlated, deviations, heavy, tokens_of
from scipy import signal

from residcheck.stats.fits import Floats
from residcheck.stats.horizon_rules import MARGIN
from residcheck.stats.structure_rules import TRACE, early_writes, first_read

HEADS, NEURONS = 9, 200
MANY = 1600
"""Prompts that stand for all of them where a statistic is of single prompts."""
_LIFT = (0.12**2 + 0.1**2) / 2
"""By how much the log of a lognormal height's mean is above the mean of its log."""


def overshadowed(rng: Rng, prompts: int, layers: int, times: float) -> Drawn:
    """Log shares of early writes fall by ``times`` the log of a half by the window's end."""
    curve, post, _ = streams(rng, prompts, layers)
    phase = window_of(post)
    writes = np.arange(1 + 2 * layers)
    read = np.array([first_read(w) for w in writes])
    age = np.arange(layers) - read[:, None]
    ages = [phase.last - first_read(w) for w in early_writes(phase)]
    mean = times * np.log(0.5) / np.mean(ages) * age
    there = age >= 0
    # One walk of the stream for all writes of a prompt, which divides them all.
    own = -deviations(rng, (prompts, layers), 0.0, 0.01, 0.012)[:, None]
    rows = (
        mean
        + own
        - own[..., np.minimum(read, layers - 1)].transpose(0, 2, 1)
        + heavy(rng, (prompts, *mean.shape), 0.01)
    )
    return Drawn(
        tokens_of({"resid_post_norm": post})
        | {"write_share": np.where(there, np.exp(rows - 2), np.nan)},
        lambda: (
            tokens_of({"resid_post_norm": curve[None]})
            | {"write_share": np.where(there, np.exp(mean - 2), np.nan)[None]}
        ),
    )


def kept_of(rng: Rng, prompts: int, means: Floats, own: float = 1.0) -> Floats:
    """Per prompt, around the mean of each write; what it has in common is half as large."""
    common = 0.5 * own * rng.normal(size=(prompts, 1, 1))
    return np.asarray(means + common + heavy(rng, (prompts, *means.shape), own))


def cancelled(rng: Rng, prompts: int, layers: int, kept: float) -> Drawn:
    """Of early writes the median keeps ``kept`` of its direction; they differ by about 1."""
    curve, post, _ = streams(rng, prompts, layers)
    phase = window_of(post)
    early = early_writes(phase)
    there = np.array([first_read(w) for w in range(1 + 2 * layers)])[:, None] <= np.arange(layers)
    means = rng.normal(size=there.shape)
    means += kept - np.median(means[early, phase.last])
    share = np.where(there, 0.05, np.nan)
    rows = np.where(there, kept_of(rng, prompts, means), np.nan)
    return Drawn(
        tokens_of({"resid_post_norm": post})
        | {"write_kept": rows, "write_share": np.tile(share, (prompts, 1, 1))},
        lambda: (
            tokens_of({"resid_post_norm": curve[None]})
            | {"write_kept": np.where(there, means, np.nan)[None], "write_share": share[None]}
        ),
    )


def persisting(rng: Rng, prompts: int, layers: int, kept: float) -> Drawn:
    """Of all pairs the median keeps ``kept``; a head takes away 2 % of the stream."""
    return _persisting(rng, prompts, layers, kept, 0.02, 0.0)


def removing(rng: Rng, prompts: int, layers: int, removed: float) -> Drawn:
    """Everything is kept; one head takes away ``removed`` traces, all others write along."""
    return _persisting(rng, prompts, layers, 1.0, removed * TRACE, TRACE)


def without_removers(rng: Rng, prompts: int, layers: int, removed: float) -> Drawn:
    """Everything is kept, and every head and neuron takes away ``removed`` traces."""
    return _persisting(rng, prompts, layers, 1.0, removed * TRACE, -removed * TRACE)


def _persisting(
    rng: Rng, prompts: int, layers: int, kept: float, first: float, others: float
) -> Drawn:
    """``first`` is what one head takes away, ``others`` the mean of all other units."""
    read = np.array([first_read(w) for w in range(1 + 2 * layers)])[:, None]
    there, touched = read <= np.arange(layers), read < np.arange(layers)
    means = rng.normal(size=there.shape)
    means += kept - np.median(means[touched])
    means[there & ~touched] = 1.0
    units = np.full((HEADS, layers), others)
    units[0, 0] = -first
    # a head's share varies by 0.002 between prompts in SmolLM2-135M, 0.01 in Gemma 3 270M
    heads = units + heavy(rng, (prompts, HEADS, layers), 0.004)
    neurons = others + heavy(rng, (prompts, NEURONS, layers), 0.001)
    rows: Rows = {
        "write_kept": np.where(there, kept_of(rng, prompts, means), np.nan),
        "write_removal": np.zeros((prompts, len(means))),
        "head_projection": heads,
        "neuron_projection": neurons.mean(axis=0),
        "neuron_projection_error": neurons.std(axis=0, ddof=1) / np.sqrt(prompts),
    }
    everyone = {
        "write_kept": np.where(there, means, np.nan)[None],
        "write_removal": np.zeros((1, len(means))),
        "head_projection": units[None],
    }
    return Drawn(rows, lambda: everyone)


def kurtosis(rng: Rng, prompts: int, layers: int, ratio: float) -> Drawn:
    """Kurtosis is ``ratio`` times that in a rotated basis, which is 3."""
    straying = 0.5 * rng.normal(size=layers)
    rotated = np.full(layers, np.log(3.0))
    standard = rotated + np.log(ratio) + straying - straying.mean()

    def rows(one: Floats, other: Floats) -> Rows:
        names = ("resid_post_kurtosis", "resid_post_kurtosis_rotated")
        return tokens_of(dict(zip(names, (one, other), strict=True)))

    sample = (
        standard + deviations(rng, (prompts, layers), 0.1, 0.01, 0.1),
        rotated + deviations(rng, (prompts, layers), 0.01, 0.0, 0.02),
    )
    return Drawn(rows(*sample), lambda: rows(standard[None], rotated[None]))


def connected(rng: Rng, prompts: int, layers: int, mean: float) -> Drawn:
    """Compositions of writes and reads, of which each write has its own mean.

    Writes' means vary by 0.05 in both models; those of neighbouring layers are correlated by
    0.82 in SmolLM2-135M and by 0.68 in Gemma 3 270M.
    """
    own = np.stack([correlated(rng, (layers,), 0.05, 0.7) for _ in range(2)], axis=1).reshape(-1)
    scores = mean + own[:, None] + 0.05 * rng.normal(size=(2 * layers, 2 * layers))
    later = np.triu(np.ones_like(scores, dtype=bool), k=1)
    everyone = mean + 1e-9 * (np.arange(2 * layers) - layers)  # rank correlations need ranks
    loss = {"loss": np.zeros((prompts, 2))}
    return Drawn(
        {"virtual_weights": np.where(later, scores, np.nan)} | loss,
        lambda: {"virtual_weights": np.where(later, everyone, np.nan)} | loss,
    )


def losses(rng: Rng, prompts: int, excess: Floats, jagged: float, exact: bool) -> Drawn:
    """Losses over horizons: the model's own curve is jagged, prompts differ in its height.

    Real ones stray by 10 % and more; prompts' heights by 12 %, and within a prompt by 10 %,
    neighbouring horizons correlated by 0.8. ``exact``: the population is its mean, rather
    than many prompts, of which a mean of shares can be taken.
    """
    curve = excess * np.exp(jagged * rng.normal(size=len(excess)))
    curve[-1] = 0.0

    def rows(count: int) -> Rows:
        noise = rng.normal(size=(count, len(excess) + 8)) * np.sqrt(1 - 0.8**2)
        within = signal.lfilter([1.0], [1.0, -0.8], noise)[:, 8:]
        height = np.exp(0.12 * rng.normal(size=(count, 1)) + 0.1 * within - _LIFT)
        level = rng.normal(size=count)
        baseline = 3 + 0.4 * (level - level.mean() if count == MANY else level)
        return _of_losses(baseline[:, None] + curve * height, baseline)

    mean = _of_losses((3 + curve)[None], np.array([3.0]))
    return Drawn(rows(prompts), lambda: mean if exact else rows(MANY))


def _of_losses(loss: Floats, baseline: Floats) -> Rows:
    """As measured: position 0 is BOS, which nothing predicts."""
    return {"horizon_loss": _late(loss[:, None]), "loss": _late(baseline[:, None])}


def _late(values: Floats) -> Floats:
    return np.concatenate([np.full_like(values[:, :1], np.nan), values], axis=1)


def _decay(shape: Callable[[Floats, float], Floats], jagged: float) -> Callable[..., Drawn]:
    def drawn(rng: Rng, prompts: int, layers: int, effect: float) -> Drawn:
        k = np.arange(1, layers + 1, dtype=np.float64)
        return losses(rng, prompts, shape(k, effect), jagged, exact=False)

    return drawn


exponentials = _decay(lambda k, tau: 6 * np.exp(-k / (tau * len(k))), 0.1)
sigmoids = _decay(lambda k, at: 6 / (1 + np.exp((k - at * len(k)) / (len(k) / 12))), 0.1)
powers = _decay(lambda k, p: 6 * k**-p, 0.1)


def horizons(rng: Rng, prompts: int, layers: int, share: float) -> Drawn:
    """The mean excess is a margin one layer before ``share`` of the depth, and falls by a
    factor e over a twelfth of it."""
    k = np.arange(1, layers + 1, dtype=np.float64)
    excess = MARGIN * np.exp((share * layers - 1 - k) / (layers / 12))
    return losses(rng, prompts, excess, 0.0, exact=True)


def controlled(rng: Rng, prompts: int, layers: int, vanishes: float) -> Drawn:
    """A share of the excess below the middle vanishes when it is enforced from there on."""
    k = np.arange(1, layers + 1, dtype=np.float64)
    free = losses(rng, prompts, 6 * np.exp(-k / (layers / 4)), 0.1, exact=True)
    middle = layers // 2

    def held(rows: Rows, own: Floats) -> Rows:
        baseline = rows["loss"][:, 1:, None]
        excess = (rows["horizon_loss"][:, 1:] - baseline)[..., :middle]
        loss = baseline + (1 - vanishes) * excess * (1 + own)
        return rows | {"horizon_loss_from_middle": _late(loss)}

    own = correlated(rng, (prompts, 1, middle), 0.06, 0.8)
    everyone = free.population
    return Drawn(held(free.sample, own), lambda: held(everyone(), np.zeros(middle)))
