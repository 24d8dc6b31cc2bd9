"""``residcheck compare``: what is the same, noise, different or missing, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from report_runs import a_curve, a_run
from tiny import Tiny, new_model, tokenizer

from residcheck.cli import main
from residcheck.comparison import Sameness, rows_of
from residcheck.corpus import read_prompts, shipped
from residcheck.curves import Curve, Run, save_run
from residcheck.errors import ExitStatus
from residcheck.faults import FAULTS, open_faulty
from residcheck.measure import EVERYTHING, HorizonOptions, run_session
from residcheck.models import ModelSpec
from residcheck.names import QUANTITIES
from residcheck.tolerances import TOLERANCES

LAYER = 1
SHORT = ("--max-tokens", 12)
PLAIN = (*SHORT, "--backend", "transformers")
Invoke = Callable[..., Result]


@pytest.fixture
def residcheck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RESIDCHECK_HOME", str(tmp_path / "home"))
    (tmp_path / "p.txt").write_text("\n".join(text[:60] for text in shipped().texts[:4]))

    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(main, [str(a) for a in arguments])

    return invoke


def told(result: Result, path: Path) -> dict[str, Any]:
    """Verdicts by name, of the JSON that a comparison wrote."""
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return {row["name"]: row for row in json.loads(path.read_text())["quantities"]}


def spoilt(folder: Path) -> Path:
    """The tiny GPT-2 with one W_out a thousandth larger."""
    model = new_model("gpt2")
    with torch.no_grad():
        model.transformer.h[LAYER].mlp.c_proj.weight *= 1.001
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def faulty_run(folder: Path, path: Path) -> Path:
    """A run of sound weights by a library that loses a part, as an earlier day left it."""
    spec = ModelSpec(str(folder), backend="transformers")
    session = open_faulty(spec, FAULTS["exact-for-tanh-gelu"], read_prompts(Path("p.txt")), 12)
    save_run(run_session(session, EVERYTHING, horizon=HorizonOptions()), path)
    return path


def edited(path: Path, out: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    document = json.loads(path.read_text())
    change(document)
    out.write_text(json.dumps(document))
    return out


@pytest.fixture
def run_file(residcheck: Invoke, tiny: Tiny, tmp_path: Path) -> Path:
    path = tmp_path / "a.json"
    result = residcheck("measure", tiny("gpt2"), "--prompts", "p.txt", *PLAIN, "--out", path)
    assert result.exit_code == 0, result.output
    return path


def test_both_libraries_give_the_same(residcheck: Invoke, tiny: Tiny, tmp_path: Path) -> None:
    pair = (f"{tiny('llama')},backend=transformers", tiny("llama"))
    result = residcheck("compare", *pair, "--prompts", "p.txt", *SHORT, "--json", "c.json")
    rows = told(result, tmp_path / "c.json")
    assert result.exit_code == ExitStatus.OK, result.output
    assert {row["verdict"] for row in rows.values()} == {"same"}
    assert "processing_shift" not in rows  # which raw weights cannot have
    assert {"resid_post_norm", "mlp_post_min", "loss", "shape of W_out", "n_heads"} <= rows.keys()


def test_a_larger_matrix_is_different_at_its_layer(
    residcheck: Invoke, run_file: Path, tmp_path: Path
) -> None:
    other = spoilt(tmp_path / "spoilt")
    files = ("--json", "c.json", "--markdown", "c.md", "--report", "c.html")
    refused = residcheck("compare", run_file, other, "--prompts", "p.txt", *PLAIN)
    assert refused.exit_code == ExitStatus.USAGE
    assert "other weights: sha256" in refused.output
    assert "--other-weights" in refused.output
    with_flag = ("compare", run_file, other, "--prompts", "p.txt", *PLAIN, "--other-weights")
    result = residcheck(*with_flag, *files)
    assert result.exit_code == ExitStatus.REFUTED_OR_DRIFTED, result.output
    rows = told(result, tmp_path / "c.json")
    assert rows["W_out_frobenius"]["verdict"] == "different"
    assert rows["W_out_frobenius"]["place"] == f"values at layer {LAYER}"
    assert rows["W_out_frobenius"]["size"] == pytest.approx(1e-3, rel=0.01)
    assert rows["mlp_out_norm"]["place"].endswith(f"at layer {LAYER}")
    assert rows["mlp_out_norm"]["verdict"] == "different"
    assert "in float64, too" in rows["mlp_out_norm"]["note"]
    assert rows["attn_out_norm"]["verdict"] == "different"  # of the layer after
    assert rows["W_in_frobenius"]["verdict"] == rows["shape of W_out"]["verdict"] == "same"
    page = (tmp_path / "c.html").read_text()
    assert page.count("<svg") >= 4
    assert 'id="mlp_out_norm"' in page
    assert "mlp\\_out\\_norm | ✗ different" in (tmp_path / "c.md").read_text()


def test_rounding_is_noise(
    residcheck: Invoke, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a bound that rounding leaves: what float64 brings together was noise."""
    narrow = replace(TOLERANCES["float32"], curve=1e-12, token=1e-12, truncated=1e-12)
    monkeypatch.setitem(TOLERANCES, "float32", narrow)
    pair = [f"{tiny('llama')},backend=transformers,attention={kind}" for kind in ("eager", "sdpa")]
    result = residcheck("compare", *pair, "--prompts", "p.txt", *SHORT, "--json", "c.json")
    rows = told(result, tmp_path / "c.json")
    left = [row for row in rows.values() if row["verdict"] not in ("same", "noise")]
    # Eager attention in float64 makes NaN of padding, which settles nothing.
    assert {row["name"] for row in left} <= {"padding_shift"}, result.output
    assert {row["note"][:22] for row in left} <= {"could not be settled: "}
    norm = rows["resid_post_norm"]
    assert norm["verdict"] == "noise"
    assert norm["note"].startswith("in float64 apart by ")
    assert norm["size"] > norm["bound"]
    assert rows["W_Q_frobenius"]["verdict"] == "same"


