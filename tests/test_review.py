"""``residcheck review``: each change is looked at, and only what is accepted is written."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from report_runs import a_curve, a_run

from residcheck import cli_review
from residcheck.cli import main
from residcheck.console_changes import sparkline
from residcheck.curves import Run, save_run
from residcheck.errors import ExitStatus, UsageError
from residcheck.reviewing import Answer, Kind, Proposal, proposals, review
from residcheck.snapshot import curve_document, dumps, key

STORED = Path("snapshots")
NAMES = ("b_O_norm", "b_out_norm", "W_O_frobenius", "ov_frobenius")
A, R, S, Q = Answer.ACCEPT, Answer.REJECT, Answer.SKIP, Answer.QUIT


def the_run(**factors: float) -> Run:
    """Four curves; those named are taken times a factor in layer 3."""
    run = a_run(*map(a_curve, NAMES), id="org/<tiny>")
    curves = dict(run.curves)
    for name, factor in factors.items():
        values = curves[name].values.copy()
        values[..., 3] *= factor
        curves[name] = replace(curves[name], values=values)
    return replace(run, curves=curves, model=replace(run.model, dtype="float32", weights="w"))


def path_of(name: str) -> Path:
    return STORED / f"{key('org/<tiny>', name)}.json"


def store(run: Run, *names: str) -> None:
    for name in names:
        path_of(name).parent.mkdir(parents=True, exist_ok=True)
        path_of(name).write_text(dumps(curve_document(run, name)))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CI", raising=False)
    return tmp_path


def answering(answers: Sequence[Answer], asked: list[str]) -> Callable[[Proposal], Answer]:
    left = iter(answers)

    def ask(change: Proposal) -> Answer:
        asked.append(change.name)
        return next(left)

    return ask


def test_what_left_its_snapshot_comes_first_and_the_worst_at_the_top(folder: Path) -> None:
    store(the_run(), *NAMES[:3])
    run = the_run(b_O_norm=1.01, b_out_norm=1.5, W_O_frobenius=1 + 1e-6)
    found = proposals(run, STORED)
    assert [(p.name, p.kind) for p in found] == [
        ("b_out_norm", Kind.DRIFTED),
        ("b_O_norm", Kind.DRIFTED),
        ("ov_frobenius", Kind.NEW),
    ]
    assert "values at layer 3" in found[0].message
    assert proposals(the_run(), STORED)[0].kind is Kind.NEW


def test_only_what_is_accepted_is_written(folder: Path) -> None:
    store(the_run(), *NAMES)
    before = {name: path_of(name).read_text() for name in NAMES}
    run = the_run(b_O_norm=1.2, b_out_norm=1.4, W_O_frobenius=1.6, ov_frobenius=1.8)
    asked: list[str] = []
    wrote: list[Path] = []
    changes = proposals(run, STORED)
    outcome = review(run, changes, STORED, answering([A, R, S, A, S], asked), wrote.append)
    order = [change.name for change in changes]
    assert asked == [*order, order[2]]  # the skipped one once more
    assert outcome.accepted == (order[0], order[3])
    assert outcome.rejected == (order[1],)
    assert outcome.left == (order[2],)
    assert wrote == [path_of(order[0]), path_of(order[3])]
    for name in NAMES:
        text = path_of(name).read_text()
        expected = dumps(curve_document(run, name)) if name in outcome.accepted else before[name]
        assert text == expected
    assert [change.name for change in proposals(run, STORED)] == order[1:3]  # asked next time
    assert not list(STORED.rglob("*.partial"))
    assert json.loads(path_of(order[0]).read_text())["provenance"]["model"]["weights"] == "w"


def test_quitting_leaves_the_rest(folder: Path) -> None:
    store(the_run(), *NAMES)
    run = the_run(b_O_norm=1.2, b_out_norm=1.4, W_O_frobenius=1.6)
    changes = proposals(run, STORED)
    outcome = review(run, changes, STORED, answering([A, Q], []))
    assert len(outcome.accepted) == 1
    assert len(outcome.left) == 2
    assert not outcome.done


def test_a_lost_curve_and_other_weights_are_told_apart(folder: Path) -> None:
    store(the_run(), *NAMES)
    run = the_run()
    curves = {name: c for name, c in run.curves.items() if name != "b_O_norm"}
    missing = {"b_O_norm": "the hook is silent"}
    lacking = replace(run, curves=curves, model=replace(run.model, missing=missing))
    (lost,) = proposals(lacking, STORED)
    assert lost.kind is Kind.LOST
    assert "the hook is silent" in lost.message
    review(lacking, [lost], STORED, answering([A], []))
    assert not path_of("b_O_norm").exists()
    other = replace(run, model=replace(run.model, weights="other"))
    found = proposals(other, STORED)
    assert {p.kind for p in found if p.name != "b_O_norm"} == {Kind.OTHERWISE}
    assert "other weights" in found[0].message


def test_nothing_is_written_on_ci(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    run = the_run()
    with pytest.raises(UsageError, match="never written on CI"):
        review(run, proposals(run, STORED), STORED, answering([A] * 4, []))
    assert not STORED.exists()


Command = Callable[..., Result]


@pytest.fixture
def command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    store(the_run(), *NAMES)
    save_run(the_run(b_O_norm=1.2, ov_frobenius=2.0), Path("run.json"))

    def run(*arguments: str, input: str | None = None, terminal: bool = True) -> Result:
        monkeypatch.setattr(cli_review, "interactive", lambda: terminal)
        return CliRunner().invoke(main, ["review", "run.json", *arguments], input=input)

    return run


def test_the_command_shows_asks_and_writes(command: Command) -> None:
    old = path_of("ov_frobenius").read_text()
    result = command(input="x\na\nr\n", terminal=True)
    assert result.exit_code == ExitStatus.REFUTED_OR_DRIFTED, result.output
    assert "ov_frobenius drifted: mean at layer 3" in result.output
    assert "1 accepted, 1 rejected, 0 left open" in result.output
    stored, new = (
        next(line.split()[1] for line in result.output.splitlines() if line.startswith(f"  {name}"))
        for name in ("stored", "new")
    )
    assert len(stored) == len(new) == 8
    assert [a == b for a, b in zip(stored, new, strict=True)].index(False) == 3
    assert path_of("ov_frobenius").read_text() != old
    again = command(input="a\n")
    assert again.exit_code == ExitStatus.OK
    assert "1 accepted, 0 rejected" in again.output
    assert "every curve is as stored" in command().output


def test_without_a_terminal_only_the_list(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: path_of(name).read_text() for name in NAMES}
    refused = command(terminal=False)
    assert refused.exit_code == ExitStatus.USAGE
    assert "--list" in refused.output
    for ci in ("", "1"):
        monkeypatch.setenv("CI", ci)
        listed = command("--list", "--report", "r.html", terminal=False)
        assert listed.exit_code == ExitStatus.REFUTED_OR_DRIFTED
        assert "2 left their snapshots, 2 to review" in listed.output
    assert command(terminal=True, input="a\na\n").exit_code == ExitStatus.USAGE  # on CI
    assert before == {name: path_of(name).read_text() for name in NAMES}
    page = Path("r.html").read_text()
    assert page.count("<svg") >= 4
    assert "org/&lt;tiny&gt;" in page
    assert "<tiny>" not in page


@pytest.mark.parametrize("said", ["a\n", ""])
def test_an_end_of_input_is_an_interruption(said: str, command: Command) -> None:
    result = command(input=said)
    assert result.exit_code == ExitStatus.INTERRUPTED
    assert "interrupted" in result.output
    assert len(list(STORED.rglob("*.json"))) == len(NAMES)


def test_a_line_of_bars() -> None:
    values: Any = np.array([1.0, np.nan, 2.0, 3.0])
    assert sparkline(values, 1.0, 3.0, log=False) == "▁ ▅█"
    assert sparkline(np.array([1.0, 10.0, 100.0]), 1.0, 100.0, log=True) == "▁▅█"
    assert sparkline(np.ones(3), 1.0, 1.0, log=False) == "▁▁▁"
