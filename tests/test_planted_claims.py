"""Every claim comes out supported where it is planted and refuted where its opposite is.

The rows are those of the page of proofs, in ``proof/planted.py``.
"""

from __future__ import annotations

import pytest
from proof.planted import (
    BOTH_WAYS,
    CLAIMS,
    EXACT,
    UNDECIDED,
    exact_verdict,
    measured,
    spoilt_verdict,
    verdict_on,
)

from residcheck.curves import Run
from residcheck.planted.plan import FAMILIES, WITH_BIASES
from residcheck.stats import Outcome

SUPPORTED, REFUTED = Outcome.SUPPORTED, Outcome.REFUTED
RUNS: dict[str, Run] = {}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("outcome", [SUPPORTED, REFUTED])
@pytest.mark.parametrize("claim", BOTH_WAYS)
def test_both_ways(claim: str, outcome: Outcome) -> None:
    spec = BOTH_WAYS[claim][outcome is REFUTED]
    verdict = verdict_on(claim, spec, RUNS)
    assert verdict.outcome is outcome, (spec, verdict)


@pytest.mark.parametrize("backend", ["transformer_lens", "transformers"])
@pytest.mark.parametrize(
    ("claim", "family"),
    [
        (claim, family)
        for claim in EXACT
        for family in FAMILIES
        if claim != "mean-zero" or family in WITH_BIASES  # an RMSNorm reads the mean
    ],
)
def test_exact_claims_hold_whatever_the_weights(claim: str, family: str, backend: str) -> None:
    spec = f"planted:family={family},layers=4,backend={backend}"
    assert exact_verdict(claim, spec).outcome is SUPPORTED


@pytest.mark.parametrize("claim", EXACT)
def test_exact_claims_fail_where_what_they_rest_on_is_broken(
    claim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdict = spoilt_verdict(claim, "planted:,backend=transformers", monkeypatch)
    assert verdict.outcome is REFUTED, verdict


# What is first in a verdict, in closed form. The excess of a weak answer is nearly linear
# in what is lost. With equal tolls, horizons 1 to 5 of 12 layers touch 11 + 10 + ... + 7 = 45
# layers, and from the middle on 5 times 6.
CLOSED_FORMS = [
    ("growth-exponential", "planted:growth=1.08", 1.08, 1e-3),
    ("sublayers-grow", "planted:growth=1.08", 0.0, 1e-3),
    ("activation-rate", "planted:activation=1.1", 1.1, 5e-3),
    ("bo-negligible", "planted:growth=1.08", 1.0, 1e-9),
    ("horizon-decay", "planted:decay=5,layers=20", 5.0, 0.1),
    ("horizon-small-model", "planted:horizon=10,layers=16", 10 / 16, 1e-9),
    ("horizon-small-model", "planted:horizon=12,layers=12", 1.0, 1e-9),
    ("horizon-confounder", "planted:toll=0.012", 1 - 30 / 45, 0.02),
]


@pytest.mark.parametrize(("claim", "spec", "planted", "near"), CLOSED_FORMS)
def test_what_is_found_is_what_was_planted(
    claim: str, spec: str, planted: float, near: float
) -> None:
    found = verdict_on(claim, spec, RUNS).estimates[0]
    assert found.value == pytest.approx(planted, abs=near), found


@pytest.mark.parametrize(
    ("plan", "growth", "window"),
    [
        ("growth=1.045,layers=48,window=5-41", 1.045, "layers 5-41"),
        ("growth=1.06,layers=24,window=4-20", 1.06, "layers 4-20"),
        ("growth=1.1,layers=12,window=0-8,family=neox", 1.1, "layers 0-8"),
        ("growth=1.1,layers=12,family=gemma3", 1.1, "layers 0-11"),
    ],
)
def test_the_window_of_growth_is_found(plan: str, growth: float, window: str) -> None:
    verdict = verdict_on("growth-exponential", f"planted:{plan}", RUNS)
    assert verdict.note.startswith(window)
    assert verdict.estimates[0].value == pytest.approx(growth, abs=5e-4)


@pytest.mark.parametrize("spec", ["planted:growth=1.08", "planted:horizon=10,layers=16"])
def test_the_open_question_is_never_decided(spec: str) -> None:
    verdict = verdict_on(UNDECIDED[0], spec, RUNS)
    assert verdict.outcome is Outcome.INCONCLUSIVE, verdict
    assert "an open question" in verdict.note


def test_every_claim_is_here() -> None:
    assert {*BOTH_WAYS, *EXACT, *UNDECIDED} == {*CLAIMS}


@pytest.mark.parametrize("spec", ["planted:horizon=5,layers=8", "planted:decay=3,layers=8"])
def test_sublayers_that_write_nothing_leave_no_number_and_no_warning(spec: str) -> None:
    """Its attention writes zeros, and the matrices of its gates read the stream's mean alone."""
    claims = [claim.id for claim in CLAIMS.values() if claim.family in "BCE"]
    run = measured(spec, claims)
    verdicts = {claim: CLAIMS[claim].evaluate(run) for claim in claims}
    assert verdicts["frobenius-expectation"].outcome is SUPPORTED
    assert verdicts["ov-tracks-attn-out"].outcome is Outcome.INCONCLUSIVE
    assert "attn_out_norm is zero in layers 0, 1" in verdicts["ov-tracks-attn-out"].note