def test_a_run_that_does_not_come_out_again_is_not_excused_by_float64(
    residcheck: Invoke, run_file: Path, tiny: Tiny, tmp_path: Path
) -> None:
    faulty = faulty_run(tiny("gpt2"), tmp_path / "faulty.json")
    result = residcheck("compare", run_file, faulty, "--prompts", "p.txt", "--json", "c.json")
    rows = told(result, tmp_path / "c.json")
    assert result.exit_code == ExitStatus.REFUTED_OR_DRIFTED, result.output
    assert rows["mlp_post_norm"]["verdict"] == "different"
    assert "faulty.json has other numbers" in rows["mlp_post_norm"]["note"]
    assert rows["W_out_frobenius"]["verdict"] == "same"


def test_what_cannot_be_measured_again_stays_unsettled_and_says_so(
    residcheck: Invoke, run_file: Path, tiny: Tiny, tmp_path: Path
) -> None:
    faulty = faulty_run(tiny("gpt2"), tmp_path / "faulty.json")
    old = edited(
        faulty, tmp_path / "old.json", lambda d: d["environment"].update(transformers="4.57.6")
    )
    result = residcheck("compare", run_file, old, "--prompts", "p.txt", "--json", "c.json")
    note = told(result, tmp_path / "c.json")["mlp_post_norm"]["note"]
    assert "could not be settled in float64: it was measured with transformers 4.57.6" in note
    result = residcheck("compare", run_file, faulty, "--json", "c.json")  # where is p.txt?
    note = told(result, tmp_path / "c.json")["mlp_post_norm"]["note"]
    assert "'p.txt', which is not in the run file" in note
    assert result.exit_code == ExitStatus.REFUTED_OR_DRIFTED


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d["prompts"].update(sha256="0"), "other prompts"),
        (lambda d: d["prompts"].update(sha256="0", max_tokens=7), "other max_tokens"),
        (lambda d: d["seeds"].update(gaussian=99), "other seeds: gaussian"),
        (lambda d: d["model"].update(weights="sha256:0123456789abcdef"), "sha256 0123456789ab"),
        (lambda d: d["horizon"].update(ablation="mean"), "other horizons"),
    ],
)
def test_runs_of_another_question_are_refused(
    change: Callable[[dict[str, Any]], None],
    said: str,
    residcheck: Invoke,
    run_file: Path,
    tmp_path: Path,
) -> None:
    other = edited(run_file, tmp_path / "b.json", change)
    result = residcheck("compare", run_file, other, "--json", "c.json")
    assert result.exit_code == ExitStatus.USAGE, result.output
    assert said in result.output
    assert not (tmp_path / "c.json").exists()


