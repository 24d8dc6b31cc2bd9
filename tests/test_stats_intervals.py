"""Intervals over prompts: Hesterberg's formula, the t interval, and coverage by simulation.

Also the decision that an interval and a region make.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from math import erf, inf, nan, sqrt

import numpy as np
import pytest
from scipy import signal, stats

from residcheck.stats import (
    LEVEL,
    MIN_PROMPTS,
    Estimate,
    Outcome,
    Region,
    decide,
    exactly,
    growth_rate,
    outcome_of,
    over_prompts,
    resampling,
)
from residcheck.stats.fits import Floats
from residcheck.stats.intervals import mean_over_layers, share_of_tokens
from residcheck.stats.phase import Phase
from residcheck.stats.resampling import expanded_level

# Ends of a bootstrap interval from 1999 resamples are order statistics: their Monte Carlo
# error is about 0.03 of the interval's length, and so is the skew of a sample of 32.
MONTE_CARLO = 0.08
SIMULATIONS = 300
FEW_RESAMPLES = 499
# Chance that a procedure that covers exactly 95 % falls outside its band.
FALSE_ALARM = 1e-3

Draw = Callable[[np.random.Generator, int], Floats]
# What is drawn, and its true mean.
POPULATIONS: dict[str, tuple[Draw, float]] = {
    "normal": (lambda rng, n: rng.normal(0.0, 0.2, n), 0.0),
    "lognormal": (lambda rng, n: rng.lognormal(0.0, 0.25, n), float(np.exp(0.25**2 / 2))),
}


def assert_covers(hits: int, simulations: int) -> None:
    low, high = stats.binom.interval(1 - FALSE_ALARM, simulations, LEVEL)
    assert low <= hits <= high, f"{hits / simulations:.3f} of {simulations} intervals cover"


# R: round(qt(0.975, c(7, 15, 31, 63)), 6)
@pytest.mark.parametrize(
    ("n", "t"), [(8, 2.364624), (16, 2.131450), (32, 2.039513), (64, 1.998341)]
)
def test_expanded_level_is_hesterbergs(n: int, t: float) -> None:
    """alpha' / 2 = Phi(-sqrt(n / (n - 1)) t); erf gives the normal distribution."""
    quantile = sqrt(n / (n - 1)) * t
    assert expanded_level(n) == pytest.approx(erf(quantile / sqrt(2)))


def test_expanded_level_goes_to_the_level_for_many_prompts() -> None:
    levels = [expanded_level(n) for n in (8, 16, 64, 1024, 10**8)]
    assert levels == sorted(levels, reverse=True)
    assert levels[-1] == pytest.approx(LEVEL)


@pytest.mark.parametrize("seed", range(4))
def test_interval_of_a_mean_is_the_t_interval(seed: int) -> None:
    data = np.random.default_rng(seed).normal(1.0, 0.2, 32)
    oracle = stats.ttest_1samp(data, 0.0).confidence_interval(LEVEL)
    found = over_prompts("mean", data)
    slack = MONTE_CARLO * (oracle.high - oracle.low)
    assert found.value == pytest.approx(data.mean())
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), abs=slack)


@pytest.mark.parametrize("n", [8, 32])
@pytest.mark.parametrize("kind", POPULATIONS)
def test_interval_of_a_mean_covers(kind: str, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "RESAMPLES", FEW_RESAMPLES)
    draw, truth = POPULATIONS[kind]
    rng = np.random.default_rng(n)
    found = (over_prompts("mean", draw(rng, n)) for _ in range(SIMULATIONS))
    assert_covers(sum(e.low <= truth <= e.high for e in found), SIMULATIONS)


def test_interval_of_a_ratio_of_means_covers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Truth in closed form: means 1 and 4 of correlated normal pairs."""
    monkeypatch.setattr(resampling, "RESAMPLES", FEW_RESAMPLES)
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(SIMULATIONS):
        pairs = rng.multivariate_normal([1.0, 4.0], [[0.04, 0.03], [0.03, 0.09]], size=16)
        found = over_prompts("ratio", pairs, lambda rows: rows[..., 0] / rows[..., 1])
        hits += found.low <= 0.25 <= found.high
    assert_covers(hits, SIMULATIONS)


def test_interval_of_a_rate_covers_although_layers_are_a_random_walk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Planted: 1.045 a layer; log norms of a prompt are a cumulative sum of noise."""
    monkeypatch.setattr(resampling, "RESAMPLES", FEW_RESAMPLES)
    rng = np.random.default_rng(0)
    phase = Phase(3, 26, "planted")
    hits = 0
    for _ in range(SIMULATIONS):
        increments = rng.normal(np.log(1.045), 0.05, (16, 30))
        found = growth_rate(increments.cumsum(axis=1), phase)
        hits += found.low <= 1.045 <= found.high
    assert_covers(hits, SIMULATIONS)


