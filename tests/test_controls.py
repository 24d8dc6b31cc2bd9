"""Trained controls: reading them, intervals over seeds, and the rules of family H."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from control_zoos import RATES, SCALE, write_run, write_zoo

from residcheck.controls import Comparison, read_zoo, shipped
from residcheck.controls.comparison import Layout
from residcheck.controls.rates import LOG_RATE, LOSS, over_windows, rate
from residcheck.errors import ResidcheckError, RunFileError, UsageError
from residcheck.intervention import Intervention, all_interventions
from residcheck.judging import judge_controls
from residcheck.snapshot import dumps, key, verdict_name, verdict_of_controls
from residcheck.stats import Outcome
from residcheck.stats.blocks import Blocks, own_seeds
from residcheck.train.arms import ORDER, read_arms
from residcheck.verdict import Verdict

H: dict[str, Intervention] = {one.id: one for one in all_interventions()}


def compared(folder: Path) -> Comparison:
    return Comparison.of(read_zoo(folder))


def verdict(name: str, folder: Path) -> Verdict:
    return H[name].evaluate(compared(folder))


def test_differences_are_those_of_a_linear_model_with_arms_and_seeds() -> None:
    values = np.random.default_rng(0).normal(size=(5, 3))
    rows = [(f"a{i}", s, values[i, s]) for i in range(5) for s in range(3)]
    frame = pd.DataFrame(rows, columns=["arm", "seed", "rate"])
    fitted = smf.ols("rate ~ C(arm) + C(seed)", data=frame).fit()
    blocks = Blocks(values)
    assert blocks.dof == fitted.df_resid
    assert blocks.variance == pytest.approx(fitted.mse_resid)
    np.testing.assert_allclose(blocks.residuals.ravel(), fitted.resid)
    for arm in range(1, 5):
        low, high = fitted.conf_int().loc[f"C(arm)[T.a{arm}]"]
        found = blocks.difference("", arm, 0, None)
        assert found.value == pytest.approx(fitted.params[f"C(arm)[T.a{arm}]"])
        assert (found.low, found.high) == pytest.approx((low, high))
        assert found.population == "other seeds"


def test_two_seeds_and_three_arms_by_hand() -> None:
    blocks = Blocks(np.array([[0.0, 2.0], [1.0, 5.0], [2.0, 2.0]]))
    # Means of arms 1, 3, 2, of seeds 1, 3: residuals -+ 0, -+ 1, +- 1.
    assert blocks.dof == 2
    assert blocks.variance == pytest.approx(4 / 2)
    half = 4.302653 * np.sqrt(2 * 2 / 2)
    found = blocks.difference("", 1, 0, None)
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half), rel=1e-6)


def test_the_mean_of_an_arm_by_hand() -> None:
    found = own_seeds("", np.array([0.0, 2.0, 4.0]), None)
    half = 4.302653 * 2 / np.sqrt(3)
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half), rel=1e-6)
    assert found.population == "other seeds"


@pytest.mark.parametrize(("seeds", "between"), [(2, 0.0), (2, 1.0), (2, 5.0), (3, 1.0)])
def test_intervals_cover_what_they_say(seeds: int, between: float) -> None:
    numbers, times, hits = np.random.default_rng(7), 600, np.zeros(2)
    for _ in range(times):
        values = numbers.normal(size=(10, seeds)) + between * numbers.normal(size=seeds)
        blocks = Blocks(values)
        for i, found in enumerate(
            (blocks.difference("", 3, 0, None), own_seeds("", values[3], None))
        ):
            hits[i] += found.low <= 0 <= found.high
    # Three standard errors of 600 draws around 95 %.
    assert (np.abs(hits / times - 0.95) < 0.027).all(), hits / times


def test_a_layout_takes_three_arms_and_two_seeds() -> None:
    for shape in ((2, 2), (3, 1)):
        with pytest.raises(ValueError, match="no layout"):
            Blocks(np.zeros(shape))


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_zoo(tmp_path / "zoo")
    zoo = read_zoo(tmp_path / "zoo")
    assert [run.arm.name for run in zoo.runs] == [arm for arm in ORDER for _ in range(2)]
    assert zoo.name == "controls-made"
    found = Comparison.of(zoo)
    assert found.layouts == {
        "rescale-residual": Layout((*ORDER[:3],), (0, 1)),
        "more-heads": Layout((ORDER[0], *ORDER[3:5]), (0, 1)),
        "decay-layernorm-gains": Layout((ORDER[0], *ORDER[5:7]), (0, 1)),
        "reference": Layout((ORDER[0], *ORDER[7:]), (0, 1)),
    }
    one = found.runs["baseline", 0]
    assert rate(one).value == pytest.approx(one.history[-1].rate, rel=1e-6)
    assert found.values["baseline", 0][LOG_RATE] == pytest.approx(0.03, abs=1e-3)
    assert found.values["baseline", 1][LOSS] == pytest.approx(one.loss + 0.02, abs=1e-3)
    pair = over_windows(found.runs["rescale-residual", 0], one)
    assert pair.value == pytest.approx(-0.029, abs=1e-3)
    assert pair.population == "other windows"


def test_missing_seeds_shrink_the_layout(tmp_path: Path) -> None:
    write_zoo(tmp_path, arms=(*ORDER[:5], *ORDER[7:]), seeds=(0, 1))
    write_run(tmp_path, "decay-all", 0)
    write_run(tmp_path, "baseline", 2)
    write_run(tmp_path, "post-norm", 2)
    found = compared(tmp_path)
    assert found.layout("heads-16") == Layout((ORDER[0], *ORDER[3:5]), (0, 1))
    # Three arms with two seeds are more degrees of freedom than one with three.
    assert found.layout("post-norm") == Layout((ORDER[0], *ORDER[7:]), (0, 1))
    alone = found.difference("decay-all", LOG_RATE)
    assert np.isfinite(alone.value)
    assert (alone.low, alone.high) == (-np.inf, np.inf)
    assert "2 seeds that decay-all, the baseline and" in found.why_no_difference("decay-all")


def test_seeds_of_another_question_widen_no_interval(tmp_path: Path) -> None:
    """Divided streams differ a lot between seeds; that says nothing of heads."""
    write_zoo(tmp_path / "one")
    write_zoo(tmp_path / "other", arms=("baseline", "heads-8", "heads-16"))
    for seed, left in enumerate((-0.03, 0.03)):
        for arm in ("rescale-residual", "rescale-residual-learned"):
            write_run(tmp_path / "other", arm, seed, log_rate=left)
    found = [
        compared(tmp_path / name).difference("heads-16", LOG_RATE) for name in ("one", "other")
    ]
    assert all(one.high - one.low < 0.01 for one in found)


@pytest.mark.parametrize(("arms", "seeds"), [(ORDER, (0,)), (ORDER[:1], (0, 1))])
def test_too_few_runs_decide_nothing_and_say_so(
    arms: tuple[str, ...], seeds: tuple[int, ...], tmp_path: Path
) -> None:
    write_zoo(tmp_path, arms=arms, seeds=seeds)
    for name in H:
        found = verdict(name, tmp_path)
        assert found.outcome is Outcome.INCONCLUSIVE
        assert "no interval over seeds" in found.note or "no finished run of" in found.note
        json.dumps(found.to_json(), allow_nan=False)


def test_unfinished_runs_are_named_and_left_out(tmp_path: Path) -> None:
    write_zoo(tmp_path, arms=ORDER[:3])
    (tmp_path / "heads-8-seed0").mkdir()
    (tmp_path / "heads-8-seed0" / "run.json").write_text("{}")
    (tmp_path / "corpus").mkdir()
    zoo = read_zoo(tmp_path)
    assert zoo.unfinished == ("heads-8-seed0",)
    assert len(zoo.runs) == 6


@pytest.mark.parametrize(
    ("left", "outcome", "note"),
    [
        (0.001, Outcome.SUPPORTED, "0.0"),
        (0.02, Outcome.REFUTED, "0.6"),
        (-0.02, Outcome.REFUTED, "the stream shrinks"),
        (0.005, Outcome.INCONCLUSIVE, "0.1"),
    ],
)
def test_rescaling_removes_the_growth_or_not(
    left: float, outcome: Outcome, note: str, tmp_path: Path
) -> None:
    write_zoo(tmp_path, RATES | {"rescale-residual": left}, seeds=(0, 1, 2))
    found = verdict("rescale-residual", tmp_path)
    assert found.outcome is outcome
    assert note in found.note
    assert "learned: divided by 0.900 (layer 0) to 1.100 (layer 11)" in found.note
    assert found.effect is not None
    assert found.effect.value == pytest.approx(left, abs=1e-3)


def test_rescaling_is_decided_by_the_seeds_of_its_arm_alone(tmp_path: Path) -> None:
    """A third seed of it counts, whichever seeds other arms have."""
    write_zoo(tmp_path, arms=ORDER[:1], seeds=(0,))
    for seed, left in enumerate((0.001, 0.002, 0.006)):
        write_run(tmp_path, "rescale-residual", seed, log_rate=left)
    effect = verdict("rescale-residual", tmp_path).effect
    assert effect is not None
    half = 4.302653 * np.std([1, 2, 6], ddof=1) / np.sqrt(3) / 1000
    assert (effect.low, effect.high) == pytest.approx((0.003 - half, 0.003 + half), rel=1e-3)


def test_where_nothing_grows_nothing_can_be_removed(tmp_path: Path) -> None:
    write_zoo(tmp_path, {"baseline": 0.001})
    found = verdict("rescale-residual", tmp_path)
    assert found.outcome is Outcome.INCONCLUSIVE
    assert "the baseline does not grow" in found.note


@pytest.mark.parametrize(
    ("more", "outcome"),
    [(0.01, Outcome.SUPPORTED), (0.0, Outcome.REFUTED), (-0.02, Outcome.REFUTED),
     (0.005, Outcome.INCONCLUSIVE)],
)  # fmt: skip
def test_more_heads_raise_the_growth_or_not(more: float, outcome: Outcome, tmp_path: Path) -> None:
    write_zoo(tmp_path, RATES | {"heads-16": 0.03 + more})
    assert verdict("more-heads", tmp_path).outcome is outcome


@pytest.mark.parametrize(
    ("moved", "outcome"),
    [(0.01, Outcome.SUPPORTED), (-0.01, Outcome.SUPPORTED), (0.0, Outcome.REFUTED),
     (-0.005, Outcome.INCONCLUSIVE)],
)  # fmt: skip
def test_decay_moves_what_gains_store_or_not(
    moved: float, outcome: Outcome, tmp_path: Path
) -> None:
    write_zoo(tmp_path, gains={"decay-all": moved})
    found = verdict("decay-layernorm-gains", tmp_path)
    assert found.outcome is outcome
    assert any("decay-none" in estimate.name for estimate in found.estimates)
    # Gains grow from 1 by `moved` per layer; layers 2 to 10 of 12 lie 6 up in the mean.
    assert f"decay-all: gains {np.exp(6 * moved):.2f}" in found.note
    assert "decay-none: gains 1.00" in found.note or "decay-none: gains 0.99" in found.note


def test_wide_intervals_decide_nothing(tmp_path: Path) -> None:
    write_zoo(tmp_path, RATES | {"heads-16": 0.05}, gains={"decay-all": 0.02}, noise=0.02)
    for name in H:
        assert verdict(name, tmp_path).outcome is Outcome.INCONCLUSIVE


def test_a_verdict_is_held_against_the_one_recorded_of_these_runs(tmp_path: Path) -> None:
    from residcheck.intervention import provenance

    found = compared(write_zoo(tmp_path / "zoo", RATES | {"rescale-residual": 0.02}))
    question = H["rescale-residual"]
    fresh = judge_controls(question, found, tmp_path)
    assert (fresh.fails, fresh.label) == (True, "refuted")
    path = tmp_path / f"{key(found.zoo.name, verdict_name(question.id))}.json"
    path.parent.mkdir()
    document = verdict_of_controls(provenance(found.zoo), fresh.verdict)
    path.write_text(dumps(document))
    known = judge_controls(question, found, tmp_path)
    assert (known.fails, known.label) == (False, "refuted, as recorded")
    document["verdict"]["verdict"] = "supported"
    path.write_text(dumps(document))
    changed = judge_controls(question, found, tmp_path)
    assert (changed.fails, changed.label) == (True, "refuted (was supported)")
    other = compared(write_zoo(tmp_path / "more", RATES, seeds=(0, 1, 2)))
    assert judge_controls(question, other, tmp_path).recorded is None


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _of_scale(folder: Path) -> None:
    write_run(folder, "heads-8", 0, scale=replace(SCALE, name="other"))


def _nan(path: Path) -> None:
    lines = path.read_text().splitlines()
    said = json.loads(lines[-1]) | {"rate": float("nan")}
    path.write_text("\n".join([*lines[:-1], json.dumps(said)]) + "\n")


BASE = "baseline-seed0"


@pytest.mark.parametrize(
    ("harm", "kind", "message"),
    [
        (lambda z: (z / BASE / "measured.json").unlink(), ResidcheckError, "is missing\ndelete"),
        (lambda z: (z / BASE / "measured.json").write_text("{"), RunFileError, "cannot be read"),
        (lambda z: (z / BASE / "history.jsonl").unlink(), RunFileError, "holds no record"),
        (lambda z: (z / BASE / "history.jsonl").write_text(
            (z / BASE / "history.jsonl").read_text()[:-40]), RunFileError, "ends at step 4"),
        (lambda z: _nan(z / BASE / "history.jsonl"), RunFileError, "not finite"),
        (lambda z: _edit(z / BASE / "provenance.json", schema="x/2"), RunFileError, "schema 'x/2'"),
        (lambda z: _edit(z / BASE / "provenance.json", held_out_loss=float("nan")),
         RunFileError, "not finite"),
        (lambda z: _edit(z / BASE / "provenance.json", held_out_loss=None), RunFileError, "read"),
        (lambda z: _edit(z / BASE / "provenance.json", seed=7), RunFileError, "baseline-seed7"),
        (lambda z: _edit(z / BASE / "provenance.json", rate=2.0), RunFileError, "different models"),
        (lambda z: (z / BASE / "provenance.json").write_text("[]"), RunFileError, "schema None"),
        (_of_scale, UsageError, "different scales"),
        (lambda z: _edit(z / "heads-8-seed1" / "provenance.json", corpus={"sha256": "b"}),
         UsageError, "different texts"),
        (lambda z: [p.unlink() for p in z.glob("baseline-*/*")], UsageError,
         "no finished baseline"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_said(
    harm: Any, kind: type[Exception], message: str, tmp_path: Path
) -> None:
    write_zoo(tmp_path, arms=("baseline", "rescale-residual"))
    write_run(tmp_path, "heads-8", 1)
    harm(tmp_path)
    with pytest.raises(kind) as caught:
        read_zoo(tmp_path)
    assert message in str(caught.value)


def test_a_folder_without_runs_is_said(tmp_path: Path) -> None:
    for folder, message in ((tmp_path, "holds no trained"), (tmp_path / "no", "is no folder")):
        with pytest.raises(UsageError, match=message):
            read_zoo(folder)


def test_the_questions_have_their_arms() -> None:
    assert list(H) == ["rescale-residual", "more-heads", "decay-layernorm-gains"]
    for question in H.values():
        assert set(question.arms) <= set(read_arms())
        assert question.family == "H"
        assert "0.005" in question.how


def test_what_is_shipped_can_be_read() -> None:
    for folder in shipped():
        assert read_zoo(folder).scale.name == folder.name
