"""The rules of families C and D and the toy, each way, on data whose truth is planted.

Log curves are straight lines with noise between prompts; expected numbers are closed
forms, or order statistics.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats

from residcheck.stats import (
    Decision,
    Outcome,
    Phase,
    frobenius_theorem,
    larger_than_real,
    negligible_beside,
    outcome_of,
    precision_of,
    random_activation,
    random_mlp,
    reading_and_writing,
    resampled_like_real,
    slower_than_stream,
    toy_example,
    weights_track,
)
from residcheck.stats.fits import Floats
from residcheck.stats.intervals import mean_over_layers, rate_over_layers

PROMPTS, LAYERS, DRAWS = 24, 20, 256
PHASE = Phase(2, 17, "planted")
SUPPORTED, REFUTED, INCONCLUSIVE = Outcome.SUPPORTED, Outcome.REFUTED, Outcome.INCONCLUSIVE
DEPTH = np.arange(LAYERS, dtype=np.float64)
RATE = 0.1  # of the stream and of what is written; rates within 0.011 of it are the same


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def prompts(rng: np.random.Generator, rate: float, noise: float = 0.001, at: float = 0) -> Floats:
    """Log curves ``[prompt, layer]`` of just this rate on average; own rates spread by noise."""
    own = rate + noise * stats.zscore(rng.normal(size=(PROMPTS, 1)))
    return np.asarray(at + own * DEPTH)


def draws(rng: np.random.Generator, curve: Floats, spread: float = 0.1) -> Floats:
    return np.asarray(curve + spread * rng.normal(size=(DRAWS, LAYERS)))


def refuted(decision: Decision) -> list[str]:
    return [e.name for e in decision.estimates if e.region and outcome_of(e) is REFUTED]


@pytest.mark.parametrize(
    ("rate", "noise", "outcome"),
    [
        (0.1, 0.001, SUPPORTED),
        (0.13, 0.001, REFUTED),
        (0.0, 0.001, REFUTED),
        (0.111, 0.001, INCONCLUSIVE),
        (0.1, 0.08, INCONCLUSIVE),
    ],
)
def test_weights_track(
    rng: np.random.Generator, rate: float, noise: float, outcome: Outcome
) -> None:
    output = prompts(rng, RATE, noise)
    assert weights_track(rate * DEPTH, output, PHASE).outcome is outcome


def test_weights_track_reports_what_it_does_not_judge(rng: np.random.Generator) -> None:
    """The correlation of logs is near 1 though the rates are far apart; the ratio of two
    lines strays as a line does: its slope times the spread of the layers."""
    decision = weights_track(0.05 * DEPTH, prompts(rng, RATE, 0.0), PHASE)
    _, correlation, spread = decision.estimates
    assert decision.outcome is REFUTED
    assert correlation.value == pytest.approx(1.0)
    assert spread.value == pytest.approx(0.05 * np.std(PHASE.layers))


@pytest.mark.parametrize(
    ("ratio", "late", "outcome"),
    [(0.01, 5.0, SUPPORTED), (0.31, 0.31, SUPPORTED), (0.33, 0.01, REFUTED), (5.0, 5.0, REFUTED)],
)
def test_negligible_beside(
    rng: np.random.Generator, ratio: float, late: float, outcome: Outcome
) -> None:
    """0.32 is where a vector across lengthens a sum by 5 %; two of 20 layers are late."""
    output = prompts(rng, RATE, 1e-5)
    bias = RATE * DEPTH + np.log(np.where(DEPTH < 18, ratio, late))
    decision = negligible_beside(bias, output)
    assert decision.outcome is outcome
    assert f"last layer {late:.2g}" in decision.note


def test_a_bias_that_half_of_the_prompts_call_small_is_undecided(rng: np.random.Generator) -> None:
    output = prompts(rng, RATE, 0.0, np.log(1 / 0.32)) + rng.normal(0, 0.3, (PROMPTS, 1))
    assert negligible_beside(RATE * DEPTH, output).outcome is INCONCLUSIVE


@pytest.mark.parametrize(
    ("factor", "published", "outcome"),
    [
        (1.2, None, SUPPORTED),
        (0.8, None, REFUTED),
        (1.0, None, INCONCLUSIVE),
        (5.2, 5.0, SUPPORTED),
        (5.7, 5.0, REFUTED),
        (4.3, 5.0, REFUTED),
        (4.5, 5.0, INCONCLUSIVE),
    ],
)
def test_larger_than_real(
    rng: np.random.Generator, factor: float, published: float | None, outcome: Outcome
) -> None:
    real = prompts(rng, RATE, 0.0) + 0.05 * stats.norm.ppf((np.arange(PROMPTS)[:, None] + 0.5) / 24)
    estimate = larger_than_real("ratio", draws(rng, RATE * DEPTH + np.log(factor)), real, PHASE)
    if published is not None:
        table = draws(rng, RATE * DEPTH + np.log(factor))
        estimate = larger_than_real("ratio", table, real, PHASE, published)
    assert estimate.value == pytest.approx(factor, rel=0.01)
    assert outcome_of(estimate) is outcome


def test_how_well_draws_fix_a_mean_is_their_standard_error(rng: np.random.Generator) -> None:
    table = draws(rng, DEPTH, 0.2)
    table[:, 4] = 4 + 0.5 * stats.zscore(table[:, 4])
    assert precision_of(table) == f"256 draws, each layer's mean known to {np.expm1(0.5 / 16):.1%}"


RATES, RATIO = "log rate on random inputs minus mlp_out's", "ratio to mlp_out"


@pytest.mark.parametrize(
    ("rate", "factor", "wrong"),
    [(0.1, 2.0, []), (0.1, 0.5, [RATIO]), (0.06, 3.0, [RATES]), (0.14, 0.2, [RATES, RATIO])],
)
def test_random_mlp(rng: np.random.Generator, rate: float, factor: float, wrong: list[str]) -> None:
    table = draws(rng, rate * DEPTH + np.log(factor), 0.02)
    decision = random_mlp(table, prompts(rng, RATE), PHASE)
    assert refuted(decision) == wrong
    assert decision.outcome is (REFUTED if wrong else SUPPORTED)


def test_random_mlp_is_undecided_at_the_margin(rng: np.random.Generator) -> None:
    table = draws(rng, 0.111 * DEPTH + 1, 0.0)
    assert random_mlp(table, prompts(rng, RATE, 0.002), PHASE).outcome is INCONCLUSIVE


@pytest.mark.parametrize(
    ("rate", "factor", "published", "outcome"),
    [
        (0.02, 4.0, None, SUPPORTED),
        (0.02, 4.0, 4.0, SUPPORTED),
        (0.02, 2.0, 4.0, REFUTED),
        (0.02, 0.5, None, REFUTED),
        (-0.02, 4.0, None, REFUTED),
        (0.0, 4.0, None, INCONCLUSIVE),
    ],
)
def test_random_activation(
    rng: np.random.Generator, rate: float, factor: float, published: float | None, outcome: Outcome
) -> None:
    """The factor is that of the phase's middle, where all curves meet but for it."""
    middle = PHASE.layers.mean()
    table = draws(rng, rate * (DEPTH - middle) + np.log(factor) - 3)
    real = prompts(rng, 0.02) - 0.02 * middle - 3
    assert random_activation(table, real, PHASE, published).outcome is outcome