def test_files_that_are_no_runs_are_explained(
    residcheck: Invoke, run_file: Path, tmp_path: Path
) -> None:
    whole = run_file.read_text()
    (tmp_path / "cut.json").write_text(whole[: len(whole) // 2])
    edited(run_file, tmp_path / "schema.json", lambda d: d.update(schema="residcheck.run/0"))
    for name, said in {
        "cut.json": "cannot read cut.json",
        "schema.json": "has schema 'residcheck.run/0'",
        "none.json": "cannot read none.json: No such file",
    }.items():
        result = residcheck("compare", run_file, name)
        assert result.exit_code == ExitStatus.COULD_NOT_MEASURE
        assert said in result.output
        assert "Traceback" not in result.output


def test_a_report_in_a_folder_that_cannot_be_made_is_refused_first(
    residcheck: Invoke, run_file: Path
) -> None:
    result = residcheck("compare", run_file, run_file, "--report", f"{run_file}/r.html")
    assert result.exit_code == ExitStatus.COULD_NOT_MEASURE
    assert "cannot write" in result.output


def norms(run: Run, **changes: Any) -> Run:
    return replace(run, model=replace(run.model, dtype="float32", **changes))


def test_what_one_run_lacks_is_missing_and_facts_are_exact() -> None:
    curves = [a_curve("b_O_norm"), a_curve("ov_frobenius")]
    one = replace(norms(a_run(*curves)), shapes={"W_in": "8 x 40", "z": "batch x pos x 8"})
    other = replace(
        norms(a_run(curves[1]), missing={"b_O_norm": "no bias"}, gated=True),
        shapes={"W_in": "40 x 8", "z": "none"},
    )
    rows = {row.name: row for row in rows_of(one, other)}
    assert rows["b_O_norm"].sameness is Sameness.MISSING
    assert (rows["b_O_norm"].values, rows["b_O_norm"].note) == (("measured", "missing"), "no bias")
    assert rows["ov_frobenius"].sameness is Sameness.SAME
    assert rows["shape of W_in"].sameness is Sameness.DIFFERENT
    assert rows["shape of z"].sameness is Sameness.MISSING
    assert rows["gated"].values == ("False", "True")
    order = [row.sameness for row in rows.values()]
    assert order == sorted(order, key=list(Sameness).index)
    assert not set(QUANTITIES) & rows.keys()


def test_what_masked_positions_hold_is_compared_within_one_library_only() -> None:
    spreads = [
        Curve("padding_spread", ("position", "layer"), np.full((4, 8), x), "relative distance")
        for x in (0.0, 0.5)
    ]
    one, other = (replace(norms(a_run(c)), environment={"torch": "2"}) for c in spreads)
    assert "padding_spread" in {row.name for row in rows_of(one, other)}
    for change in ({"attention": "sdpa"}, {"backend": "transformers"}, {"device": "cuda"}):
        changed = replace(other, model=replace(other.model, **change))
        assert "padding_spread" not in {row.name for row in rows_of(one, changed)}
    changed = replace(other, environment={"torch": "2", "transformer_lens": "3.7.3"})
    assert "padding_spread" not in {row.name for row in rows_of(one, changed)}


def test_the_worst_comes_first() -> None:
    curve = a_curve("ov_frobenius")
    small, large = (curve.values.copy() for _ in range(2))
    small[0, 3] *= 1.01
    large[2, 5] *= 1.5
    one = norms(a_run(curve, a_curve("b_O_norm", np.ones(8))))
    other = norms(a_run(replace(curve, values=small), a_curve("b_O_norm", np.full(8, 1.3))))
    first, second = rows_of(one, other)[:2]
    assert (first.name, second.name) == ("b_O_norm", "ov_frobenius")
    assert second.place in ("values at head 0, layer 3", "mean at layer 3")
    other = norms(a_run(replace(curve, values=large), a_curve("b_O_norm", np.full(8, 1.001))))
    assert rows_of(one, other)[0].name == "ov_frobenius"
