"""Claims, verdicts and results: what applies, what is said, and what fails."""

from __future__ import annotations

import inspect
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from residcheck.claim import Claim, Source, claim
from residcheck.curves import TOKEN_DIMS, Curve, ModelInfo, PromptInfo, Run
from residcheck.errors import ExitStatus, GateError, ResidcheckError, UsageError
from residcheck.result import Drift, Judged, ModelResult
from residcheck.stats import Decision, Estimate, Outcome, Region, exactly
from residcheck.verdict import Figure, Finding, Verdict

SOURCE = Source("On norms", "Nobody", 2023, "Nowhere")
LAYERS, PROMPTS = 6, 16
SUPPORTED, REFUTED = Outcome.SUPPORTED, Outcome.REFUTED
INCONCLUSIVE, NOT_APPLICABLE = Outcome.INCONCLUSIVE, Outcome.NOT_APPLICABLE


def make_run(
    n_layers: int = LAYERS, prompts: int = PROMPTS, missing: dict[str, str] | None = None
) -> Run:
    values = np.ones((prompts, 3, n_layers))
    text = dict.fromkeys(
        ("weights", "model_type", "norm", "activation", "dtype", "device", "backend"), "x"
    )
    model = ModelInfo(
        id="org/tiny",
        n_layers=n_layers,
        d_model=8,
        n_heads=2,
        d_mlp=32,
        norm_eps=0.0,
        parallel=False,
        gated=False,
        processing="raw",
        attention="",
        missing=missing or {},
        **text,
    )
    info = PromptInfo("a.txt", "ab", prompts, prompts * 3, 3, "<s>")
    return Run(model, {}, info, {"norm": Curve("norm", TOKEN_DIMS, values, "norm")})


FOUND = Estimate("rate", 1.045, 1.04, 1.05, PROMPTS, "other prompts", Region(1.0))
FIGURE = Figure(("norm",))


@claim(
    "grows",
    family="A",
    statement="It grows.",
    source=SOURCE,
    published="1.045",
    needs=("norm",),
    uses=("extra",),
    prompts=12,
    layers=5,
)
def test_grows(run: Run) -> Finding:
    """How it is
    decided."""
    return Finding(Decision(SUPPORTED, (FOUND,), f"{run.n_layers} layers"), FIGURE)


GROWS: Claim = test_grows.claim  # type: ignore[attr-defined]
# What the decorator made would otherwise be collected as a test of this module.
DECORATED = test_grows
del test_grows


def test_a_claim_is_decided_by_its_rule() -> None:
    verdict = GROWS.evaluate(make_run())
    assert verdict == Verdict("grows", "org/tiny", SUPPORTED, (FOUND,), "6 layers")
    assert verdict.figure is FIGURE
    assert verdict.effect is FOUND


def test_a_claim_needs_what_the_architecture_has_and_says_why_not() -> None:
    verdict = GROWS.evaluate(make_run(missing={"norm": "parallel blocks have none"}))
    assert verdict == Verdict("grows", "org/tiny", NOT_APPLICABLE, (), "parallel blocks have none")
    assert verdict.effect is None


def test_a_curve_that_is_only_used_may_be_missing() -> None:
    assert GROWS.evaluate(make_run(missing={"extra": "no such thing"})).outcome is SUPPORTED


def test_a_run_without_the_curve_must_be_measured_again() -> None:
    verdict = GROWS.evaluate(replace(make_run(), curves={}))
    assert verdict.outcome is INCONCLUSIVE
    assert "norm" in verdict.note
    assert "measure it again" in verdict.note


@pytest.mark.parametrize(("n_layers", "outcome"), [(1, NOT_APPLICABLE), (4, NOT_APPLICABLE)])
def test_too_few_layers_say_how_many_are_needed(n_layers: int, outcome: Outcome) -> None:
    verdict = GROWS.evaluate(make_run(n_layers=n_layers))
    assert verdict.outcome is outcome
    assert f"{n_layers} layer(s)" in verdict.note
    assert "at least 5" in verdict.note


