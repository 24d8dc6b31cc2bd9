"""The rules of families E and G, each way, on data whose truth is planted.

Expected numbers are closed forms, or come from scipy's t tests and statsmodels' false
discovery rates.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests  # type: ignore[import-untyped]

from residcheck.stats import (
    Outcome,
    Phase,
    bottleneck,
    connected_beyond_chance,
    overshadowed,
    overshadowed_not_cancelled,
    removers,
    writes_persist,
)
from residcheck.stats.fits import Floats
from residcheck.stats.structure_rules import early_writes, first_read, heavy_tailed

PROMPTS, LAYERS = 24, 20
PHASE = Phase(2, 17, "planted")
SUPPORTED, REFUTED, INCONCLUSIVE = Outcome.SUPPORTED, Outcome.REFUTED, Outcome.INCONCLUSIVE
DEPTH = np.arange(LAYERS, dtype=np.float64)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


WRITES = 1 + 2 * LAYERS


def of_writes(values: Floats | float) -> Floats:
    """``[prompt, write, layer]``, NaN where the stream has no such write yet."""
    there = np.arange(WRITES)[:, None] <= 2 * np.arange(LAYERS)
    full = np.broadcast_to(values, (PROMPTS, WRITES, LAYERS))
    return np.where(there, full, np.nan)


def test_writes_and_the_streams_that_hold_them() -> None:
    """Of layers 2 to 9, the first half of the phase; resid_pre of layer n holds all of n-1."""
    assert early_writes(PHASE) == list(range(5, 21))
    assert [first_read(w) for w in (0, 1, 2, 3, 4, 40)] == [0, 1, 1, 2, 2, 20]


@pytest.mark.parametrize(
    ("rate", "noise", "outcome"),
    [
        (-0.1, 0.001, SUPPORTED),
        (0.0, 0.001, REFUTED),
        (0.05, 0.001, REFUTED),
        (-0.01, 0.001, REFUTED),
        (-0.063, 0.03, INCONCLUSIVE),
    ],
)
def test_overshadowed(
    rng: np.random.Generator, rate: float, noise: float, outcome: Outcome
) -> None:
    """At 0.01 a layer the share falls, but not to half in the phase's 15 layers."""
    own = rate + noise * stats.zscore(rng.normal(size=PROMPTS))
    age = DEPTH - np.array([first_read(w) for w in range(WRITES)])[:, None]
    decision = overshadowed(of_writes(np.exp(own[:, None, None] * age)), PHASE)
    mean_age = np.mean([PHASE.last - first_read(w) for w in early_writes(PHASE)])
    slope, left = decision.estimates
    assert (slope.value, left.value) == pytest.approx((rate, np.exp(rate * mean_age)))
    assert decision.outcome is outcome


@pytest.mark.parametrize(
    ("cancelled", "noise", "outcome"),
    [(0.0, 0.1, SUPPORTED), (0.3, 0.1, SUPPORTED), (0.7, 0.1, REFUTED), (0.5, 0.3, INCONCLUSIVE)],
)
def test_overshadowed_not_cancelled(
    rng: np.random.Generator, cancelled: float, noise: float, outcome: Outcome
) -> None:
    """This share of the writes is cancelled; at a half, prompts differ in what is left."""
    kept = np.where(rng.permutation(WRITES) < cancelled * WRITES, 0.0, 1.0)[:, None]
    if outcome is INCONCLUSIVE:
        kept = 0.5 + noise * stats.zscore(rng.normal(size=PROMPTS))[:, None, None]
    decision = overshadowed_not_cancelled(of_writes(0.1), of_writes(kept), PHASE)
    assert decision.outcome is outcome
    assert decision.estimates[1].value == pytest.approx(0.1)


def removers_of(scores: Floats) -> tuple[Floats, Floats, int]:
    """Mean, standard error and number of prompts of ``[prompt, index, layer]``."""
    return scores.mean(axis=0), stats.sem(scores, axis=0), len(scores)


def test_removers_are_those_of_scipys_t_test_and_statsmodels_rates(
    rng: np.random.Generator,
) -> None:
    scores = rng.normal(size=(PROMPTS, 30, 8))
    scores[:, 3, 2] -= 3.0
    scores[:, 5, :4] -= 1.0
    found = removers("head", *removers_of(scores)).found
    p = stats.ttest_1samp(scores, 0, alternative="less").pvalue
    sure = multipletests(p.ravel(), alpha=0.05, method="fdr_bh")[0].reshape(p.shape)
    assert {(layer, i) for layer, i, _ in found} == {(n, i) for i, n in np.argwhere(sure)}
    assert found[0][:2] == (2, 3)
    assert all(a[2] <= b[2] for a, b in pairwise(found))


