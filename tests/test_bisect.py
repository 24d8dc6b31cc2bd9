"""``compare --bisect``: which version changed a run, asking for as few as it takes."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tiny import Tiny

from residcheck.cli import main
from residcheck.comparison import bisect
from residcheck.comparison.bisect import Bisection, Probe, search, wanted_versions
from residcheck.corpus import shipped
from residcheck.curves import Run, load_run, save_run
from residcheck.errors import ExitStatus, LoadError, UsageError
from residcheck.overlays import available, overlay, run_residcheck

VERSIONS = tuple(f"3.{minor}.0" for minor in range(10))


def searched(verdicts: Sequence[bool | None]) -> tuple[Bisection, list[str]]:
    asked: list[str] = []

    def probe(version: str) -> Probe:
        asked.append(version)
        return Probe(version, verdicts[int(version.split(".")[1])], "")

    return search("lib", VERSIONS[: len(verdicts)], probe), asked


@pytest.mark.parametrize("turn", range(1, 10))
@pytest.mark.parametrize("first", [True, False])
def test_the_change_is_found_wherever_it_is(turn: int, first: bool) -> None:
    found, asked = searched([first] * turn + [not first] * (10 - turn))
    assert found.change is not None
    assert [p.version for p in found.change] == [f"3.{turn - 1}.0", f"3.{turn}.0"]
    assert len(asked) == len(set(asked)) <= 6  # both ends, and log2 of eight
    assert found.status is ExitStatus.REFUTED_OR_DRIFTED
    words = ("same", "different") if first else ("different", "same")
    assert found.answer == (
        f"lib is {words[0]} up to 3.{turn - 1}.0, {words[1]} from 3.{turn}.0 on"
    )
    assert found.different in found.change


def test_versions_that_cannot_be_measured_are_passed_over_and_named() -> None:
    found, asked = searched([None, True, True, True, None, None, None, False, False, None])
    assert found.answer == (
        "lib is same up to 3.3.0, different from 3.7.0 on; "
        "between them, not measured: 3.4.0, 3.5.0, 3.6.0"
    )
    assert len(asked) == len(set(asked))
    assert {p.version for p in found.probes if p.same is None} >= {"3.0.0", "3.9.0", "3.5.0"}


@pytest.mark.parametrize(
    ("verdicts", "status", "said"),
    [
        ([True] * 4, ExitStatus.OK, "is same at both ends, 3.0.0 and 3.3.0"),
        ([False] * 4, ExitStatus.REFUTED_OR_DRIFTED, "is different at both ends"),
        ([None] * 4, ExitStatus.COULD_NOT_MEASURE, "no version of lib could be measured"),
        ([None, True, None], ExitStatus.OK, "is same at both ends, 3.1.0 and 3.1.0"),
    ],
)
def test_without_a_change_nothing_is_looked_for(
    verdicts: list[bool | None], status: ExitStatus, said: str
) -> None:
    found, _ = searched(verdicts)
    assert found.change is None
    assert found.status is status
    assert said in found.answer


def test_versions_are_read_and_put_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bisect, "available", lambda package: ["3.10.0", "3.9.0", "3.2.0", "2.9"])
    assert wanted_versions("lib=3.10.0, 3.9.0") == ("lib", ("3.9.0", "3.10.0"))
    assert wanted_versions("lib=3.0..3.10.0") == ("lib", ("3.2.0", "3.9.0", "3.10.0"))
    for wrong in ("lib", "lib=3.1", "lib=new,old", "lib=5..6"):
        with pytest.raises(UsageError, match="--bisect"):
            wanted_versions(wrong)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the package index: two versions of one small package, the
    second of which needs another one that is not installed, and an older click."""
    folder = tmp_path / "index"
    folder.mkdir()
    needs = "Requires-Dist: lessknown>=2\nRequires-Dist: click<1\nRequires-Dist: x; extra == 'y'\n"
    wheels = (("smallpackage", "1.0", ""), ("smallpackage", "1.1", needs), ("lessknown", "2.5", ""))
    for name, version, requires in wheels:
        info = f"{name}-{version}.dist-info"
        with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}.py", f"version = {version!r}\n")
            head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            wheel.writestr(f"{info}/METADATA", head + requires)
            kind = "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            wheel.writestr(f"{info}/WHEEL", kind)
            wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("RESIDCHECK_HOME", str(tmp_path / "home"))
    return folder


