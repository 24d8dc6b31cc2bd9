"""The rules about horizons, each way, on curves whose truth is planted, and their claims."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from report_runs import a_run
from scipy import stats

from residcheck.claim import Claim, all_claims
from residcheck.curves import Curve, Floats, HorizonInfo, PromptInfo, Run
from residcheck.names import HORIZON
from residcheck.stats import (
    MIN_PROMPTS,
    Decision,
    Outcome,
    Phase,
    effective_horizon,
    horizon_against,
    horizon_confounder,
    horizon_decay,
    horizon_small,
    horizon_with_growth,
    resampling,
)
from residcheck.stats.decay import Decay
from residcheck.stats.horizon_rules import (
    MARGIN,
    falling_pairs,
    over_depth,
    rank_correlation,
    unchanged_from,
)

SUPPORTED, REFUTED, INCONCLUSIVE = Outcome.SUPPORTED, Outcome.REFUTED, Outcome.INCONCLUSIVE
CLAIMS: dict[str, Claim] = {claim.id: claim for claim in all_claims() if claim.family == "F"}
LAYERS, PROMPTS, BASELINE = 24, 16, 3.0


def horizons(layers: int = LAYERS) -> Floats:
    return np.arange(1, layers + 1, dtype=np.float64)


def exponential(layers: int = LAYERS) -> Floats:
    return np.asarray(6 * np.exp(-horizons(layers) / (layers / 4)))


def sigmoid(layers: int = LAYERS) -> Floats:
    return np.asarray(6 / (1 + np.exp((horizons(layers) - layers / 2.5) / (layers / 12))))


def power_law(layers: int = LAYERS) -> Floats:
    return np.asarray(6 * horizons(layers) ** -0.8)


def step(last: int, layers: int = LAYERS) -> Floats:
    return np.where(horizons(layers) <= last, 5.0, 0.0)


def losses(
    excess: Floats, rng: np.random.Generator, n: int = PROMPTS, jagged: float = 0.03
) -> tuple[Floats, Floats]:
    """Loss and baseline: prompts differ in both; the model's own curve is jagged; the last
    horizon is the model as it is."""
    own = rng.normal(size=(n, len(excess)))
    for k in range(1, len(excess)):
        own[:, k] = 0.8 * own[:, k - 1] + 0.6 * own[:, k]
    height = np.exp(0.12 * rng.normal(size=(n, 1)) + 0.1 * own)
    rows = excess * np.exp(jagged * rng.normal(size=len(excess))) * height
    rows[:, -1] = 0.0
    baseline = BASELINE + 0.4 * rng.normal(size=n)
    return baseline[:, None] + rows, baseline


@pytest.mark.parametrize(
    ("excess", "outcome"),
    [
        (exponential(), SUPPORTED),
        (sigmoid(), REFUTED),
        (power_law(), REFUTED),
        (step(9), REFUTED),
        (0 * exponential(), REFUTED),
        (-exponential(), REFUTED),
        (exponential()[::-1], REFUTED),
        (exponential(10), INCONCLUSIVE),  # too few horizons to tell shapes apart
        (6 * np.exp(-horizons() / 2), INCONCLUSIVE),  # over within five
    ],
    ids=["exponential", "sigmoid", "power", "step", "flat", "below", "rising", "shallow", "short"],
)
def test_horizon_decay(rng: np.random.Generator, excess: Floats, outcome: Outcome) -> None:
    assert horizon_decay(*losses(excess, rng)).outcome is outcome


def test_what_is_reported_of_a_decay(rng: np.random.Generator) -> None:
    loss, baseline = losses(exponential(), rng, jagged=0.0)
    values = {e.name: e for e in horizon_decay(loss, baseline).estimates}
    tau = values["tau of the exponential"]
    assert tau.value == pytest.approx(LAYERS / 4, rel=0.1)
    assert values["loss at k = 1"].value == pytest.approx(loss[:, 0].mean())
    assert values["baseline"].value == pytest.approx(baseline.mean())
    steepest = "horizon of the steepest fall, the sigmoid's middle"
    assert values[steepest].value < 3
    middle = {e.name: e for e in horizon_decay(*losses(sigmoid(), rng, jagged=0.0)).estimates}[
        steepest
    ]
    assert middle.value == pytest.approx(LAYERS / 2.5, abs=0.5)


def test_pairs_that_fall_are_scipys_kendall(rng: np.random.Generator) -> None:
    loss = rng.normal(size=20)
    tau = stats.kendalltau(np.arange(20), loss).statistic
    assert falling_pairs(loss) == pytest.approx((1 - tau) / 2)
    assert falling_pairs(np.ones(5)) == 0.5


@pytest.mark.parametrize("layers", [12, 24, 48])
def test_true_exponentials_are_not_refuted_and_false_ones_not_supported(
    layers: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Curves that stray by 10 % from their shape; 8 or 16 prompts. Neither more often than
    in one of twenty, up to chance."""
    monkeypatch.setattr(resampling, "RESAMPLES", 199)
    repeats, wrong = 16, {REFUTED: 0, SUPPORTED: 0}
    for i in range(repeats):
        n = (8, 16)[i % 2]
        true = horizon_decay(*losses(exponential(layers), rng, n, jagged=0.1))
        wrong[REFUTED] += true.outcome is REFUTED
        false = (sigmoid, power_law)[i // 2 % 2](layers)
        wrong[SUPPORTED] += horizon_decay(*losses(false, rng, n, 0.1)).outcome is SUPPORTED
    assert max(wrong.values()) <= stats.binom.ppf(0.999, repeats, 0.05)


def test_the_horizon_of_a_step_is_found(rng: np.random.Generator) -> None:
    for last in (1, 5, LAYERS - 2):
        loss, baseline = losses(step(last), rng)
        found = effective_horizon(loss - baseline[:, None])
        assert (found.value, found.low, found.high) == (last + 1,) * 3


def test_a_curve_without_a_horizon_gets_the_depth(rng: np.random.Generator) -> None:
    difference = 1 + 0.1 * rng.normal(size=(PROMPTS, LAYERS))
    difference[:, -1] = 0.0
    assert effective_horizon(difference).value == LAYERS
    assert effective_horizon(difference + 1).value == LAYERS  # not even the last is unchanged
    assert effective_horizon(0 * difference).value == 1


def test_a_curve_that_leaves_the_baseline_again_is_not_unchanged() -> None:
    dip = np.array([5.0, 0.0, 0.0, 2.0, 0.05, -2.0, 0.0, 0.0])
    assert effective_horizon(np.tile(dip, (8, 1))).value == 7


def test_unchanged_from_is_the_loop_that_it_says(rng: np.random.Generator) -> None:
    within = rng.random((50, 6)) < 0.7

    def by_hand(row: Floats) -> int:
        k = len(row)
        while k > 1 and row[k - 1] and row[k - 2]:
            k -= 1
        return k

    assert unchanged_from(within).tolist() == [by_hand(row) for row in within]


@pytest.mark.parametrize("n", [8, 16])
def test_horizons_within_the_margin_by_t_tests(n: int, rng: np.random.Generator) -> None:
    """The bootstrap's two one-sided tests against scipy's t intervals, at the margin."""
    difference = 6 * np.exp(-horizons() / 4) * np.exp(0.3 * rng.normal(size=(n, LAYERS)))
    low, high = stats.t.interval(
        0.95, n - 1, difference.mean(axis=0), stats.sem(difference, axis=0)
    )
    right = unchanged_from((low >= -MARGIN) & (high <= MARGIN))
    assert abs(effective_horizon(difference).value - right) <= 1


@pytest.mark.parametrize("n", [8, 16])
def test_intervals_of_the_effective_horizon_cover(
    n: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resampling, "RESAMPLES", 199)
    excess = 6 * np.exp(-horizons(30) / 5)
    right = float(unchanged_from(excess <= MARGIN))
    covered = []
    for _ in range(100):
        loss, baseline = losses(excess / np.exp(0.011), rng, n, jagged=0.0)
        found = effective_horizon(loss - baseline[:, None])
        covered.append(found.low <= right <= found.high)
    assert np.mean(covered) >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / 100)


