"""What a snapshot says of where it is from, and when it may be held against a run."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from horizon_runs import horizon_run
from report_runs import a_curve

from residcheck.curves import PromptInfo, Run
from residcheck.judging import drift, judge, judge_run
from residcheck.names import HORIZON
from residcheck.snapshot import (
    comparable,
    compare_documents,
    curve_document,
    key,
    verdict_document,
    verdict_name,
)
from residcheck.snapshot.extension import _explain
from residcheck.snapshot.store import dumps
from residcheck.stats import Decision, Outcome, exactly
from residcheck.verdict import Finding, Verdict

PLAIN = {"model", "prompts", "environment"}
VERDICT = Verdict("some-claim", "org/tiny", Outcome.SUPPORTED)


def the_run(**fields: Any) -> Run:
    run = horizon_run(**fields)
    return replace(run, curves={**run.curves, "b_O_norm": a_curve("b_O_norm")})


def as_stored(document: dict[str, Any]) -> dict[str, Any]:
    stored: dict[str, Any] = json.loads(dumps(document))
    return stored


def on_other_prompts(run: Run) -> Run:
    assert run.horizon is not None
    return replace(run, horizon=replace(run.horizon, prompts=PromptInfo("b", "e", 2, 9, 5, "")))


@pytest.mark.parametrize("name", HORIZON)
def test_curves_over_horizons_say_how_they_were_taken(name: str) -> None:
    run = the_run()
    assert run.horizon is not None
    provenance = as_stored(curve_document(run, name))["provenance"]
    assert provenance["horizon"] == asdict(run.horizon)
    assert provenance["horizon"]["prompts"]["sha256"] == "cd"


def test_other_documents_say_nothing_of_horizons() -> None:
    run = the_run()
    without = replace(run, horizon=None)
    assert curve_document(run, "b_O_norm")["provenance"].keys() == PLAIN
    assert dumps(curve_document(run, "b_O_norm")) == dumps(curve_document(without, "b_O_norm"))
    verdict = verdict_document(run, VERDICT, ("b_O_norm",))
    assert verdict["provenance"].keys() == PLAIN
    assert dumps(verdict) == dumps(verdict_document(without, VERDICT, ("b_O_norm",)))


def test_verdicts_of_claims_that_read_horizons_say_how_they_were_taken() -> None:
    run = the_run()
    assert run.horizon is not None
    document = verdict_document(run, VERDICT, ("b_O_norm", "horizon_kl"))
    assert document["provenance"]["horizon"] == asdict(run.horizon)
    assert document["verdict"]["verdict"] == "supported"


def test_a_summary_counts_horizons_from_one() -> None:
    curve = curve_document(the_run(layers=4), "horizon_loss")["curve"]
    assert curve["horizon"] == [1, 2, 3, 4]
    assert len(curve["mean"]) == 4
    assert "bos" not in curve


VARIANT = "taken with another horizon variant"
PROMPTS = "taken on other prompts for the horizon"


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        (the_run(), ""),
        (the_run(ablation="mean"), VARIANT),
        (the_run(enforced="from", layer=3), VARIANT),
        (replace(the_run(), horizon=None), VARIANT),
        (on_other_prompts(the_run()), PROMPTS),
        (on_other_prompts(the_run(unit="sublayers")), VARIANT),
    ],
    ids=["same", "ablation", "layer", "none", "prompts", "both"],
)
def test_another_variant_or_other_prompts_are_not_compared(now: Run, reason: str) -> None:
    then = the_run()
    documents = [
        curve_document(then, "horizon_loss"),
        curve_document(then, "loss"),
        verdict_document(then, VERDICT, ("horizon_loss",)),
    ]
    for document in map(as_stored, documents):
        said = comparable(document, now)
        assert said.endswith(reason)
        assert bool(said) == bool(reason)
    others = (curve_document(then, "b_O_norm"), verdict_document(then, VERDICT, ()))
    assert [comparable(as_stored(document), now) for document in others] == ["", ""]


def test_the_weights_and_the_prompts_of_the_run_come_first() -> None:
    run = the_run()
    document = as_stored(curve_document(run, "horizon_loss"))
    other = replace(run, model=replace(run.model, weights="y"), horizon=None)
    assert comparable(document, other) == "the snapshot is of other weights"
    other = replace(run, prompts=replace(run.prompts, sha256="y"), horizon=None)
    assert comparable(document, other) == "the snapshot was taken on other prompts"


@pytest.mark.parametrize(
    ("name", "reason"),
    [("padding_shift", "through other, which pads its own way"), ("b_O_norm", "")],
)
def test_how_a_library_pads_is_held_against_that_library_only(name: str, reason: str) -> None:
    run = the_run()
    document = as_stored(curve_document(run, "b_O_norm")) | {"name": name}
    assert comparable(document, run) == ""
    document["provenance"]["model"]["backend"] = "other"
    assert comparable(document, run).endswith(reason)
    assert bool(comparable(document, run)) == bool(reason)


def test_updating_replaces_what_was_taken_otherwise() -> None:
    """syrupy keeps what matches; a verdict that is the same says nothing of the variant."""
    then, now = the_run(), the_run(ablation="mean")
    one, other = (dumps(verdict_document(run, VERDICT, ("horizon_loss",))) for run in (then, now))
    assert _explain(one, one) is None
    assert VARIANT in (_explain(other, one) or "")
    assert _explain(*(dumps(verdict_document(run, VERDICT, ())) for run in (then, now))) is None


def test_two_predictions_may_change_their_likeliest_token() -> None:
    run = the_run()
    assert run.horizon is not None
    prompts = run.horizon.prompts
    token = 1 / (prompts.tokens - prompts.count)  # BOS is not predicted
    stored = curve_document(run, "horizon_top1")
    for tokens, same in ((1, True), (2, True), (3, False)):
        measured = as_stored(stored)
        measured["curve"]["mean"][3] += tokens * token
        assert compare_documents(stored, measured).same is same


def test_a_drift_over_horizons_is_found_where_it_is(tmp_path: Path) -> None:
    run = the_run()
    path = tmp_path / f"{key(run.model.id, 'horizon_loss')}.json"
    path.parent.mkdir()
    document = as_stored(curve_document(run, "horizon_loss"))
    document["curve"]["mean"][11] *= 1.01
    path.write_text(dumps(document))
    found = drift(run, "horizon_loss", tmp_path)
    assert found is not None
    assert "mean at horizon 12" in found.message
    assert drift(the_run(ablation="mean"), "horizon_loss", tmp_path) is None


def test_a_curve_that_can_be_measured_no_more_has_drifted(tmp_path: Path) -> None:
    """As where a library drops a bias; of another library, it may never have been there."""
    run = the_run()
    path = tmp_path / f"{key(run.model.id, 'b_O_norm')}.json"
    path.parent.mkdir()
    path.write_text(dumps(curve_document(run, "b_O_norm")))
    without = {name: curve for name, curve in run.curves.items() if name != "b_O_norm"}
    lost = replace(run.model, missing={"b_O_norm": "attention adds no bias"})
    later = replace(run, model=lost, curves=without)
    found = drift(later, "b_O_norm", tmp_path)
    assert found is not None
    assert "cannot be measured any more: attention adds no bias" in found.message
    assert str(path) in found.message
    assert [d.curve for d in judge_run(later, [], tmp_path).drifts] == ["b_O_norm"]
    assert drift(replace(run, curves=without), "b_O_norm", tmp_path) is None  # nobody asked
    other = replace(later, model=replace(lost, backend="transformers"))
    assert other.model.backend != run.model.backend
    assert drift(other, "b_O_norm", tmp_path) is None


def test_a_verdict_taken_with_another_variant_has_not_changed(tmp_path: Path) -> None:
    from test_verdict import GROWS

    def refute(run: Run) -> Finding:
        return Finding(Decision(Outcome.REFUTED, (exactly("x", 1.0, 1, None),)))

    claim = replace(GROWS, needs=("horizon_loss",), uses=(), prompts=1, rule=refute)
    run = the_run()
    path = tmp_path / f"{key(run.model.id, verdict_name(claim.id))}.json"
    path.parent.mkdir()
    verdict = Verdict(claim.id, run.model.id, Outcome.SUPPORTED)
    path.write_text(dumps(verdict_document(run, verdict, claim.curves)))
    assert judge(claim, run, tmp_path).changed
    assert not judge(claim, the_run(ablation="mean"), tmp_path).changed
