"""``residcheck controls``: what is shown, what is written, and what it says of bad input."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result
from control_zoos import RATES, write_run, write_zoo

from residcheck.cli import main
from residcheck.controls import Comparison, read_zoo, shipped
from residcheck.controls.page import write_page
from residcheck.errors import ExitStatus
from residcheck.intervention import all_interventions
from residcheck.judging import judge_controls

PLOTS = {"training.svg", "norms.svg", "divisors.svg", "differences.svg", "stored.svg"}


def controls(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["controls", *map(str, arguments)])


def test_a_zoo_is_compared_and_written(tmp_path: Path) -> None:
    rates, seeds = RATES | {"heads-16": 0.05}, (0, 1, 2)
    zoo = write_zoo(tmp_path / "zoo", rates, gains={"decay-all": 0.02}, seeds=seeds)
    result = controls(zoo, "--json", tmp_path / "n.json", "--markdown", tmp_path / "page.md")
    assert result.exit_code == ExitStatus.OK, result.output
    assert "rescale-residual-learned" in result.output
    said = json.loads((tmp_path / "n.json").read_text(), parse_constant=pytest.fail)
    assert len(said["runs"]) == 30
    assert {tuple(layout["seeds"]) for layout in said["layouts"].values()} == {(0, 1, 2)}
    assert {verdict["verdict"] for verdict in said["verdicts"]} == {"supported"}
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert {path.name for path in (tmp_path / "page").iterdir()} == PLOTS
    for name in PLOTS:
        assert f"(page/{name})" in page
        root = ElementTree.fromstring((tmp_path / "page" / name).read_text(encoding="utf-8"))
        assert root.tag.endswith("svg")


def test_what_is_refuted_and_not_on_record_fails(tmp_path: Path) -> None:
    zoo = write_zoo(tmp_path / "zoo", RATES | {"rescale-residual": 0.02})
    result = controls(zoo, "--snapshots", tmp_path)
    assert result.exit_code == ExitStatus.REFUTED_OR_DRIFTED


def test_a_baseline_alone_is_shown(tmp_path: Path) -> None:
    write_run(tmp_path, "baseline", 0)
    result = controls(tmp_path, "--markdown", tmp_path / "page.md")
    assert result.exit_code == ExitStatus.OK, result.output
    assert "no finished run of rescale-residual" in " ".join(result.output.split())
    assert not (tmp_path / "page" / "divisors.svg").exists()  # nothing is divided


def test_an_arm_that_hardly_learnt_is_named(tmp_path: Path) -> None:
    write_zoo(tmp_path / "zoo", arms=("baseline", "heads-8"))
    write_run(tmp_path / "zoo", "post-norm", 0, loss=6.6)
    result = controls(tmp_path / "zoo", "--markdown", tmp_path / "page.md")
    said = "post-norm hardly learnt, at 2.6 nats above the baseline"
    assert said in " ".join(result.output.split())
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert said in page
    assert "heads-8 hardly" not in page


def test_names_are_no_markup(tmp_path: Path) -> None:
    """Texts of a zoo of one's own may say anything."""
    write_run(tmp_path, "baseline", 0)
    path = tmp_path / "baseline-seed0" / "provenance.json"
    said = json.loads(path.read_text())
    said["arm"]["description"] = "<script>x</script> | [bold] *y*"
    path.write_text(json.dumps(said))
    assert controls(tmp_path, "--markdown", tmp_path / "page.md").exit_code == ExitStatus.OK
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "\\| \\[bold\\] \\*y\\*" in page


@pytest.mark.parametrize(
    ("make", "status", "message"),
    [
        (lambda z: None, ExitStatus.USAGE, "is no folder"),
        (lambda z: z.mkdir(), ExitStatus.USAGE, "holds no trained controls"),
        (lambda z: (write_run(z, "baseline", 0) / "measured.json").write_text("{"),
         ExitStatus.COULD_NOT_MEASURE, "cannot be read"),
    ],
)  # fmt: skip
def test_bad_input_is_one_message(
    make: object, status: ExitStatus, message: str, tmp_path: Path
) -> None:
    assert callable(make)
    make(tmp_path / "zoo")
    result = controls(tmp_path / "zoo")
    assert result.exit_code == status, result.output
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_the_page_is_what_the_shipped_runs_say(tmp_path: Path) -> None:
    (folder,) = shipped()
    found = Comparison.of(read_zoo(folder))
    judged = [judge_controls(one, found) for one in all_interventions()]
    write_page(found, judged, tmp_path / "CONTROLS.md")
    page = Path(__file__).parents[1] / "claims" / "CONTROLS.md"
    expected = (tmp_path / "CONTROLS.md").read_text(encoding="utf-8")
    assert page.read_text(encoding="utf-8") == expected, "nox -s controls writes it again"
