"""Many models by the command: lists, plans, what is kept and what is measured again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from horizon_runs import beside_growth
from sweep_fakes import settings, worker
from test_sweep_runner import alive

from residcheck.cli import main
from residcheck.corpus import Prompts, shipped
from residcheck.errors import ExitStatus, UsageError
from residcheck.models import ModelSpec, parse_spec
from residcheck.sweep.estimate import Size, estimates, memory
from residcheck.sweep.listing import read_list
from residcheck.sweep.outcome import TOGETHER, Outcome, gather, write
from residcheck.sweep.plan import entries, prepare
from residcheck.sweep.store import Entry, digest, folder_name, read_job
from residcheck.sweep.worker import work

Sweep = Callable[..., Result]
SMALL = ("planted:layers=4", "planted:layers=5")


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Sweep:
    """``sweep(models, *options)`` in an empty folder, on a few short prompts, into ``out``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RESIDCHECK_HOME", str(tmp_path / "home"))
    lines = [json.dumps({"text": text[:80]}) for text in shipped().texts[:16]]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))

    def invoke(models: str, *options: str) -> Result:
        (tmp_path / "models.txt").write_text(models)
        return CliRunner().invoke(main, [*command("out"), *options])

    return invoke


def command(out: str) -> list[str]:
    short = ["--prompts", "prompts.jsonl", "--max-tokens", "12", "--backend", "transformers"]
    return ["sweep", "models.txt", "--out", out, *short]


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "residcheck", *command("out"), *options],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"COLUMNS": "80"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored under nohup
    )