def test_an_overlay_is_made_once_and_whole(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sorted(available("smallpackage")) == ["1.0", "1.1"]
    folder = overlay("smallpackage", "1.1")
    assert (folder / "smallpackage.py").read_text() == "version = '1.1'\n"
    assert (folder / "lessknown.py").is_file()
    assert not (folder / "click").exists()  # that of the environment counts
    with pytest.raises(LoadError, match="smallpackage==7"):
        overlay("smallpackage", "7")
    with pytest.raises(UsageError, match="is no package or version"):
        overlay("smallpackage", "../1.1")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("pip was asked again"))
    assert overlay("smallpackage", "1.1") == folder
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [folder.name]


def test_the_overlay_comes_before_what_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "click-0.0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: click\nVersion: 0.0.1\n")
    code = "import sys, importlib.metadata as m; print(m.version('click'), sys.argv[1:])"
    monkeypatch.setattr(sys, "executable", sys.executable)
    real = subprocess.run

    def instead(command: list[str], **options: Any) -> Any:
        assert command[1:3] == ["-m", "residcheck"]
        return real([command[0], "-c", code, *command[3:]], **options)

    monkeypatch.setattr(subprocess, "run", instead)
    assert run_residcheck(tmp_path, ["measure"]).stdout.strip() == "0.0.1 ['measure']"
    monkeypatch.setattr(subprocess, "run", real)
    assert run_residcheck(tmp_path, ["--version"]).stdout.startswith("residcheck, version")


def other_norms(run: Run) -> Run:
    """What a library gives whose MLP writes a thousandth too much in layer 1."""
    curve = run["mlp_out_norm"]
    factor = np.where(np.arange(curve.values.shape[-1]) == 1, 1.001, 1.0)
    changed = replace(curve, values=curve.values * factor)
    return replace(run, curves={**run.curves, "mlp_out_norm": changed})


def test_a_bisection_measures_each_version_once_and_goes_on_where_it_was(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1.0 cannot load, 1.1 and 1.2 fail a gate, 1.3 writes too much, later ones are sound."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RESIDCHECK_HOME", str(tmp_path / "home"))
    Path("p.txt").write_text("\n".join(text[:60] for text in shipped().texts[:3]))
    runner = CliRunner()
    measuring = ("--prompts", "p.txt", "--max-tokens", "12", "--backend", "transformers")
    first = runner.invoke(main, ["measure", str(tiny("gpt2")), *measuring, "--out", "a.json"])
    assert first.exit_code == 0, first.output
    asked: list[str] = []

    def measure(folder: Path, arguments: Sequence[str]) -> Any:
        version = folder.name
        asked.append(version)
        out = Path(arguments[arguments.index("--out") + 1])
        said = "loading\n"
        if version == "1.0":
            said += "error: TransformerLens 1.0 cannot bridge gpt2: no such class\n  try another"
        elif version in ("1.1", "1.2"):
            said += "error: identity gate: layer 0: resid_pre + attn_out is off\n  hint"
        else:
            run = load_run(Path("a.json"))
            save_run(other_norms(run) if version == "1.3" else run, out)
        return subprocess.CompletedProcess([], 3, "", said)

    monkeypatch.setattr(bisect, "run_residcheck", measure)
    monkeypatch.setattr(bisect, "overlay", lambda package, version, progress: Path(version))
    versions = ",".join(f"1.{n}" for n in range(7))
    command = ["compare", "a.json", str(tiny("gpt2")), *measuring, "--bisect", f"lib={versions}"]
    files = ["--json", "b.json", "--markdown", "b.md", "--report", "b.html"]
    result = runner.invoke(main, [*command, *files])
    assert result.exit_code == ExitStatus.REFUTED_OR_DRIFTED, result.output
    assert "lib is different up to 1.3, same from 1.4 on" in result.output
    assert "cannot bridge gpt2: no such class" in result.output
    assert "identity gate: layer 0" in result.output
    assert "worst mlp_out_norm, mean at layer 1" in " ".join(result.output.split())
    assert "mlp_out_norm" in Path("b.html").read_text()
    assert "| 1.1 | different | identity gate" in Path("b.md").read_text()
    assert len(asked) == len(set(asked)) + 1  # 1.3 once more in float64, to settle it
    asked.clear()
    again = runner.invoke(main, command)
    assert again.output.splitlines()[-1] == "lib is different up to 1.3, same from 1.4 on"
    assert set(asked) <= {"1.0"}  # what could not be measured is tried again
    for kept in (tmp_path / "home" / "runs").glob("*.json"):  # of another version after all
        document = json.loads(kept.read_text())
        document["environment"]["lib"] = "9.9"
        kept.write_text(json.dumps(document))
    runner.invoke(main, command)
    assert {"1.3", "1.4"} <= set(asked)
    wrong = runner.invoke(main, [*command[:1], "a.json", "a.json", *command[3:]])
    assert wrong.exit_code == ExitStatus.USAGE
    assert "give a model for B" in wrong.output