@pytest.mark.parametrize("prompts", [1, 11])
def test_too_few_prompts_say_how_many_would_do(prompts: int) -> None:
    verdict = GROWS.evaluate(make_run(prompts=prompts))
    assert verdict.outcome is INCONCLUSIVE
    assert f"{prompts} prompt(s)" in verdict.note
    assert "at least 12" in verdict.note


def test_just_enough_layers_and_prompts_do() -> None:
    assert GROWS.evaluate(make_run(n_layers=5, prompts=12)).outcome is SUPPORTED


def test_the_decorator_makes_a_test_of_two_fixtures() -> None:
    """pytest reads the signature to find the fixtures, and follows ``__wrapped__``."""
    fixtures = ["residcheck_run", "residcheck_judge"]
    assert list(inspect.signature(DECORATED).parameters) == fixtures
    assert not hasattr(DECORATED, "__wrapped__")
    assert DECORATED.__name__ == "test_grows"
    judged: list[Any] = []
    run = make_run()
    DECORATED(run, lambda *seen: judged.append(seen))
    assert judged == [(GROWS, run)]


def test_a_claim_says_what_it_is() -> None:
    assert isinstance(GROWS, Claim)
    assert GROWS.how == "How it is decided."
    assert GROWS.curves == ("norm", "extra")
    assert str(GROWS.source) == "Nobody (2023), On norms, Nowhere"
    assert str(replace(SOURCE, place="")) == "Nobody (2023), On norms"


INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("value", "low", "high", "expected"),
    [
        (1.5, 1.0, 2.0, [1.5, 1.0, 2.0]),
        (1.5, -INF, INF, [1.5, None, None]),
        (NAN, NAN, NAN, [None, None, None]),
        (np.float64(1.5), np.float64(1.0), np.float64(2.0), [1.5, 1.0, 2.0]),
    ],
)
def test_a_verdict_is_strict_json(
    value: float, low: float, high: float, expected: list[float | None]
) -> None:
    estimate = Estimate("rate", value, low, high, 9, "other prompts", Region(low=1.0))
    verdict = Verdict("grows", "org/tiny", REFUTED, (estimate,), "note", FIGURE)
    document = json.loads(json.dumps(verdict.to_json(), allow_nan=False))
    assert document == {
        "claim": "grows",
        "model": "org/tiny",
        "verdict": "refuted",
        "note": "note",
        "estimates": [
            {
                "name": "rate",
                **dict(zip(("value", "low", "high"), expected, strict=True)),
                "n": 9,
                "population": "other prompts",
                "region": {"low": 1.0, "high": None},
                "level": 0.95,
            }
        ],
    }


def test_an_exact_statement_has_no_level_and_a_report_no_region() -> None:
    exact = exactly("slack", 0.1, 9, Region(low=0.0))
    report = replace(FOUND, region=None)
    first, second = Verdict("a", "b", SUPPORTED, (exact, report)).to_json()["estimates"]
    assert first["level"] is None
    assert second["region"] is None


@pytest.mark.parametrize(
    ("estimates", "text"),
    [
        ((), ""),
        ((FOUND,), "rate = 1.045 [1.04, 1.05] (95%, over other prompts, n = 16)"),
        ((exactly("slack", 0.25, 12345, Region()), FOUND), "slack = 0.25 (n = 12,345)"),
    ],
    ids=["nothing", "sampled", "exact"],
)
def test_measured_is_the_effect_in_one_line(estimates: tuple[Estimate, ...], text: str) -> None:
    assert Verdict("a", "b", SUPPORTED, estimates).measured == text


INSIDE, OUTSIDE = exactly("in", 1.0, 9, Region()), exactly("out", 1.0, 9, Region(2.0))
REPORTED = replace(FOUND, region=None)