def wait_for(process: subprocess.Popen[str], said: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if said in line:
            return
    raise AssertionError(f"it never said {said!r}")


def children(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid:
            found.append(int(path.parent.name))
    return found


def gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 20
    while any(map(alive, pids)):
        assert time.monotonic() < deadline, "a worker outlived its sweep"
        time.sleep(0.05)


def statuses(out: Path) -> dict[str, dict[str, object]]:
    """The status of each model by its folder's name."""
    files = (out / "models").glob("*/status.json")
    return {path.parent.name: json.loads(path.read_text()) for path in files}


def test_a_killed_sweep_goes_on_and_repeats_nothing(sweep: Sweep, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "gpt2", ')
    (broken / "model.safetensors").write_bytes(b"")
    models = "\n".join([SMALL[0], "broken", SMALL[1]])
    (tmp_path / "models.txt").write_text(models)
    with start(tmp_path) as process:
        wait_for(process, f"finished {SMALL[0]}")
        workers = children(process.pid)
        process.kill()
    gone(workers)
    (kept,) = statuses(tmp_path / "out")
    status = tmp_path / "out" / "models" / kept / "status.json"
    written = status.stat().st_mtime_ns

    result = sweep(models)
    assert result.exit_code == ExitStatus.COULD_NOT_MEASURE, result.output
    assert status.stat().st_mtime_ns == written
    said = statuses(tmp_path / "out")
    assert sorted(str(s["state"]) for s in said.values()) == ["failed", "finished", "finished"]
    assert "3 models, 1 finished before\n" in result.output
    assert "2 models finished, 1 failed" in result.output
    assert "not a valid JSON file" in result.output
    page = (tmp_path / "out" / "report.html").read_text()
    for text in ("layers=4", "layers=5", "Not measured", "broken", "Models beside each other"):
        assert text in page
    assert "**not measured**: broken" in (tmp_path / "out" / "summary.md").read_text()
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [m["model"]["n_layers"] for m in results["models"]] == [4, 5]
    assert [failure["model"] for failure in results["failed"]] == ["broken"]

    # The verdicts are those of the run alone, and what failed is tried again.
    verify = CliRunner().invoke(main, ["verify", SMALL[0], *command("")[4:], "--json", "v.json"])
    assert verify.exit_code == ExitStatus.REFUTED_OR_DRIFTED
    alone = json.loads((tmp_path / "v.json").read_text())["models"]
    assert alone == results["models"][:1]
    plan = sweep(models, "--dry-run")
    assert plan.output.count("│ finished") == 2
    assert plan.output.count("│ failed before") == 1
    again = sweep(SMALL[0])
    assert again.exit_code == ExitStatus.REFUTED_OR_DRIFTED
    assert "1 model, 1 finished before" in again.output


def test_ctrl_c_ends_the_workers_and_says_how_to_go_on(sweep: Sweep, tmp_path: Path) -> None:
    (tmp_path / "models.txt").write_text("\n".join(SMALL))
    with start(tmp_path, "--jobs", "2") as process:
        wait_for(process, f"measuring {SMALL[1]}")
        workers = children(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        rest = process.stdout.read()
    assert len(workers) == 2
    gone(workers)
    assert process.returncode == ExitStatus.INTERRUPTED, rest
    assert "the same command goes on" in rest
    assert "Traceback" not in rest
    assert "0 models finished, 2 to do" in rest


def test_a_list_has_comments_blank_lines_and_repetitions() -> None:
    text = (
        "# all\n\nplanted:layers=4,growth=1.1  # one\n\tplanted:growth=1.1,layers=4\nsmollm2-135m"
    )
    first, second = read_list(text, "list", {"dtype": "bf16"})
    assert (first.text, first.line, first.repeated) == ("planted:layers=4,growth=1.1", 3, (4,))
    assert first.spec.dtype == second.spec.dtype == "bfloat16"
    assert (second.spec.name, second.line) == ("smollm2-135m", 5)


def test_options_of_a_line_make_another_model() -> None:
    found = read_list("gpt2\ngpt2,dtype=bf16\ngpt2,backend=transformers", "list", {})
    assert [one.spec.dtype for one in found] == ["float32", "bfloat16", "float32"]


def test_every_bad_line_is_named_before_anything_runs(sweep: Sweep, tmp_path: Path) -> None:
    result = sweep("planted:\nsmolm2-135m\ngpt2,dtpye=bf16\n./nothing\nmodels.txt")
    assert result.exit_code == ExitStatus.USAGE
    assert "models.txt, line 2: unknown model 'smolm2-135m'; did you mean" in result.output
    assert "line 3: unknown option 'dtpye'" in result.output
    assert "line 4: there is no ./nothing" in result.output
    assert "line 5: models.txt is neither a model folder nor a .gguf file" in result.output
    assert not (tmp_path / "out").exists()
    assert "names no model" in sweep("# nothing\n").output
    with pytest.raises(UsageError, match="line 1: the model's name is empty"):
        read_list("@main", "list", {})


def test_repeated_lines_are_said_and_measured_once(sweep: Sweep) -> None:
    result = sweep("planted:layers=4\nplanted:\nplanted:layers=4\n", "--dry-run")
    assert "line 3 repeats line 1: planted:layers=4" in result.output
    assert result.output.count("to do") == 2


def test_options_without_a_cluster_are_refused(sweep: Sweep) -> None:
    result = sweep("planted:", "--slurm-option", "partition=gpu")
    assert result.exit_code == ExitStatus.USAGE
    assert "needs --cluster" in result.output


def test_cuda_without_a_gpu_is_a_usage_error(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = sweep("planted:", "--device", "cuda")
    assert result.exit_code == ExitStatus.USAGE
    assert "no CUDA GPU" in result.output
    assert not (tmp_path / "out").exists()


def test_a_plan_says_which_gpus(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,2")
    said = sweep("planted:", "--device", "cuda", "--dry-run").output
    assert "on this machine, 2 at a time, each on one of the GPUs 5, 2" in said
    said = sweep("planted:", "--device", "cuda", "--dry-run", "--cluster", "slurm",
                 "--slurm-option", "partition=gpu").output  # fmt: skip
    assert "in jobs of slurm (partition=gpu)" in said


def test_a_plan_has_sizes_and_writes_nothing(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("residcheck.sweep.estimate._config", _no_config)
    (tmp_path / "bare").mkdir()
    before = {*tmp_path.iterdir()} | {tmp_path / "models.txt"}
    result = sweep("planted:\nsmollm2-135m\nsome/model\nbare", "--dry-run")
    assert result.exit_code == ExitStatus.OK, result.output
    assert {*tmp_path.iterdir()} == before
    rows = [line for line in result.output.splitlines() if "to do" in line]
    assert "413k" in rows[0]
    assert "136M" in rows[1]
    assert "2.8 GiB" in rows[1]
    assert "unknown until fetched" in rows[2]
    assert "unknown" in rows[3]


def _no_config(source: str, **how: object) -> object:
    raise OSError("there is no config.json")


def test_sizes_come_from_configurations_without_weights(tmp_path: Path) -> None:
    from transformers import GPT2Config

    config = GPT2Config(vocab_size=100, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    config.architectures = ["GPT2LMHeadModel"]
    config.save_pretrained(tmp_path / "m")
    (found,) = estimates([parse_spec(str(tmp_path / "m"))])
    layer = 12 * 16**2 + 13 * 16
    assert found.size == Size(100 * 16 + 32 * 16 + 2 * layer + 2 * 16, tied=100 * 16)


def test_memory_is_of_copies_or_of_passes() -> None:
    big = Size(10**9, tied=10**8)
    libraries = 350 << 20
    assert memory(big, "float32") == libraries + 16 * 10**9 + 8 * 10**8
    assert memory(big, "bfloat16") == libraries + 8 * 10**9 + 4 * 10**8
    assert memory(Size(10**6), "float32") == libraries + 4 * 10**6 + (2 << 30)


def test_what_the_numbers_depend_on_names_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    spec, prompts = ModelSpec(str(folder)), digest(Prompts("p", ("a",)))

    def name(spec: ModelSpec = spec, prompts: str = prompts, longest: int | None = 12) -> str:
        return folder_name(spec, prompts, longest)

    first = name()
    assert first == name()
    assert "/" not in first
    assert "a-model-" in first
    others = [
        name(spec.with_options(dtype="bf16")),
        name(prompts=digest(Prompts("p", ("b",)))),
        name(longest=None),
    ]
    (folder / "config.json").write_text("{ }")
    others.append(name())
    monkeypatch.setattr("residcheck.sweep.store.__version__", "0.0.0")
    others.append(name())
    assert len({first, *others}) == 6


def test_a_smaller_batch_costs_nothing_that_is_finished(tmp_path: Path) -> None:
    from dataclasses import replace

    listed = read_list("planted:", "list", {})
    one = settings(tmp_path)
    other = replace(one, batch_size=1)
    assert entries(listed, one) == entries(listed, other)
    prepare(entries(listed, other), other)
    _, job = read_job(entries(listed, one)[0].folder)
    assert (job.batch_size, job.prompts, job.spec) == (1, one.prompts, listed[0].spec)


def test_a_worker_says_of_a_crash_in_python_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = entries(read_list("planted:", "list", {}), settings(tmp_path))
    prepare(found, settings(tmp_path))
    (found[0].folder / "left.json").write_text("by an earlier turn")

    def crash(*_: object) -> None:
        raise RuntimeError("<b>oops</b>\nmore")

    monkeypatch.setattr("residcheck.sweep.worker._measure_and_judge", crash)
    assert work(found[0].folder) == 0
    status = found[0].status
    assert status is not None
    assert (status.state, status.message) == ("failed", "RuntimeError: <b>oops</b>")
    assert "Traceback" in capsys.readouterr().err
    assert not (found[0].folder / "left.json").exists()


def test_a_damaged_run_is_a_failure_and_measured_again(tmp_path: Path) -> None:
    (entry,) = entries(read_list("planted:", "list", {}), settings(tmp_path))
    prepare([entry], settings(tmp_path))
    entry.run.write_text("{}")
    entry.run.with_suffix(".npz").write_bytes(b"")
    subprocess.run([*worker(tmp_path), str(entry.folder)], check=True, stdout=subprocess.DEVNULL)
    assert entry.finished
    outcome = gather([entry], None)
    assert outcome.status == ExitStatus.COULD_NOT_MEASURE
    assert "has schema None" in outcome.failures[0].message
    assert entry.state == "failed before"
    assert len(write(outcome, tmp_path)) == 3
    assert "Not measured" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("count", [TOGETHER, TOGETHER + 1])
def test_of_many_models_each_has_a_page_of_its_own(tmp_path: Path, count: int) -> None:
    results = tuple(beside_growth(f"org/{n}", 12 + n, 1.05, 8.0) for n in range(count))
    folders = tuple(tmp_path / "models" / f"a b#{n}" for n in range(count))
    write(Outcome(results, (), 0, folders), tmp_path)
    page = (tmp_path / "report.html").read_text()
    claim = results[0].judged[0].claim.id
    assert page.count("org/3</a>") == (2 if count > TOGETHER else 0)
    assert ('href="models/a%20b%233/report.html"' in page) == (count > TOGETHER)
    assert (f"Estimates of {claim}" in page) == (count <= TOGETHER)
    if count > TOGETHER:
        own = (folders[3] / "report.html").read_text()
        assert "org/3" in own
        assert f"Estimates of {claim}" in own


def test_a_status_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    entry = Entry("m", ModelSpec("m"), tmp_path)
    for text in ("{", "[]", "{}", '{"schema": "other"}', '{"schema": "residcheck.sweep/1"}'):
        (tmp_path / "status.json").write_text(text)
        assert entry.status is None
