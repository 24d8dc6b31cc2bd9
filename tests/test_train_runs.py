"""Runs: determinism, kills, ctrl-C, and what a finished run leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from train_runs import Silent, corpus, run

from residcheck.errors import ExitStatus, ResidcheckError, UsageError
from residcheck.locking import Taken
from residcheck.train import checkpoint, history
from residcheck.train.arms import read_arms
from residcheck.train.command import main
from residcheck.train.history import Record, recorded_steps
from residcheck.train.runs import Run, ordered, write_run
from residcheck.train.scales import read_scales
from residcheck.train.trainer import Trainer
from residcheck.train.worker import TIED

pytestmark = pytest.mark.usefixtures("one_thread")


def train(one: Run, stop_at: int | None = None) -> Trainer:
    trainer = Trainer(one, corpus(one.out))
    trainer.train(Silent(), lambda: stop_at is not None and trainer.step >= stop_at)
    return trainer


def untimed(path: Path) -> list[Record]:
    """A history without what a clock said."""
    return [replace(record, tokens_per_second=None) for record in history.read(path)]


def assert_same(one: Run, other: Run) -> None:
    """Every tensor of the checkpoints and every line of the histories."""
    first, second = (checkpoint.load(r.checkpoint) for r in (one, other))
    assert first is not None
    assert second is not None
    assert first.step == second.step
    for name, value in first.model.items():
        assert torch.equal(value, second.model[name]), name
    for number, state in first.optimiser["state"].items():
        for name, value in state.items():
            assert torch.equal(value, second.optimiser["state"][number][name]), (number, name)
    assert untimed(one.history) == untimed(other.history)


def worker(one: Run, until: str, *, kill: signal.Signals | None = None) -> int:
    """A worker's exit status; ``kill`` is sent as soon as it says ``until``."""
    with subprocess.Popen(
        [sys.executable, "-m", "residcheck.train.worker", str(one.folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if until in line and kill is not None:
                process.send_signal(kill)
                kill = None
    return process.returncode


def test_the_same_seed_gives_the_same_run_and_another_gives_another(tmp_path: Path) -> None:
    one, other, third = run(tmp_path / "a"), run(tmp_path / "b"), run(tmp_path / "a", seed=1)
    for each in (one, other, third):
        train(each)
    assert_same(one, other)
    assert untimed(one.history) != untimed(third.history)


def test_a_run_stopped_at_any_step_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole, parts = run(tmp_path / "a"), run(tmp_path / "b")
    train(whole)
    for step in (1, 2, 5, 11, 12):
        train(parts, step)
    assert_same(whole, parts)


def test_gradients_of_parts_of_a_batch_add_up_to_those_of_the_whole(tmp_path: Path) -> None:
    whole, parts = run(tmp_path / "a"), run(tmp_path / "b", at_a_time=2)
    first, second = (train(one).model.state_dict() for one in (whole, parts))
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-4, atol=1e-5)


def test_a_killed_run_goes_on_bit_for_bit_and_is_finished(tmp_path: Path) -> None:
    whole, killed = run(tmp_path / "a"), run(tmp_path / "b")
    train(whole)
    assert worker(killed, '"step": 8,', kill=signal.SIGKILL) == -signal.SIGKILL
    state = checkpoint.load(killed.checkpoint)
    assert state is not None
    assert 0 < state.step < 12
    with killed.history.open("a") as file:  # half a line, as a kill leaves it
        file.write('{"step": 9, "tok')
    assert worker(killed, "") == 0
    assert_same(whole, killed)
    _is_finished(killed)


def test_a_worker_whose_parent_is_killed_leaves_a_checkpoint(tmp_path: Path) -> None:
    one = run(tmp_path)
    long = replace(one, arm=read_arms()["rmsnorm"])
    long = replace(long, scale=replace(long.scale, steps=100_000, checkpoint_every=10**6))
    write_run(long)
    with subprocess.Popen(
        [sys.executable, "-m", "residcheck.train.worker", TIED, str(long.folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if '"step": 3,' in line:
                break
        process.stdout.close()  # nobody listens any more, and a little later the input ends
        time.sleep(0.5)
        process.stdin.close()
        said = process.stderr.read()
    assert process.returncode == ExitStatus.INTERRUPTED, said
    assert "Error" not in said
    state = checkpoint.load(long.checkpoint)
    assert state is not None
    assert state.step >= 3


def _is_finished(one: Run) -> None:
    from transformers import AutoModelForCausalLM

    assert one.finished
    said = json.loads(one.provenance.read_text())
    assert said["corpus"]["sha256"] == corpus(one.out).facts.sha256
    assert set(said["versions"]) == {"python", "torch", "transformers", "tokenizers"}
    assert said["tokens"] == one.scale.tokens
    assert said["export_log_probability_shift"] < 1e-6
    card = (one.model / "README.md").read_text()
    for fact in ("baseline", said["corpus"]["sha256"], f"{one.scale.tokens:,}"):
        assert fact in card
    model = AutoModelForCausalLM.from_pretrained(one.model)
    assert type(model).__name__ == "GPT2LMHeadModel"
    assert model.dtype == torch.float16
    assert (one.model / "tokenizer.json").is_file()


def test_a_run_is_trained_by_one_process_at_a_time(tmp_path: Path) -> None:
    one = run(tmp_path)
    with one.locked():
        assert worker(one, "") == 75
    with one.locked(), pytest.raises(Taken), one.locked():
        pass


def test_runs_go_seed_by_seed_with_the_baseline_first(tmp_path: Path) -> None:
    arms = [read_arms()[name] for name in ("baseline", "rmsnorm")]
    runs = ordered(tmp_path, read_scales()["tiny"], arms, (0, 1), 1)
    names = ["baseline-seed0", "rmsnorm-seed0", "baseline-seed1", "rmsnorm-seed1"]
    assert [one.name for one in runs] == names


def test_a_run_follows_the_schedule_of_its_arm(tmp_path: Path) -> None:
    """At none of the learning rate nothing moves."""
    one, still = run(tmp_path / "a"), run(tmp_path / "b")
    still = replace(still, arm=replace(still.arm, learning_rate=0.0))
    for each in (one, still):
        train(each)
    assert len({record.held_out_loss for record in history.read(one.history)}) > 3
    (loss,) = {record.held_out_loss for record in history.read(still.history)}
    assert loss == history.read(one.history)[0].held_out_loss
    assert {record.learning_rate for record in history.read(still.history)} == {0.0}


def test_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    one = run(tmp_path)
    assert write_run(replace(one, threads=2)).threads == 1  # goes on as it was begun
    with pytest.raises(UsageError, match="other settings"):
        write_run(replace(one, scale=replace(one.scale, steps=99)))


def test_settings_without_the_fields_that_have_defaults_are_read(tmp_path: Path) -> None:
    one = run(tmp_path)
    said = json.loads((one.folder / "run.json").read_text())
    del said["scale"]["at_a_time"]
    (one.folder / "run.json").write_text(json.dumps(said))
    assert write_run(one) == one


def test_a_damaged_checkpoint_is_told_of(tmp_path: Path) -> None:
    one = run(tmp_path)
    one.checkpoint.write_bytes(b"no checkpoint")
    with pytest.raises(ResidcheckError, match="cannot be read"):
        train(one)


def test_records_are_dense_at_first() -> None:
    steps = sorted(recorded_steps(1700))
    assert steps[:8] == [0, 1, 2, 4, 8, 16, 32, 53]
    assert steps[-1] == 1700
    assert 35 <= len(steps) <= 45
    assert sorted(recorded_steps(12)) == list(range(13))


def test_a_history_is_rewound_to_its_checkpoint(tmp_path: Path) -> None:
    one = run(tmp_path)
    train(one)
    with one.history.open("a") as file:
        file.write("{")
    assert len(history.read(one.history)) == 13
    history.rewind(one.history, 4)
    assert [record.step for record in history.read(one.history)] == [0, 1, 2, 3, 4]
    history.rewind(one.history, None)
    assert one.history.read_text() == ""


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_command_trains_skips_what_is_finished_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    corpus(tmp_path)
    asked: tuple[Any, ...] = ("--scale", "tiny", "--arms", "rmsnorm", "--seeds", "0",
                              "--jobs", 2, "--out", tmp_path)  # fmt: skip
    first = command(*asked)
    assert first.exit_code == 0, first.output
    assert "finished rmsnorm-seed0" in first.output
    assert "held out" in first.output
    again = command(*asked)
    assert again.exit_code == 0
    assert "1 runs, 1 finished before" in again.output


def test_ctrl_c_leaves_checkpoints_and_the_status_of_an_interruption(tmp_path: Path) -> None:
    one = run(tmp_path)
    long = replace(one, arm=read_arms()["rmsnorm"], scale=replace(one.scale, steps=100_000))
    write_run(long)
    script = (
        "import sys; from residcheck.train import scales, command;"
        "import dataclasses;"
        "found = dict(scales.read_scales());"
        "found['tiny'] = dataclasses.replace(found['tiny'], steps=100_000);"
        "scales.read_scales = lambda: found;"
        "command.main(['--scale', 'tiny', '--arms', 'rmsnorm', '--seeds', '0',"
        f" '--out', {str(tmp_path)!r}])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if "step 2 of" in line:
                process.send_signal(signal.SIGINT)
    assert process.returncode == ExitStatus.INTERRUPTED, said
    assert any("goes on" in line for line in said), said
    state = checkpoint.load(long.checkpoint)
    assert state is not None
    assert 2 <= state.step < 100_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--out"),
        (("--out", "x", "--arms", "nonsense"), "no arm"),
        (("--out", "x", "--scale", "huge"), "no scale"),
        (("--out", "x", "--seeds", "a"), "not a list"),
        (("--out", "x", "--seeds", "-1"), "not negative"),
    ],
)
def test_mistakes_are_told_of_without_a_traceback(arguments: tuple[str, ...], message: str) -> None:
    found = command(*arguments)
    assert found.exit_code == ExitStatus.USAGE
    assert message in found.output
    assert "Traceback" not in found.output


def test_the_list_has_every_arm() -> None:
    found = command("--list")
    assert found.exit_code == 0
    assert all(name in found.output for name in read_arms())