@pytest.mark.parametrize(
    ("resampled", "gaussian", "noise", "outcome"),
    [
        (0.05, 1.0, 0.0, SUPPORTED),
        (-0.05, -1.0, 0.0, SUPPORTED),
        (0.8, 1.0, 0.0, REFUTED),
        (0.0, 0.02, 0.0, REFUTED),
        (0.5, 1.0, 0.2, INCONCLUSIVE),
    ],
)
def test_resampled_like_real(
    rng: np.random.Generator, resampled: float, gaussian: float, noise: float, outcome: Outcome
) -> None:
    real = prompts(rng, 0.02) + noise * stats.zscore(rng.normal(size=PROMPTS))[:, None]
    near, far_off = (draws(rng, 0.02 * DEPTH + shift, 0.01) for shift in (resampled, gaussian))
    decision = resampled_like_real(near, far_off, real, PHASE)
    assert decision.outcome is outcome
    if not noise:
        far = decision.estimates[1].value
        assert far == pytest.approx(abs(gaussian), abs=0.01)


@pytest.mark.parametrize(
    ("rates", "noise", "wrong"),
    [((0.0, 0.05, -0.1), 0.001, []), ((0.0, 0.1), 0.001, ["b"]), ((0.2, 0.095), 0.001, ["a", "b"])],
)
def test_slower_than_stream(
    rng: np.random.Generator, rates: tuple[float, ...], noise: float, wrong: list[str]
) -> None:
    curves: dict[str, Floats] = {"abc"[i]: rate * DEPTH for i, rate in enumerate(rates)}
    decision = slower_than_stream(curves, prompts(rng, RATE, noise), PHASE)
    assert refuted(decision) == [f"log rate of {name} minus the stream's" for name in wrong]
    assert decision.outcome is (REFUTED if wrong else SUPPORTED)