@pytest.mark.parametrize(
    ("last", "outcome"), [(LAYERS - 1, SUPPORTED), (20, SUPPORTED), (8, REFUTED)]
)
def test_horizon_small(rng: np.random.Generator, last: int, outcome: Outcome) -> None:
    decision = horizon_small(*losses(step(last), rng))
    assert decision.outcome is outcome
    assert decision.estimates[0].value == pytest.approx((last + 1) / LAYERS)
    assert ("no horizon below the depth" in decision.note) == (last == LAYERS - 1)


def test_horizon_small_is_inconclusive_where_prompts_disagree() -> None:
    """A half of the prompts needs seven eighths of the depth, by just over the margin."""
    excess = np.tile(step(12), (PROMPTS, 1))
    excess[::2, 12:21] = 0.2
    decision = horizon_small(BASELINE + excess, np.full(PROMPTS, BASELINE))
    assert decision.outcome is INCONCLUSIVE


def test_the_horizon_by_divergence_is_reported(rng: np.random.Generator) -> None:
    decision = horizon_small(*losses(step(8), rng), np.tile(step(11), (PROMPTS, 1)))
    assert [e.value for e in decision.estimates[1:]] == [9, 12]


def controlled(free: Floats, baseline: Floats, left: Floats | float) -> Floats:
    """The loss from the middle on, where ``left`` is what is left of the excess below N."""
    excess = free[:, : free.shape[1] // 2] - baseline[:, None]
    excess[:, :-1] *= left
    return np.asarray(baseline[:, None] + excess)


@pytest.mark.parametrize(
    ("left", "outcome"), [(0.6, SUPPORTED), (0.98, REFUTED), (1.2, REFUTED), (0.9, INCONCLUSIVE)]
)
def test_horizon_confounder(rng: np.random.Generator, left: float, outcome: Outcome) -> None:
    loss, baseline = losses(sigmoid(), rng)
    own = left + 0.03 * stats.zscore(rng.normal(size=(PROMPTS, 1)))
    decision = horizon_confounder(loss, controlled(loss, baseline, own), baseline)
    assert decision.outcome is outcome
    assert decision.estimates[0].value == pytest.approx(1 - left, abs=0.01)
    assert "still falls" in decision.note


def test_what_would_vanish_if_every_touched_layer_cost_the_same() -> None:
    """Then it does, and the controlled curve is flat."""
    depth, middle = 24, 12
    free = np.tile((depth - horizons()) / 4, (8, 1))
    held = np.full((8, middle), (depth - middle) / 4)
    decision = horizon_confounder(3 + free, 3 + held, np.full(8, 3.0))
    share = 1 - middle * (middle - 1) / sum(depth - k for k in range(1, middle))
    assert decision.estimates[0].value == pytest.approx(share)
    assert f"{share:.2g} would vanish" in decision.note
    assert "not sure that the loss falls" in decision.note


def test_no_excess_is_no_answer_about_the_confounder() -> None:
    flat = np.full((8, LAYERS), 3.0)
    decision = horizon_confounder(flat, flat[:, : LAYERS // 2], flat[:, 0])
    assert decision.outcome is INCONCLUSIVE
    assert "no excess" in decision.note


def test_the_horizon_beside_growth_is_never_decided(rng: np.random.Generator) -> None:
    log_norm = 0.05 * np.arange(LAYERS) + 0.01 * rng.normal(size=(PROMPTS, LAYERS))
    decision = horizon_with_growth(*losses(step(8), rng), log_norm, Phase(3, 20, "planted"))
    assert decision.outcome is INCONCLUSIVE
    assert not any(e.region for e in decision.estimates)
    share, found, rate, depth = (e.value for e in decision.estimates)
    assert (share, found, depth) == (9 / LAYERS, 9, LAYERS)
    assert rate == pytest.approx(np.exp(0.05), rel=1e-3)


def every_rule(loss: Floats, baseline: Floats) -> list[Decision]:
    return [
        horizon_decay(loss, baseline),
        horizon_small(loss, baseline, loss),
        horizon_confounder(loss, loss[:, : LAYERS // 2], baseline),
        horizon_with_growth(loss, baseline, loss, Phase(3, 20, "planted")),
    ]


def test_prompts_without_a_value_are_dropped(rng: np.random.Generator) -> None:
    loss, baseline = losses(exponential(), rng)
    expected = every_rule(loss[2:], baseline[2:])
    loss[0], baseline[0], loss[1, 3] = np.nan, np.nan, np.nan
    found = every_rule(loss, baseline)
    assert [d.outcome for d in found] == [d.outcome for d in expected]
    assert found[:2] == expected[:2]


def test_too_few_prompts_are_inconclusive(rng: np.random.Generator) -> None:
    for decision in every_rule(*losses(exponential(), rng, MIN_PROMPTS - 1)):
        assert decision.outcome is INCONCLUSIVE
        assert "7 prompt(s) with every value; at least 8" in decision.note


def test_several_models_together() -> None:
    rates, depths = [1.2, 1.1, 1.05, 1.04, np.nan], [6, 12, 24, 48, 30]
    found = horizon_against(rates, depths, [5, 9, 14, 20, 17])
    assert (found.models, found.missing) == (4, 0)
    values = [c.value for c in found.correlations]
    assert values == pytest.approx([-1, 1, 1, -1])
    assert "effective horizon and rate: -1.00 (p = 0.083)" in str(found)  # 2 orders of 24
    few = horizon_against(rates[:3], depths[:3], [5, 9, 14])
    assert str(few) == "3 model(s) with a horizon; 1 more are needed"


def test_rank_correlations_are_scipys(rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(2, 30))
    value, p = rank_correlation(x, y)
    assert (value, p) == pytest.approx(tuple(stats.spearmanr(x, y)), abs=0.02)
    assert np.isnan(rank_correlation(np.ones(5), y[:5])).all()


def run_of(excess: Floats, left: float = 0.5, n: int = PROMPTS, id: str = "org/tiny") -> Run:
    """A run whose tokens have these losses, ``left`` of their excess if controlled."""
    rng = np.random.default_rng(4)
    loss, baseline = losses(excess, rng, n)
    held = controlled(loss, baseline, left)
    tables = {"loss": baseline, "horizon_loss": loss, "horizon_loss_from_middle": held}
    tables["horizon_kl"] = loss - baseline[:, None]
    curves = [
        Curve(name, HORIZON[name].dims, per_token(rows), "nats") for name, rows in tables.items()
    ]
    depth = len(excess)
    norm = np.exp(0.05 * np.arange(depth) + 0.02 * rng.normal(size=(n, 1, 1)))
    stream = Curve(
        "resid_post_norm", ("prompt", "position", "layer"), np.tile(norm, (1, 6, 1)), "norm"
    )
    run = a_run(*curves, stream, id=id)
    text = PromptInfo("a.txt", "cd", n, 6 * n, 6, "<s>")
    info = HorizonInfo("zero", "recomputed", "everywhere", None, "full", "layers", text)
    model = replace(run.model, n_layers=depth)
    return replace(run, model=model, prompts=replace(text, count=max(n, 16)), horizon=info)


def per_token(rows: Floats) -> Floats:
    """Five predicted tokens a prompt around its mean, none at BOS; three in some shorter ones."""
    around = np.array([np.nan, -0.3, 0.3, 0.0, -0.1, 0.1])
    values = rows[:, None] + around.reshape(-1, *[1] * (rows.ndim - 1))
    values[::3, 4:] = np.nan
    return values


RUNS = {
    SUPPORTED: {
        "horizon-decay": run_of(exponential()),
        "horizon-small-model": run_of(step(20)),
        "horizon-confounder": run_of(exponential()),
    },
    REFUTED: {
        "horizon-decay": run_of(sigmoid()),
        "horizon-small-model": run_of(step(9)),
        "horizon-confounder": run_of(sigmoid(), left=1.0),
    },
}


@pytest.mark.parametrize("outcome", [SUPPORTED, REFUTED])
@pytest.mark.parametrize("claim", RUNS[SUPPORTED])
def test_claims_both_ways(claim: str, outcome: Outcome) -> None:
    verdict = CLAIMS[claim].evaluate(RUNS[outcome][claim])
    assert verdict.outcome is outcome, verdict
    assert "what is further back than k layers is removed, in every layer" in verdict.note
    assert verdict.figure is not None
    assert verdict.figure.level is not None


def test_the_open_question_stays_open() -> None:
    verdict = CLAIMS["horizon-vs-growth"].evaluate(RUNS[SUPPORTED]["horizon-decay"])
    assert verdict.outcome is INCONCLUSIVE
    assert "open question" in verdict.note
    assert {e.name for e in verdict.estimates} >= {"rate per layer", "effective horizon", "layers"}


def test_all_claims_of_the_family_are_here() -> None:
    assert set(CLAIMS) == {*RUNS[SUPPORTED], "horizon-vs-growth"}


def test_published_facts_are_shown_and_what_was_measured_instead() -> None:
    run = run_of(exponential(48), id="gpt2-xl")
    note = CLAIMS["horizon-decay"].evaluate(run).note
    assert "near 9 at k = 1, baseline 3.1418, steepest between 10 and 25, mean-ablated" in note
    assert run.horizon is not None
    mean = replace(run, horizon=replace(run.horizon, ablation="mean", enforced="at", layer=3))
    note = CLAIMS["horizon-decay"].evaluate(mean).note
    assert "replaced by its mean, at layer 3 alone" in note
    small = CLAIMS["horizon-small-model"]
    assert "not of this model" in small.evaluate(run).note
    gpt2 = run_of(exponential(12), id="gpt2")
    assert "not of this model" not in small.evaluate(gpt2).note


def test_fewer_prompts_with_horizons_than_the_run_has() -> None:
    run = run_of(exponential(), n=5)
    for claim in CLAIMS.values():
        verdict = claim.evaluate(run)
        assert verdict.outcome is INCONCLUSIVE
        assert "5 prompt(s)" in verdict.note


def test_shapes_have_their_names_in_the_note(rng: np.random.Generator) -> None:
    note = horizon_decay(*losses(sigmoid(), rng)).note
    assert all(shape.value in note for shape in Decay)


def test_a_share_of_the_depth_keeps_the_interval(rng: np.random.Generator) -> None:
    found = effective_horizon(np.tile(step(5), (8, 1)))
    share = over_depth(found, LAYERS)
    assert (share.value, share.n) == (0.25, 8)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240723)