def test_share_of_independent_tokens_is_clopper_and_pearsons() -> None:
    """Prompts that do not differ: all 320 tokens are taken for independent."""
    holds = np.tile(np.arange(40) < 30, (8, 1)).astype(float)
    found = share_of_tokens("share", holds)
    assert found.value == pytest.approx(0.75)
    oracle = stats.binomtest(240, 320).proportion_ci(LEVEL, "exact")
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_of_all_or_none_is_not_known_exactly(share: float) -> None:
    """Closed form: the other bound is where none of n is seen in one of forty."""
    holds = np.full((9, 12), share)
    holds[:, 10:] = np.nan  # no token there
    found = share_of_tokens("share", holds, trials=3, region=Region(0.9))
    bound = 1 - 0.025 ** (1 / (9 * 10 * 3))
    expected = (1 - bound, 1.0) if share else (0.0, bound)
    assert (found.low, found.high) == pytest.approx(expected)
    assert found.region == Region(0.9)


def test_share_of_tokens_covers_although_tokens_of_a_prompt_are_alike() -> None:
    """Prompts of 24 tokens, whose own shares vary about 0.97 (a beta distribution)."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(SIMULATIONS):
        own = rng.beta(97 / 4, 3 / 4, size=(16, 1))
        found = share_of_tokens("share", (rng.random((16, 24)) < own).astype(float))
        hits += found.low <= 0.97 <= found.high
    assert_covers(hits, SIMULATIONS)


def test_a_mean_over_layers_that_are_alike_covers() -> None:
    """Autoregressions of 23 layers; without allowance for it a third are missed."""
    rng = np.random.default_rng(0)
    for correlation in (0.0, 0.4, 0.7):
        steps = rng.normal(size=(SIMULATIONS, 60)) * np.sqrt(1 - correlation**2)
        series = signal.lfilter([1.0], [1.0, -correlation], steps, axis=1)[:, -23:]
        found = [mean_over_layers("mean", row) for row in series]
        assert_covers(sum(e.low <= 0 <= e.high for e in found), SIMULATIONS)


def test_statistic_is_taken_of_the_mean_row() -> None:
    pairs = np.random.default_rng(0).lognormal(size=(12, 2))
    found = over_prompts("ratio", pairs, lambda rows: rows[..., 0] / rows[..., 1])
    mean = pairs.mean(axis=0)
    assert found.value == pytest.approx(mean[0] / mean[1])


def test_rows_may_have_any_shape() -> None:
    tables = np.random.default_rng(0).normal(size=(12, 3, 5))
    found = over_prompts("corner", tables, lambda rows: rows[..., 2, 4])
    alone = over_prompts("corner", tables[:, 2, 4])
    assert (found.value, found.low, found.high) == pytest.approx(
        (alone.value, alone.low, alone.high)
    )


def test_same_data_give_the_same_bytes_whatever_the_global_seed() -> None:
    data = np.random.default_rng(0).normal(size=(20, 4))
    texts = set()
    for seed in (1, 2):
        np.random.seed(seed)
        found = over_prompts("mean", data, lambda rows: rows.sum(axis=-1))
        texts.add(json.dumps(asdict(found)))
    assert len(texts) == 1


@pytest.mark.parametrize("n", [0, 1, MIN_PROMPTS - 1])
def test_too_few_prompts_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match=f"{n} prompts; at least {MIN_PROMPTS}"):
        over_prompts("mean", np.arange(float(n)))


def test_fewest_prompts_are_enough() -> None:
    found = over_prompts("mean", np.arange(float(MIN_PROMPTS)))
    assert found.low < found.value < found.high
    assert found.n == MIN_PROMPTS


@pytest.mark.parametrize("shape", [(9,), (9, 4)])
def test_prompts_that_agree_give_an_interval_of_one_point(shape: tuple[int, ...]) -> None:
    found = over_prompts("largest", np.full(shape, 2.5), lambda rows: np.asarray(rows).max())
    assert found.low == found.value == found.high
    assert (found.value, found.low, found.high) == (2.5, 2.5, 2.5)


REGION = Region(1.0, 2.0)
INSIDE, BELOW, ABOVE = (1.2, 1.4), (0.2, 0.9), (2.1, 3.0)


@pytest.mark.parametrize(
    ("interval", "outcome"),
    [
        (INSIDE, Outcome.SUPPORTED),
        ((1.0, 2.0), Outcome.SUPPORTED),
        ((1.5, 1.5), Outcome.SUPPORTED),
        (BELOW, Outcome.REFUTED),
        (ABOVE, Outcome.REFUTED),
        ((2.5, 2.5), Outcome.REFUTED),
        ((0.9, 1.1), Outcome.INCONCLUSIVE),
        ((1.9, 2.1), Outcome.INCONCLUSIVE),
        ((0.0, 9.0), Outcome.INCONCLUSIVE),
        ((0.5, 1.0), Outcome.INCONCLUSIVE),
        ((nan, nan), Outcome.INCONCLUSIVE),
        ((nan, 1.5), Outcome.INCONCLUSIVE),
        ((1.5, inf), Outcome.INCONCLUSIVE),
        ((-inf, 0.5), Outcome.INCONCLUSIVE),
    ],
)
def test_outcome_is_where_the_interval_lies(
    interval: tuple[float, float], outcome: Outcome
) -> None:
    assert outcome_of(part(interval)) is outcome


def part(interval: tuple[float, float], region: Region | None = REGION) -> Estimate:
    return Estimate("part", sum(interval) / 2, *interval, 9, "other prompts", region)


@pytest.mark.parametrize(
    ("region", "value", "outcome"),
    [
        (Region(low=1.0), 1e300, Outcome.SUPPORTED),
        (Region(low=1.0), 0.5, Outcome.REFUTED),
        (Region(high=1.0), -1e300, Outcome.SUPPORTED),
        (Region(high=1.0), 1.5, Outcome.REFUTED),
        (Region(), 0.0, Outcome.SUPPORTED),
    ],
)
def test_a_region_may_be_open(region: Region, value: float, outcome: Outcome) -> None:
    assert outcome_of(exactly("part", value, 9, region)) is outcome


def test_an_infinite_bound_decides_nothing() -> None:
    assert outcome_of(part((1.5, inf), Region(low=1.0))) is Outcome.INCONCLUSIVE


def test_an_estimate_without_a_region_has_no_outcome() -> None:
    with pytest.raises(ValueError, match="part has no region"):
        outcome_of(part(INSIDE, None))


@pytest.mark.parametrize(
    ("intervals_", "outcome"),
    [
        ([INSIDE, INSIDE], Outcome.SUPPORTED),
        ([INSIDE, (0.9, 1.1)], Outcome.INCONCLUSIVE),
        ([INSIDE, BELOW], Outcome.REFUTED),
        ([(0.9, 1.1), BELOW], Outcome.REFUTED),
        ([ABOVE, (nan, nan), INSIDE], Outcome.REFUTED),
        ([INSIDE, (nan, nan)], Outcome.INCONCLUSIVE),
    ],
)
def test_one_refuted_part_refutes_and_one_open_part_leaves_open(
    intervals_: list[tuple[float, float]], outcome: Outcome
) -> None:
    assert decide(*map(part, intervals_)).outcome is outcome
    assert decide(*map(part, reversed(intervals_))).outcome is outcome


def test_parts_that_are_only_reported_decide_nothing() -> None:
    reported = part(BELOW, None)
    decision = decide(reported, part(INSIDE), note="seen")
    assert decision.outcome is Outcome.SUPPORTED
    assert decision.estimates[0] is reported
    assert decision.note == "seen"


def test_notes_are_joined_newest_first() -> None:
    decision = decide(part(INSIDE))
    assert decision.with_note("a").note == "a"
    assert decision.with_note("a").with_note("b").note == "b; a"


@pytest.mark.parametrize(
    ("region", "text"),
    [
        (Region(1.04, 1.05), "1.04 to 1.05"),
        (Region(low=2.0), "at least 2"),
        (Region(high=0.5), "at most 0.5"),
    ],
)
def test_region_in_words(region: Region, text: str) -> None:
    assert str(region) == text


def test_estimate_in_words_has_an_interval_unless_exact() -> None:
    assert str(part((1.0, 2.0))) == "part = 1.5 [1, 2]"
    assert str(exactly("part", 1.5, 3, Region())) == "part = 1.5"