def test_slower_by_just_the_margin_is_undecided(rng: np.random.Generator) -> None:
    stream = prompts(rng, RATE, 0.01)
    assert slower_than_stream({"W": 0.089 * DEPTH}, stream, PHASE).outcome is INCONCLUSIVE


def test_rates_over_layers_are_medians_of_pairwise_slopes(rng: np.random.Generator) -> None:
    """With the interval of Sen (1968): order statistics of the pairwise slopes, of ranks
    half of their number minus and plus z times Kendall's standard deviation of their sum;
    t for z, and no correction where neighbours lie on opposite sides of the line."""
    y = 0.03 * DEPTH + np.abs(rng.normal(0, 0.1, LAYERS)) * (-1.0) ** DEPTH
    pairs = [(y[j] - y[i]) / (j - i) for j in range(LAYERS) for i in range(j)]
    ordered, number = np.sort(pairs), len(pairs)
    half_width = stats.t.ppf(0.975, LAYERS - 2) * np.sqrt(
        LAYERS * (LAYERS - 1) * (2 * LAYERS + 5) / 18
    )
    found = rate_over_layers("rate", y, DEPTH)
    assert found.value == pytest.approx(np.median(pairs))
    assert found.low == pytest.approx(ordered[round((number - half_width) / 2) - 1])
    assert found.high == pytest.approx(ordered[round((number + half_width) / 2)])
    assert (found.n, found.population) == (LAYERS, "other layers")


def test_one_odd_layer_does_not_move_a_rate_over_layers() -> None:
    curve = 0.03 * DEPTH
    curve[-1] += 4
    assert rate_over_layers("rate", curve, DEPTH).value == pytest.approx(0.03)


def test_intervals_over_layers_hold_the_rate_as_often_as_they_say(
    rng: np.random.Generator,
) -> None:
    found = [
        rate_over_layers("rate", 0.02 * DEPTH + rng.normal(0, 0.2, LAYERS), DEPTH)
        for _ in range(600)
    ]
    assert 0.93 <= np.mean([e.low <= 0.02 <= e.high for e in found]) <= 0.99


@pytest.mark.parametrize("alike", [0.4, 0.6])
def test_intervals_over_layers_allow_for_neighbours_that_are_alike(
    rng: np.random.Generator, alike: float
) -> None:
    """Sen's own interval would hold the rate in 85 and 75 % of these."""
    found = []
    for _ in range(400):
        noise = rng.normal(size=LAYERS + 20)
        for n in range(1, len(noise)):
            noise[n] += alike * noise[n - 1]
        curve = 0.02 * DEPTH + 0.1 * noise[20:]
        found.append((rate_over_layers("rate", curve, DEPTH), mean_over_layers("", noise[20:])))
    assert np.mean([rate.low <= 0.02 <= rate.high for rate, _ in found]) >= 0.92
    assert np.mean([mean.low <= 0 <= mean.high for _, mean in found]) >= 0.90


def test_layers_that_do_not_vary_need_no_interval() -> None:
    found = mean_over_layers("mean", np.full(12, 1.5))
    assert (found.value, found.low, found.high) == (1.5, 1.5, 1.5)