def test_removers_of_noise_are_rare_and_false_ones_among_true_few(
    rng: np.random.Generator,
) -> None:
    """Nothing removes: any is found in at most about 5 % of repeats. A tenth removes: of
    those found, at most about 5 % are false, on average."""
    nothing, shares = [], []
    for _ in range(300):
        scores = rng.normal(size=(PROMPTS, 20, 5))
        nothing.append(bool(removers("head", *removers_of(scores)).found))
        scores[:, :2] -= 1.2
        found = removers("head", *removers_of(scores)).found
        shares.append(sum(i >= 2 for _, i, _ in found) / max(1, len(found)))
    assert np.mean(nothing) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)
    assert np.mean(shares) <= 0.05 + 3 * np.std(shares) / np.sqrt(300)


def test_units_that_never_write_remove_nothing() -> None:
    zeros = np.zeros((PROMPTS, 4, 3))
    assert str(removers("head", *removers_of(zeros))) == "no head removes"


@pytest.mark.parametrize(
    ("kept", "found", "outcome"),
    [
        (0.9, True, SUPPORTED),
        (0.2, True, REFUTED),
        (0.9, False, REFUTED),
        (0.5, True, INCONCLUSIVE),
    ],
)
def test_writes_persist(
    rng: np.random.Generator, kept: float, found: bool, outcome: Outcome
) -> None:
    """Of pairs that a later write could have touched; at a write's first read it is whole."""
    per_prompt = kept + 0.1 * stats.zscore(rng.normal(size=PROMPTS))[:, None, None]
    table = of_writes(per_prompt)
    for write in range(WRITES - 2):
        table[:, write, first_read(write)] = 1.0
    scores = rng.normal(-9 if found else 9, 1, (PROMPTS, 4, 3))
    decision = writes_persist(table, [removers("head", *removers_of(scores))])
    assert decision.outcome is outcome
    assert decision.estimates[0].value == pytest.approx(kept)


def test_pairs_begin_one_layer_after_a_writes_first_read() -> None:
    """The median over all pairs of a write and a stream that a later layer could change."""
    table = of_writes(np.linspace(0, 1, WRITES * LAYERS).reshape(WRITES, LAYERS))
    pairs = [(w, n) for w in range(WRITES) for n in range(LAYERS) if n > first_read(w)]
    right = np.median([table[0, w, n] for w, n in pairs])
    assert writes_persist(table, []).estimates[0].value == pytest.approx(right)


@pytest.mark.parametrize(
    ("score", "spread", "outcome"),
    [(1.3, 0.1, SUPPORTED), (0.8, 0.1, REFUTED), (1.0, 0.1, INCONCLUSIVE)],
)
def test_connected_beyond_chance(
    rng: np.random.Generator, score: float, spread: float, outcome: Outcome
) -> None:
    later = np.triu(np.ones((2 * LAYERS, 2 * LAYERS)), k=1)
    own = score + spread * stats.zscore(rng.normal(size=2 * LAYERS - 2))
    table = np.where(later, np.append(own, [score, score])[:, None], np.nan)
    decision = connected_beyond_chance(table)
    assert decision.outcome is outcome
    assert decision.estimates[0].value == pytest.approx(score)


@pytest.mark.parametrize(
    ("ratio", "spread", "outcome"),
    [(3.0, 0.1, SUPPORTED), (1.0, 0.1, REFUTED), (2.0, 0.5, INCONCLUSIVE)],
)
def test_heavy_tailed(
    rng: np.random.Generator, ratio: float, spread: float, outcome: Outcome
) -> None:
    own = np.log(3 * ratio) + spread * stats.zscore(rng.normal(size=PROMPTS))
    standard = np.broadcast_to(own[:, None], (PROMPTS, LAYERS))
    rotated = np.full((PROMPTS, LAYERS), np.log(3.0))
    decision = heavy_tailed(standard, rotated, np.full((PROMPTS, LAYERS), 500.0))
    assert decision.outcome is outcome
    assert [e.value for e in decision.estimates] == pytest.approx([ratio, 3.0])
    assert "500" in decision.note


@pytest.mark.parametrize(
    ("layers", "width", "outcome"),
    [(50, 4, SUPPORTED), (5, 4, REFUTED), (2, 4, REFUTED), (6, 4, SUPPORTED), (20, 1, SUPPORTED)],
)
def test_bottleneck(layers: int, width: int, outcome: Outcome) -> None:
    """At 50 layers and the usual width: 25 times 4 is the published 100."""
    decision = bottleneck(layers, 768, width * 768)
    assert decision.outcome is outcome
    before, after = (e.value for e in decision.estimates)
    assert before + after == pytest.approx(layers * width)
    assert before == layers // 2 * width