@pytest.mark.parametrize(
    ("outcome", "estimates", "deciding"),
    [
        (SUPPORTED, (REPORTED, INSIDE), INSIDE),
        (REFUTED, (INSIDE, OUTSIDE), OUTSIDE),
        (REFUTED, (REPORTED,), REPORTED),
        (NOT_APPLICABLE, (), None),
    ],
)
def test_the_deciding_estimate_is_the_first_with_the_verdicts_outcome(
    outcome: Outcome, estimates: tuple[Estimate, ...], deciding: Estimate | None
) -> None:
    assert Verdict("a", "b", outcome, estimates).deciding is deciding


@pytest.mark.parametrize(
    ("outcome", "recorded", "comparable", "changed", "fails", "label"),
    [
        (SUPPORTED, None, False, False, False, "supported"),
        (SUPPORTED, SUPPORTED, True, False, False, "supported"),
        (SUPPORTED, REFUTED, True, True, True, "supported (was refuted)"),
        (SUPPORTED, REFUTED, False, False, False, "supported"),
        (SUPPORTED, INCONCLUSIVE, True, True, True, "supported (was inconclusive)"),
        (REFUTED, None, False, False, True, "refuted"),
        (REFUTED, None, True, False, True, "refuted"),
        (REFUTED, REFUTED, True, False, False, "refuted, as recorded"),
        (REFUTED, SUPPORTED, True, True, True, "refuted (was supported)"),
        (REFUTED, SUPPORTED, False, False, True, "refuted"),
        (INCONCLUSIVE, None, False, False, False, "inconclusive"),
        (INCONCLUSIVE, SUPPORTED, True, True, True, "inconclusive (was supported)"),
        (INCONCLUSIVE, SUPPORTED, False, False, False, "inconclusive"),
        (NOT_APPLICABLE, None, False, False, False, "not applicable"),
        (NOT_APPLICABLE, NOT_APPLICABLE, True, False, False, "not applicable"),
        (NOT_APPLICABLE, REFUTED, True, True, True, "not applicable (was refuted)"),
    ],
)
def test_what_changed_what_fails_and_what_it_is_called(
    outcome: Outcome,
    recorded: Outcome | None,
    comparable: bool,
    changed: bool,
    fails: bool,
    label: str,
) -> None:
    judged = Judged(GROWS, Verdict("grows", "m", outcome), recorded, comparable)
    assert (judged.changed, judged.fails, judged.label) == (changed, fails, label)


@pytest.mark.parametrize(
    ("outcomes", "drifts", "status"),
    [
        ([], [], ExitStatus.OK),
        ([SUPPORTED, INCONCLUSIVE, NOT_APPLICABLE], [], ExitStatus.OK),
        ([SUPPORTED, REFUTED], [], ExitStatus.REFUTED_OR_DRIFTED),
        ([SUPPORTED], [Drift("norm", "layer 3")], ExitStatus.REFUTED_OR_DRIFTED),
    ],
)
def test_status_is_one_for_a_refutation_or_a_drift(
    outcomes: list[Outcome], drifts: list[Drift], status: ExitStatus
) -> None:
    judged = tuple(Judged(GROWS, Verdict("grows", "m", outcome)) for outcome in outcomes)
    assert ModelResult(make_run(), judged, tuple(drifts)).status is status


@pytest.mark.parametrize(
    ("error", "status"),
    [(UsageError, 2), (GateError, 3), (ResidcheckError, 3)],
)
def test_errors_carry_a_hint_and_a_status_and_survive_a_process_boundary(
    error: type[ResidcheckError], status: int
) -> None:
    import pickle

    raised = pickle.loads(pickle.dumps(error("what was wrong", "what to do")))
    assert type(raised) is error
    assert str(raised) == "what was wrong\nwhat to do"
    assert raised.exit_status == status
    assert str(error("alone")) == "alone"