@pytest.mark.parametrize(
    ("reading", "writing", "noise", "outcome"),
    [
        ((0.0, 0.02), (0.1, 0.08), 0.01, SUPPORTED),
        ((0.0, 0.035), (0.1, 0.06), 0.001, SUPPORTED),  # half of their mean is 0.04
        ((0.0, 0.045), (0.1, 0.06), 0.001, REFUTED),
        ((0.0, 0.07), (0.1, 0.08), 0.01, REFUTED),
        ((-0.07, 0.0), (0.1, 0.08), 0.01, REFUTED),
        ((0.0, 0.0), (0.1, -0.05), 0.01, REFUTED),
        ((0.0, 0.0), (0.1, 0.01), 0.3, INCONCLUSIVE),
        ((0.0, 0.05), (0.1, 0.1), 0.1, INCONCLUSIVE),
    ],
)
def test_reading_and_writing(
    rng: np.random.Generator,
    reading: tuple[float, ...],
    writing: tuple[float, ...],
    noise: float,
    outcome: Outcome,
) -> None:
    wiggle = noise * np.resize([1.0, -1.0, 1.0, -1.0, 0.5, -0.5], LAYERS)
    read: dict[str, Floats] = {f"R{i}": r * DEPTH + wiggle for i, r in enumerate(reading)}
    write: dict[str, Floats] = {f"W{i}": r * DEPTH + wiggle for i, r in enumerate(writing)}
    decision = reading_and_writing(read, write, {"W_Q": 9 * DEPTH})
    assert decision.outcome is outcome
    assert decision.estimates[-1].region is None


def chi_squared(rng: np.random.Generator, layers: int = 12) -> Floats:
    """What ``|Wx|^2`` over its expectation is for a matrix of ten equal singular values."""
    return np.asarray(rng.chisquare(10, size=(256, 7, layers)) / 10)


def test_the_theorem_holds_for_right_norms_and_fails_for_others(rng: np.random.Generator) -> None:
    """For a norm 5 % too small ratios are a tenth too large: 256 draws know a mean of this
    spread, sqrt(2 / 10), to 2.8 %; the bound is near five of that."""
    right = chi_squared(rng)
    wrong = right.copy()
    wrong[:, 3, 5] *= 1.05**2
    wrong[:, 3, 6] *= 1.1**2
    assert frobenius_theorem({"Gaussian": right}).outcome is SUPPORTED
    assert frobenius_theorem({"Gaussian": right, "normalised": wrong}).outcome is REFUTED


def test_a_matrix_scaled_by_a_twentieth_is_found_where_it_is_wide(
    rng: np.random.Generator,
) -> None:
    """The more singular values share the norm, the less a draw's ratio spreads."""
    ratios = rng.chisquare(400, size=(256, 7, 12)) / 400
    assert frobenius_theorem({"x": ratios}).outcome is SUPPORTED
    ratios[:, 3, 5] *= 1.05**2
    decision = frobenius_theorem({"x": ratios})
    assert decision.outcome is REFUTED
    off = abs(ratios[:, 3, 5].mean() - 1) / stats.sem(ratios[:, 3, 5])
    assert decision.estimates[0].value == pytest.approx(off)


def test_the_theorem_leaves_out_matrices_that_a_model_lacks(rng: np.random.Generator) -> None:
    ratios = chi_squared(rng)
    ratios[:, 5] = np.nan
    estimate = frobenius_theorem({"x": ratios}).estimates[0]
    assert (estimate.n, outcome_of(estimate)) == (6 * 12, SUPPORTED)


def test_true_matrices_hardly_ever_fail_the_theorem(rng: np.random.Generator) -> None:
    outcomes = [frobenius_theorem({"x": chi_squared(rng, 48)}).outcome for _ in range(100)]
    assert outcomes == [SUPPORTED] * 100


def test_the_toy_gives_the_published_numbers() -> None:
    """Norms of (sigmoid(200), sigmoid(0)) and of sigmoid(100) twice, and so on."""
    decision = toy_example()
    values = [e.value for e in decision.estimates]
    gelu = 100 * special.ndtr(100.0) * np.sqrt(2) / 200
    right = [np.hypot(1, 1) / np.hypot(1, 0.5), np.hypot(100, 100) / 200, gelu]
    assert values == pytest.approx([0, 0, *np.abs(np.log(right))])
    assert decision.outcome is SUPPORTED
    for text in ("(1, 0.5) and (1, 1)", "ReLU gives (200, 0) and (100, 100)"):
        assert text in decision.note
