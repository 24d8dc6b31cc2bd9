"""The rules about tokens and vectors, both ways, on data whose truth is planted.

Where the truth has a closed form, actual vectors are built and measured with numpy. The
rules about curves of mean log norms are in test_stats_shape.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from residcheck.stats import (
    Decision,
    Outcome,
    Phase,
    at_most,
    bos_anomaly,
    correlated_addition,
    distribution_moves_up,
    normalised_input,
    outcome_of,
    ratio_constant,
    triangle_bound,
)
from residcheck.stats.fits import Floats
from residcheck.tolerances import tolerance

PROMPTS, POSITIONS, LAYERS, WIDTH = 16, 40, 30, 64
PHASE = Phase(3, 26, "planted")
ROUNDING = tolerance("float64").identity
SUPPORTED, REFUTED, INCONCLUSIVE = Outcome.SUPPORTED, Outcome.REFUTED, Outcome.INCONCLUSIVE


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20230509)


def refuted_parts(decision: Decision) -> list[str]:
    return [e.name for e in decision.estimates if e.region and outcome_of(e) is REFUTED]


def tokens(rng: np.random.Generator, step: Callable[[Floats], Floats], noise: float) -> Floats:
    """Norms ``[prompt, position, layer]``: ``step`` of a token's rank is its log rate.

    The last positions of every other prompt are padding.
    """
    rank = rng.uniform(size=(PROMPTS, POSITIONS, 1))
    log_norm = 1 + (rank - 0.5) + step(rank) * np.arange(LAYERS)
    values = np.exp(log_norm + rng.normal(0, noise, (PROMPTS, POSITIONS, LAYERS)))
    values[::2, -9:] = np.nan
    return np.asarray(values)


@pytest.mark.parametrize(
    ("step", "noise", "outcome"),
    [
        (lambda rank: 0.05 + 0 * rank, 0.01, SUPPORTED),
        (lambda rank: 0.02 + 0.05 * rank, 0.01, SUPPORTED),
        (lambda rank: -0.05 + 0 * rank, 0.01, REFUTED),
        (lambda rank: 0 * rank, 0.1, REFUTED),
    ],
    ids=["all", "all, some faster", "down", "nothing but noise"],
)
def test_distribution_moves_up(
    rng: np.random.Generator, step: Callable[[Floats], Floats], noise: float, outcome: Outcome
) -> None:
    assert distribution_moves_up(tokens(rng, step, noise), PHASE).outcome is outcome


def test_a_mean_that_the_upper_half_alone_moves_up_is_not_dominance(
    rng: np.random.Generator,
) -> None:
    values = tokens(rng, lambda rank: np.where(rank > 0.5, 0.1, -0.04), 0.01)
    assert (np.diff(np.nanmean(values[:, :, PHASE.window], axis=(0, 1))) > 0).all()
    assert distribution_moves_up(values, PHASE).outcome is REFUTED


def test_a_distribution_that_stays_does_not_move_up(rng: np.random.Generator) -> None:
    values = tokens(rng, lambda rank: 0 * rank, 0.0)
    assert distribution_moves_up(values, PHASE).outcome is not SUPPORTED


ABOVE, ALIKE = "share of ratios above 1", "share of tokens near the median rate"


@pytest.mark.parametrize(
    ("step", "noise", "refuted"),
    [
        (lambda rank: 0.08 + 0.01 * rank, 0.01, []),
        (lambda rank: 0.01 + 0.16 * rank, 0.0, [ALIKE]),
        (lambda rank: -0.08 + 0 * rank, 0.01, [ABOVE]),
        (lambda rank: 0.08 + 0 * rank, 0.1, [ABOVE]),
    ],
    ids=["alike", "spread", "falling", "not every ratio above 1"],
)
def test_ratio_constant(
    rng: np.random.Generator, step: Callable[[Floats], Floats], noise: float, refuted: list[str]
) -> None:
    decision = ratio_constant(tokens(rng, step, noise), PHASE)
    assert refuted_parts(decision) == refuted
    assert decision.outcome is (REFUTED if refuted else SUPPORTED)


def test_ratio_constant_counts_exact_shares() -> None:
    """One token in ten grows at three times the rate of the others: a share of 0.9."""
    rates = np.where(np.arange(POSITIONS) % 10 == 0, 0.15, 0.05)
    values = np.exp(rates[:, None] * np.arange(LAYERS))
    decision = ratio_constant(np.tile(values, (PROMPTS, 1, 1)), PHASE)
    assert [e.value for e in decision.estimates] == pytest.approx([1.0, 0.9])
    assert decision.outcome is REFUTED


def bos_curve(rise: int, fall: int, height: float) -> Floats:
    """Log norm of position 0: up at layer ``rise``, down again at layer ``fall``."""
    layers = np.arange(LAYERS)
    return np.asarray(np.where((layers >= rise) & (layers < fall), height, 1.0))


APART, RISE = "share of layers more than 3 sd apart", "depth of the rise"
PLATEAU, FALL = "share of layers on the plateau", "last over largest norm"


@pytest.mark.parametrize(
    ("curve", "refuted"),
    [
        (bos_curve(3, 28, 6.0), []),
        (bos_curve(3, 20, 6.0), []),
        (bos_curve(18, 28, 6.0), [APART, RISE]),
        (bos_curve(3, LAYERS, 6.0), [FALL]),
        (bos_curve(3, 7, 6.0), [APART, PLATEAU]),
        (1 + 0.03 * np.arange(LAYERS), [APART, FALL]),
    ],
    ids=["inverted U", "early fall", "late rise", "no fall", "a spike", "like other tokens"],
)
def test_bos_anomaly(rng: np.random.Generator, curve: Floats, refuted: list[str]) -> None:
    ordinary = tokens(rng, lambda rank: 0.03 + 0 * rank, 0.01)
    decision = bos_anomaly(np.exp(np.tile(curve, (PROMPTS, 1))), ordinary)
    assert refuted_parts(decision) == refuted
    assert decision.outcome is (REFUTED if refuted else SUPPORTED)


def direction(rng: np.random.Generator, *others: Floats) -> Floats:
    """Random unit vectors at right angles to ``others``, themselves at right angles."""
    vector = rng.normal(size=others[0].shape)
    for other in others:
        unit = other / np.linalg.norm(other, axis=-1, keepdims=True)
        vector -= (vector * unit).sum(axis=-1, keepdims=True) * unit
    return np.asarray(vector / np.linalg.norm(vector, axis=-1, keepdims=True))


Vectors = dict[str, Floats]


def block_outputs(
    rng: np.random.Generator, ratio: float, cosine: float, parallel: bool
) -> tuple[Vectors, Vectors]:
    """Vectors of random streams ``[prompt, position, layer, d]``, and measured cosines.

    Every sublayer adds a vector of ``ratio`` times the stream's norm, at ``cosine`` to it.
    """
    stream = rng.normal(size=(PROMPTS, 6, WIDTH))
    layers: list[Vectors] = []
    for _ in range(LAYERS):
        v = {"resid_pre": stream}
        across = direction(rng, stream)
        v["attn_out"] = added(stream, across, ratio, cosine)
        if parallel:
            v["mlp_out"] = added(stream, direction(rng, stream, across), ratio, cosine)
        else:
            v["resid_mid"] = mid = stream + v["attn_out"]
            v["mlp_out"] = added(mid, direction(rng, mid), ratio, cosine)
        v["resid_post"] = stream = v["resid_pre"] + v["attn_out"] + v["mlp_out"]
        layers.append(v)
    vectors = {site: np.stack([v[site] for v in layers], axis=2) for site in layers[0]}
    target = {"attn_out": "resid_pre", "mlp_out": "resid_pre" if parallel else "resid_mid"}
    return vectors, {out: cosines(vectors[out], vectors[to]) for out, to in target.items()}


def added(stream: Floats, across: Floats, ratio: float, cosine: float) -> Floats:
    size = ratio * np.linalg.norm(stream, axis=-1, keepdims=True)
    unit = stream / np.linalg.norm(stream, axis=-1, keepdims=True)
    return np.asarray(size * (cosine * unit + np.sqrt(1 - cosine**2) * across))


def cosines(a: Floats, b: Floats) -> Floats:
    return np.asarray(
        (a * b).sum(axis=-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    )


def norms_of(vectors: Vectors) -> Vectors:
    return {site: np.asarray(np.linalg.norm(v, axis=-1)) for site, v in vectors.items()}


def uncorrelated_share(ratio: float, cosine: float, parallel: bool) -> float:
    """Closed form: log growth of a block without and with the planted cosine."""
    if parallel:  # the two outputs share only their part along the stream
        actual = (1 + 2 * ratio * cosine) ** 2 + 2 * ratio**2 * (1 - cosine**2)
        return float(np.log1p(2 * ratio**2) / np.log(actual))
    return float(np.log1p(ratio**2) / np.log1p(2 * ratio * cosine + ratio**2))


@pytest.mark.parametrize("parallel", [False, True], ids=["sequential", "parallel"])
@pytest.mark.parametrize(
    ("ratio", "cosine", "outcome"),
    [
        (0.2, 0.3, SUPPORTED),
        (0.1, 0.8, SUPPORTED),
        (0.2, 0.0, REFUTED),
        (0.3, 0.1, REFUTED),
        (0.1, 0.97, REFUTED),
        (0.1, -0.3, REFUTED),
    ],
)
def test_correlated_addition(
    rng: np.random.Generator, ratio: float, cosine: float, outcome: Outcome, parallel: bool
) -> None:
    vectors, measured = block_outputs(rng, ratio, cosine, parallel)
    decision = correlated_addition(norms_of(vectors), measured, PHASE)
    share, *cosines = (e.value for e in decision.estimates)
    assert cosines == pytest.approx([cosine, cosine], abs=ROUNDING)
    expected = uncorrelated_share(ratio, cosine, parallel)
    if expected < 0:  # the stream shrinks, and that is what is answered
        assert share < 0
    else:
        assert share == pytest.approx(expected, abs=ROUNDING)
    assert decision.outcome is outcome


def test_a_stream_that_shrinks_has_no_growth_to_explain() -> None:
    """Mean cosines can be above 0 all the same: lengths differ."""
    sizes = {"resid_pre": 1.0, "attn_out": 0.1, "mlp_out": 0.1, "resid_post": 0.9}
    norms = {site: np.full((PROMPTS, 6, LAYERS), size) for site, size in sizes.items()}
    measured = {out: np.full((PROMPTS, 6, LAYERS), 0.1) for out in ("attn_out", "mlp_out")}
    decision = correlated_addition(norms, measured, PHASE)
    assert decision.outcome is REFUTED
    assert refuted_parts(decision) == ["log growth over the phase's blocks"]


def test_no_share_is_taken_of_a_growth_that_may_be_none(rng: np.random.Generator) -> None:
    """Its sign would be chance, and its interval that of a ratio with zero below the line."""
    sizes = {"resid_pre": 1.0, "attn_out": 0.1, "mlp_out": 0.1, "resid_post": 1.0}
    norms = {site: np.full((PROMPTS, 6, LAYERS), size) for site, size in sizes.items()}
    norms["resid_post"] *= np.exp(0.01 * rng.normal(size=(PROMPTS, 1, 1)))
    measured = {out: np.full((PROMPTS, 6, LAYERS), 0.1) for out in ("attn_out", "mlp_out")}
    decision = correlated_addition(norms, measured, PHASE)
    assert decision.outcome is INCONCLUSIVE
    assert decision.estimates[0].name == "log growth over the phase's blocks"


def padded(values: Floats) -> Floats:
    values = values.astype(np.float64)
    values[::2, -2:] = np.nan
    return values


@pytest.mark.parametrize("parallel", [False, True], ids=["sequential", "parallel"])
@pytest.mark.parametrize("cosine", [-1.0, -0.5, 0.0, 0.5, 1.0])
def test_triangle_bound_holds_for_vectors(
    rng: np.random.Generator, cosine: float, parallel: bool
) -> None:
    """Also where it is an equality: all along one line."""
    norms = norms_of(block_outputs(rng, 0.2, cosine, parallel)[0])
    decision = triangle_bound({site: padded(n) for site, n in norms.items()}, ROUNDING)
    assert decision.outcome is SUPPORTED
    assert decision.estimates[0].n == (PROMPTS * 6 - PROMPTS // 2 * 2) * LAYERS


def test_one_violation_of_the_triangle_bound_refutes_and_is_located(
    rng: np.random.Generator,
) -> None:
    norms = norms_of(block_outputs(rng, 0.2, 0.5, False)[0])
    reach = norms["resid_pre"] + norms["attn_out"] + norms["mlp_out"]
    norms["resid_post"][7, 3, 11] = reach[7, 3, 11] / (1 - 2 * ROUNDING)
    decision = triangle_bound(norms, ROUNDING)
    assert decision.outcome is REFUTED
    assert "prompt 8, position 3, layer 11" in decision.note


EPS = 1e-3


def normalised(rng: np.random.Generator, size: float) -> tuple[Vectors, Vectors]:
    """Norms before and after RMSNorm, x / sqrt(mean(x^2) + eps), of random vectors."""
    x = size * rng.lognormal(size=(9, 5, 4, 1)) * rng.normal(size=(9, 5, 4, WIDTH))
    y = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + EPS)
    before, after = np.linalg.norm(x, axis=-1), np.linalg.norm(y, axis=-1)
    return {"ln1": padded(after)}, {"ln1": padded(before)}


def judge_input(measured: Vectors, streams: Vectors, eps: float = EPS) -> Decision:
    return normalised_input(measured, streams, WIDTH, eps, ROUNDING)


@pytest.mark.parametrize("size", [0.01, 1.0, 1e4])
def test_normalised_input_is_the_closed_form(rng: np.random.Generator, size: float) -> None:
    decision = judge_input(*normalised(rng, size))
    assert decision.outcome is SUPPORTED
    assert decision.estimates[0].n == 9 * 5 * 4 - 5 * 2 * 4


def test_normalised_input_with_a_gain_or_another_eps_refutes(rng: np.random.Generator) -> None:
    measured, streams = normalised(rng, 0.1)
    assert judge_input({"ln1": 1.01 * measured["ln1"]}, streams).outcome is REFUTED
    assert judge_input(measured, streams, EPS / 10).outcome is REFUTED


@pytest.mark.parametrize(
    ("values", "outcome"),
    [
        ([0.1, 1.0], SUPPORTED),
        ([0.1, 1.01], REFUTED),
        ([-9.0, 0.1], SUPPORTED),
        ([0.1, np.nan], INCONCLUSIVE),
    ],
)
def test_at_most(values: list[float], outcome: Outcome) -> None:
    parts = {"good": np.zeros(3), "part": np.array(values)}
    decision = at_most(parts, {"good": 0.0, "part": 1.0})
    assert decision.outcome is outcome
    assert [(e.name, e.n) for e in decision.estimates] == [("good", 3), ("part", 2)]
