"""Curves of mean log norms with a planted truth: phases, rates, shapes and bends.

Prompts are clusters: each has its own level and rate, and its layers are a random walk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from residcheck.stats import (
    LEVEL,
    MIN_LAYERS,
    Outcome,
    Phase,
    Shape,
    change_point,
    choose_phase,
    decide,
    expected_shape,
    exponential_phase,
    published_rate,
    same_rate,
)
from residcheck.stats.fits import Floats, evidence_for_exponential
from residcheck.stats.phase import STRONG_EVIDENCE, _clearly_exponential
from residcheck.stats.shape import classify, confidence, enough

PROMPTS, LAYERS = 16, 30
PHASE = Phase(3, 26, "planted")
SUPPORTED, REFUTED, INCONCLUSIVE = Outcome.SUPPORTED, Outcome.REFUTED, Outcome.INCONCLUSIVE
# The longest window wins, so a layer or two of another regime may be taken in at an end.
SLACK = 2
# Noise of a mean curve, per layer: about what 34 prompts leave.
NOISE = 0.005


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20230509)


def prompts(rng: np.random.Generator, curve: Floats, walk: float = 0.01) -> Floats:
    """Log norms of prompts around ``curve``: levels, rates and a walk of their own."""
    n, layers = PROMPTS, np.arange(len(curve))
    level, rate = rng.normal(0, 0.1, (n, 1)), rng.normal(0, 0.002, (n, 1))
    return curve + level + rate * layers + rng.normal(0, walk, (n, len(curve))).cumsum(axis=1)


def growing(rate: float) -> Floats:
    return np.asarray(1 + np.log(rate) * np.arange(LAYERS))


ROOT = np.log(3 + 2.0 * np.arange(LAYERS)) / 2
LINEAR = np.log(3 + 0.7 * np.arange(LAYERS))
POWER = 1 + 0.6 * np.log(np.arange(LAYERS) + 1)


@pytest.mark.parametrize(
    ("curve", "walk", "outcome"),
    [
        (growing(1.045), 0.01, SUPPORTED),
        (growing(1.24), 0.01, SUPPORTED),
        (growing(1.24), 0.05, SUPPORTED),
        (LINEAR, 0.01, REFUTED),
        (ROOT, 0.01, REFUTED),
        (POWER, 0.01, REFUTED),
        (growing(0.95), 0.01, REFUTED),
        (growing(1.02), 0.2, INCONCLUSIVE),
    ],
    ids=["1.045", "1.24", "1.24 noisy", "linear", "square root", "power law", "falling", "noise"],
)
def test_exponential_phase(
    rng: np.random.Generator, curve: Floats, walk: float, outcome: Outcome
) -> None:
    assert exponential_phase(prompts(rng, curve, walk), PHASE).outcome is outcome


def test_growth_below_the_precision_of_the_published_rate_is_none(
    rng: np.random.Generator,
) -> None:
    curves = np.tile(growing(1.003), (PROMPTS, 1)) + rng.normal(0, 1e-4, (PROMPTS, LAYERS))
    assert exponential_phase(curves, PHASE).outcome is REFUTED


def test_shapes_that_cannot_be_told_apart_are_inconclusive(rng: np.random.Generator) -> None:
    """Over six layers 1.02 is as good as linear under a zigzag that all prompts share."""
    zigzag = 0.02 * (-1.0) ** np.arange(LAYERS)
    curves = prompts(rng, growing(1.02) + zigzag, walk=0.001)
    assert exponential_phase(curves, Phase(20, 25, "planted")).outcome is INCONCLUSIVE


def test_a_window_that_was_not_chosen_as_exponential_supports_nothing(
    rng: np.random.Generator,
) -> None:
    curves = prompts(rng, growing(1.08))
    assert exponential_phase(curves, replace(PHASE, exponential=False)).outcome is INCONCLUSIVE


@pytest.mark.parametrize(
    ("rate", "walk", "outcome"),
    [
        (1.045, 0.01, SUPPORTED),
        (1.06, 0.01, REFUTED),
        (1.03, 0.01, REFUTED),
        (1.0, 0.01, REFUTED),
        (1.045, 0.1, INCONCLUSIVE),
        (1.05, 0.01, INCONCLUSIVE),  # on the margin itself
    ],
)
def test_published_rate(
    rng: np.random.Generator, rate: float, walk: float, outcome: Outcome
) -> None:
    decision = published_rate(prompts(rng, growing(rate), walk), PHASE, 1.045)
    assert decision.outcome is outcome
    assert decision.estimates[0].low <= rate <= decision.estimates[0].high


@pytest.mark.parametrize(
    ("rate", "walk", "outcome"),
    [(1.08, 0.005, SUPPORTED), (1.05, 0.005, REFUTED), (1.11, 0.005, REFUTED)],
)
def test_same_rate(rng: np.random.Generator, rate: float, walk: float, outcome: Outcome) -> None:
    stream, other = prompts(rng, growing(1.08), walk), prompts(rng, growing(rate), walk)
    estimate = same_rate("difference", other, stream, PHASE)
    assert decide(estimate).outcome is outcome
    assert estimate.low <= np.log(rate / 1.08) <= estimate.high


def test_correlated_series_of_different_rates_are_not_the_same(rng: np.random.Generator) -> None:
    stream, other = prompts(rng, growing(1.08)), prompts(rng, growing(1.04))
    correlation = np.corrcoef(stream.mean(axis=0), other.mean(axis=0))[0, 1]
    assert correlation > 0.99
    assert decide(same_rate("difference", other, stream, PHASE)).outcome is REFUTED


def test_noise_alone_is_not_sameness(rng: np.random.Generator) -> None:
    stream, other = prompts(rng, growing(1.02), 0.2), prompts(rng, growing(1.02), 0.2)
    assert decide(same_rate("difference", other, stream, PHASE)).outcome is INCONCLUSIVE


@pytest.mark.parametrize(("rate", "margin"), [(1.01, 0.005), (1.24, 0.11 * np.log(1.24))])
def test_margin_of_sameness_is_relative_and_never_below_five_in_a_thousand(
    rate: float, margin: float
) -> None:
    stream = np.tile(growing(rate), (PROMPTS, 1))
    region = same_rate("difference", stream, stream, PHASE).region
    assert region is not None
    assert (region.low, region.high) == pytest.approx((-margin, margin))


def three_regimes(n_layers: int, first: int, last: int, rate: float) -> Floats:
    """A jump at every step before ``first``, ``rate`` up to ``last``, then a steep fall."""
    steps = np.full(n_layers - 1, np.log(rate))
    steps[:first], steps[last:] = 0.5, -0.4
    return np.concatenate([[1.0], 1 + steps.cumsum()])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("n_layers", "first", "last", "rate"),
    [(12, 2, 10, 1.15), (18, 3, 16, 1.24), (30, 3, 26, 1.08), (48, 5, 41, 1.045)],
)
def test_phase_is_the_planted_window(
    n_layers: int, first: int, last: int, rate: float, seed: int
) -> None:
    noise = np.random.default_rng(seed).normal(0, NOISE, n_layers)
    phase = choose_phase(three_regimes(n_layers, first, last, rate) + noise)
    assert phase.exponential
    assert abs(phase.first - first) <= SLACK
    assert abs(phase.last - last) <= SLACK


@pytest.mark.parametrize("n_layers", [4, 5, 6, 12, 48])
@pytest.mark.parametrize("rate", [1.045, 1.24])
def test_a_curve_that_is_exponential_throughout_is_one_phase(rate: float, n_layers: int) -> None:
    phase = choose_phase(np.log(rate) * np.arange(n_layers))
    assert (phase.first, phase.last, phase.exponential) == (0, n_layers - 1, True)


@pytest.mark.parametrize("n_layers", [4, 5, 6, 12, 48])
@pytest.mark.parametrize(
    "growth",
    [
        lambda n: np.log(3 + 0.7 * n),
        lambda n: np.log(3 + 2.0 * n) / 2,
        lambda n: 1 + 0.6 * np.log(n + 1),
        lambda n: 2 + 0 * n,
        lambda n: 3 - 0.05 * n,
    ],
    ids=["linear", "square root", "power law", "constant", "falling"],
)
def test_other_growth_is_marked_not_exponential(
    growth: Callable[[Floats], Floats], n_layers: int
) -> None:
    phase = choose_phase(growth(np.arange(float(n_layers))))
    assert not phase.exponential
    assert 0 <= phase.first < phase.last < n_layers


@pytest.mark.parametrize("n_layers", [4, 5, 6, 7, 12, 13, 30])
def test_phase_has_half_the_layers_and_at_least_four(n_layers: int) -> None:
    for seed in range(20):
        walk = np.random.default_rng(seed).normal(0, 0.2, n_layers).cumsum()
        phase = choose_phase(walk)
        length = phase.last - phase.first + 1
        assert length >= max(MIN_LAYERS, n_layers / 2)
        assert phase.last < n_layers


def test_phase_indexes_its_layers() -> None:
    phase = Phase(5, 8, "published")
    assert np.arange(48)[phase.window].tolist() == [5, 6, 7, 8]
    assert phase.layers.tolist() == [5, 6, 7, 8]
    assert phase.inside.layers.tolist() == [6, 7, 8]
    assert str(phase) == "layers 5-8 (published)"


INNER = np.arange(LAYERS, dtype=float)
PLANTED = {
    Shape.EXPONENTIAL: 0.05 * INNER,
    Shape.SUPER_EXPONENTIAL: 0.002 * INNER**2,
    Shape.SUB_EXPONENTIAL: np.log(1 + INNER),
    Shape.HAS_DECREASE: np.interp(INNER, [0, 12, 16, 29], [0.0, 1.0, 0.7, 1.6]),
    Shape.FLAT: 0.001 * INNER,
}


@pytest.mark.parametrize("shape", PLANTED)
def test_shape_is_the_planted_one(rng: np.random.Generator, shape: Shape) -> None:
    curves = prompts(rng, PLANTED[shape], walk=0.002)
    assert classify(curves.mean(axis=0)) is shape
    assert confidence(curves, shape) >= LEVEL
    for expected in Shape:
        outcome = SUPPORTED if expected is shape else REFUTED
        assert expected_shape(curves, expected).outcome is outcome


@pytest.mark.parametrize("shape", PLANTED)
def test_confidences_of_all_shapes_sum_to_one(rng: np.random.Generator, shape: Shape) -> None:
    curves = prompts(rng, PLANTED[shape], walk=0.2)
    assert sum(confidence(curves, s) for s in Shape) == pytest.approx(1)


def test_shape_that_turns_on_the_prompts_is_inconclusive(rng: np.random.Generator) -> None:
    """13 prompts grow 9:21 faster late than early, 3 the other way: the mean's change is
    0.8 x (13 - 3) / 16 = 0.5, the border itself, and resampled prompts fall on either side."""
    up, down = 0.002 * INNER**2, 0.002 * (29**2 - (29 - INNER) ** 2)
    curves = np.stack([up] * 13 + [down] * 3) + rng.normal(0, NOISE, (PROMPTS, LAYERS))
    for expected in Shape:
        assert expected_shape(curves, expected).outcome is INCONCLUSIVE


def test_edges_do_not_shape_a_curve() -> None:
    """A tenth at either end is left out, as the published 5-41 of 48 leaves out a tenth."""
    curve = 0.05 * INNER
    curve[:3] -= 2.0
    curve[-3:] -= 2.0
    assert classify(curve) is Shape.EXPONENTIAL


@pytest.mark.parametrize("depth", [0.1, 0.5])
def test_one_layers_dip_is_not_a_phase_of_decrease(depth: float) -> None:
    curve = 0.05 * INNER
    curve[12] -= depth
    assert classify(curve) is Shape.EXPONENTIAL


def bend_by_least_squares(curve: Floats) -> int:
    """The kink of the broken line with the least residual, each fitted by numpy."""
    layers = np.arange(len(curve))

    def rss(kink: int) -> float:
        basis = np.stack([np.ones_like(layers), layers, np.maximum(layers - kink, 0)], axis=1)
        fit = basis @ np.linalg.lstsq(basis, curve, rcond=None)[0]
        return float(((curve - fit) ** 2).sum())

    return min(range(3, len(curve) - 3), key=rss)


BENDS = pytest.mark.parametrize(("n_layers", "bend"), [(12, 4), (30, 11), (30, 18), (48, 32)])


@BENDS
def test_bend_of_a_broken_line_is_found(n_layers: int, bend: int) -> None:
    layers = np.arange(n_layers)
    curve = 1 + 0.05 * layers - 0.15 * np.maximum(layers - bend, 0)
    assert bend_by_least_squares(curve) == bend
    assert change_point(curve) == bend


@pytest.mark.parametrize("n_layers", range(7))
def test_a_short_curve_has_no_bend(n_layers: int) -> None:
    assert change_point(np.arange(float(n_layers))) is None


def test_jagged_straight_lines_hardly_ever_have_an_exponential_window(
    rng: np.random.Generator,
) -> None:
    """Steps that stray by six tenths of the growth per layer, as those of real streams do."""
    line = np.diff(np.log(1 + np.linspace(0, np.expm1(2), 24)))
    steps = line + 0.6 * line.mean() * rng.normal(size=(300, 23))
    called = [choose_phase(row).exponential for row in steps.cumsum(axis=1)]
    assert np.mean(called) <= 0.05


def test_more_is_asked_for_of_short_windows() -> None:
    """Twelve of 24 layers on which the exponential wins by 6 are none; by 12 they are one."""
    n = 24
    layers = np.arange(n, dtype=np.float64)
    found = {}
    for size in np.linspace(0.002, 0.2, 100):
        curve = 0.3 * layers + size * (-1.0) ** layers
        found[size] = float(evidence_for_exponential(curve, layers))
        clear = _clearly_exponential(sliding_window_view(curve, n), n)
        assert clear.all() == (found[size] >= STRONG_EVIDENCE)
        half = sliding_window_view(curve, n // 2)
        rows = layers[: len(half), None] + layers[: n // 2]
        each = evidence_for_exponential(half, rows)
        assert (_clearly_exponential(half, n) == (each >= 2 * STRONG_EVIDENCE)).all()
        one = evidence_for_exponential(half[3], layers[3 : 3 + n // 2])
        assert each[3] == pytest.approx(float(one))
    assert min(found.values()) < STRONG_EVIDENCE < max(found.values())


@pytest.mark.parametrize(("n", "confidence"), [(8, 0.994), (16, 0.985), (10_000, 0.975)])
def test_confidence_asked_for_is_that_of_either_end_of_an_interval(
    n: int, confidence: float
) -> None:
    assert enough(n) == pytest.approx(confidence, abs=0.002)
