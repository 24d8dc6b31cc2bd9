"""The runner: time limits, crashes, libraries that do not import, and going on after a stop."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from residcheck.errors import RunFileError, UsageError
from residcheck.progress import Progress
from residcheck.regress.cells import STAND, Cell, finished, read
from residcheck.regress.command import parse_versions
from residcheck.regress.environments import Environment, newest_patches
from residcheck.regress.runner import Server, run
from residcheck.regress.stand.witness import asked

# A library whose models are named for what they do.
FAKE = f"""
import os, sys, time
sys.path.insert(0, {str(STAND)!r})
import torch
from witness import record, serving

class Model:
    def __init__(self, folder): self.folder = folder
    def run(self, ids, mask, hooked):
        kind = os.path.basename(self.folder)
        if kind == "dies": os._exit(7)
        if kind == "hangs": time.sleep(60)
        if kind == "raises" and mask is not None: raise KeyError("no padding")
        return torch.ones(*ids.shape, 3), {{"blocks.0.hook_resid_pre": torch.zeros(2, 3)}}
    def weights(self): return {{}}

def fake(folder, dtype):
    yield "raw", Model(folder)

serving.LIBRARIES["bridge"] = fake
serving.MODULES["bridge"] = ("json",)
serving.MODULES["hooked"] = ("there_is_no_such_library",)
record.PROCESSINGS = ("raw",)
serving.serve()
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "fake.py"
    path.write_text(FAKE)
    return path


ENVIRONMENT = Environment("transformer-lens", "0", sys.executable, ())


def cells(*models: str, library: str = "bridge") -> list[Cell]:
    return [Cell(library, "0", model) for model in models]  # type: ignore[arg-type]


def go(wanted: list[Cell], script: Path, limit: float = 30) -> dict[str, str]:
    folder = script.parent
    done: list[tuple[float, float | None]] = []
    run(
        wanted,
        lambda package, version: ENVIRONMENT,
        lambda cell, environment: (folder / cell.model, folder / f"{cell.library}-{cell.model}"),
        limit,
        lambda task, n, total: done.append((n, total)),
        script,
    )
    assert done[-1] == (len(wanted), len(wanted))
    return {c.model: read(folder / f"{c.library}-{c.model}").status for c in wanted}


def test_a_cell_that_hangs_or_dies_harms_no_other(script: Path) -> None:
    statuses = go(cells("hangs", "dies", "good", "raises"), script, limit=1.5)
    assert statuses["hangs"] == "timeout: killed after 1.5 s"
    assert statuses["dies"] == "crash: exit status 7"
    assert statuses["good"] == statuses["raises"] == "ok"
    seen = read(script.parent / "bridge-raises")
    assert seen.errors["float32/raw/left.logits"].startswith("KeyError: 'no padding'")
    assert seen["float32/raw/logits"].shape == (2, asked.LENGTH, 3)
    assert seen["float64/raw/logits"].shape == (2, asked.LENGTH, 3)  # as an alias


def test_what_is_finished_is_kept_and_what_crashed_is_tried_again(script: Path) -> None:
    go(cells("good", "dies"), script)
    kept = (script.parent / "bridge-good.json").stat().st_mtime_ns
    script.write_text(FAKE.replace("os._exit(7)", "pass"))
    assert go(cells("good", "dies"), script) == {"good": "ok", "dies": "ok"}
    assert (script.parent / "bridge-good.json").stat().st_mtime_ns == kept


def test_versions_run_side_by_side_and_an_interrupted_run_goes_on(script: Path) -> None:
    folder = script.parent
    wanted = [Cell("bridge", str(n), model) for n in range(4) for model in ("good", "raises")]
    wanted.append(Cell("bridge", "9", "hangs"))

    def out(cell: Cell, environment: Environment) -> tuple[Path, Path]:
        return folder / cell.model, folder / f"{cell.version}-{cell.model}"

    def interrupt(task: str, done: float, total: float | None) -> None:
        if done == 3:
            raise KeyboardInterrupt

    def attempt(progress: Progress) -> None:
        prepare = ENVIRONMENT
        run(wanted, lambda package, version: prepare, out, 3, progress, script, jobs=3)

    with pytest.raises(KeyboardInterrupt):
        attempt(interrupt)
    kept = [cell for cell in wanted if finished(out(cell, ENVIRONMENT)[1])]
    assert 3 <= len(kept) < len(wanted)
    assert not list(folder.glob("9-hangs.json"))  # given up, not failed
    attempt(lambda task, done, total: None)
    statuses = [read(out(cell, ENVIRONMENT)[1]).status for cell in wanted]
    assert statuses == ["ok"] * 8 + ["timeout: killed after 3 s"]


def test_a_library_that_does_not_import_says_so(script: Path) -> None:
    status = go(cells("good", library="hooked"), script)["good"]
    assert status.startswith("cannot import: ModuleNotFoundError")
    assert finished(script.parent / "hooked-good")


def test_a_server_that_ends_itself_is_a_status_and_not_an_error(tmp_path: Path) -> None:
    script = tmp_path / "gone.py"
    script.write_text("raise SystemExit(5)")
    server = Server(ENVIRONMENT, tmp_path / "log", script)
    try:
        status = server.ask({"library": "bridge"})
    finally:
        server.close()
    assert status == "cannot import: the library ended its process with exit status 5"


def test_half_a_cell_is_not_finished_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cell"
    assert not finished(path)
    path.with_suffix(".json").write_text('{"status": "o')
    assert not finished(path)
    with pytest.raises(RunFileError, match="cell cannot be read"):
        read(path)
    path.with_suffix(".json").write_text(json.dumps({"status": "ok"}))
    assert not finished(path)  # the arrays are missing
    path.with_suffix(".npz").write_bytes(b"no archive")
    with pytest.raises(RunFileError):
        read(path)


def test_of_every_minor_release_the_newest_patch() -> None:
    assert newest_patches(["2.9.1", "2.10.0", "2.9.0", "2.10.3"]) == ["2.9.1", "2.10.3"]


def test_versions_are_read_sorted_and_refused() -> None:
    assert parse_versions(["bridge=4.0.0,3.10.0,3.9.0"]) == {"bridge": ["3.9.0", "3.10.0", "4.0.0"]}
    for wrong in ("brigde=4.0.0", "bridge", "bridge=four"):
        with pytest.raises(UsageError, match="--versions"):
            parse_versions([wrong])
