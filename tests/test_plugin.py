"""The pytest plugin, run as its users run it: from another folder, over tiny models."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

from residcheck.claim import all_claims
from residcheck.corpus import shipped

LAYERS = 6
Run = Callable[..., pytest.RunResult]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "gpt2": tiny.build("gpt2", root / "tiny-gpt2", n_layer=LAYERS),
        "llama": tiny.build("llama", root / "tiny-llama", num_hidden_layers=LAYERS),
    }


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """``pytest --pyargs residcheck.claims`` in an empty folder, on short prompts."""
    monkeypatch.delenv("CI", raising=False)
    prompts = pytester.path / "prompts.txt"
    prompts.write_text("\n".join(text[:60].replace("\n", " ") for text in shipped().texts[:20]))

    def go(*arguments: object, claims: str = "residcheck.claims") -> pytest.RunResult:
        return pytester.runpytest_inprocess(
            "--pyargs",
            claims,
            "--backend=transformers",
            f"--prompts={prompts}",
            "--max-tokens=16",
            *map(str, arguments),
        )

    return go


def test_every_claim_is_a_test_with_one_of_four_outcomes(run: Run, models: dict[str, Path]) -> None:
    result = run("--model", models["gpt2"], "-v")
    counts = result.parseoutcomes()
    assert sum(counts.get(o, 0) for o in ("supported", "failed", "inconclusive", "not")) >= 10
    for claim in all_claims():
        result.stdout.fnmatch_lines_random([f"*test_*{_name(claim.id)}*tiny-gpt2*"])
    result.stdout.fnmatch_lines(["*= verdicts =*", "supported *triangle-bound *tiny-gpt2*slack*"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED  # random weights refute something


def _name(claim_id: str) -> str:
    return claim_id.replace("-", "_")


def test_refuted_claim_fails_with_the_numbers(run: Run, models: dict[str, Path]) -> None:
    result = run("--model", models["gpt2"], "-k", "correlated_addition")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "correlated-addition on tiny-gpt2: refuted",
            "*needs 0 to 0.5*",
            "*published: appendix 2*",
        ]
    )
    result.stdout.no_fnmatch_line("*Traceback*")


def test_inapplicable_claim_is_skipped_with_its_reason(run: Run, models: dict[str, Path]) -> None:
    result = run("--model", models["llama"], "-k", "mean_zero", "-rs")
    result.stdout.fnmatch_lines(["*does not subtract the mean*", "*1 not applicable*"])
    assert result.ret == pytest.ExitCode.OK


def test_two_models_are_two_parametrizations(run: Run, models: dict[str, Path]) -> None:
    result = run("--model", models["gpt2"], "--model", models["llama"], "-k", "triangle")
    assert result.parseoutcomes()["supported"] == 2


def test_model_is_measured_once(
    run: Run, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import residcheck.measure as room

    calls: list[str] = []
    original = room.measure

    def counting(spec: object, *args: object, **kwargs: object) -> object:
        calls.append(str(spec))
        return original(spec, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(room, "measure", counting)
    run("--model", models["gpt2"])
    assert len(calls) == 1


def test_only_what_the_selected_claims_need_is_measured(
    run: Run, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import residcheck.measure as room

    wanted: list[set[str]] = []
    original = room.measure

    def noting(spec: object, *args: object, **kwargs: object) -> object:
        wanted.append(set(kwargs["names"]))  # type: ignore[call-overload]
        return original(spec, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(room, "measure", noting)
    run("--model", models["gpt2"], claims="residcheck.claims.test_sublayers")
    assert "attn_out_norm" in wanted[0]
    assert "centred_mean" not in wanted[0]


def test_recorded_refutation_passes(run: Run, models: dict[str, Path]) -> None:
    assert run("--model", models["gpt2"], "--snapshot-update").ret == pytest.ExitCode.OK
    again = run("--model", models["gpt2"], "-v")
    assert again.ret == pytest.ExitCode.OK
    again.stdout.fnmatch_lines(["*REFUTED, AS RECORDED*"])


def test_snapshots_hold_provenance(
    run: Run, models: dict[str, Path], pytester: pytest.Pytester
) -> None:
    run("--model", models["gpt2"], "--snapshot-update")
    stored = json.loads((pytester.path / "snapshots/tiny-gpt2/resid_post_norm.json").read_text())
    assert len(stored["curve"]["mean"]) == LAYERS
    assert stored["provenance"]["model"]["weights"].startswith("sha256:")
    assert stored["provenance"]["environment"]["torch"]
    assert "horizon" not in stored["provenance"]
    stored = json.loads((pytester.path / "snapshots/tiny-gpt2/horizon_loss.json").read_text())
    assert stored["curve"]["horizon"] == list(range(1, LAYERS + 1))
    assert stored["provenance"]["horizon"]["ablation"] == "zero"
    assert stored["provenance"]["horizon"]["prompts"]["count"] == 20


def test_update_with_fewer_models_deletes_nothing(
    run: Run, models: dict[str, Path], pytester: pytest.Pytester
) -> None:
    run("--model", models["gpt2"], "--model", models["llama"], "--snapshot-update")
    before = sorted(pytester.path.glob("snapshots/**/*.json"))
    run("--model", models["llama"], "--snapshot-update", "-k", "triangle")
    assert sorted(pytester.path.glob("snapshots/**/*.json")) == before
    # Family H is judged whatever model is asked for, and written where the shipped record differs.
    assert {path.parent.name for path in before} - {"controls-small"} == {"tiny-gpt2", "tiny-llama"}


def test_update_leaves_matching_files_alone(
    run: Run, models: dict[str, Path], pytester: pytest.Pytester
) -> None:
    run("--model", models["gpt2"], "--snapshot-update")
    path = pytester.path / "snapshots/tiny-gpt2/attn_out_norm.json"
    text = path.read_text().replace('"unit"', ' "unit"')  # other bytes, same numbers
    path.write_text(text)
    run("--model", models["gpt2"], "--snapshot-update")
    assert path.read_text() == text


def test_ci_never_writes_snapshots(
    run: Run, models: dict[str, Path], pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    result = run("--model", models["gpt2"], "--snapshot-update")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*snapshots are never written on CI*"])
    assert not (pytester.path / "snapshots").exists()


def _edit(path: Path, change: Callable[[dict], None]) -> None:  # type: ignore[type-arg]
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def _scale_layer(document: dict) -> None:  # type: ignore[type-arg]
    document["curve"]["mean"][2] *= 1.001


def _lose_layer(document: dict) -> None:  # type: ignore[type-arg]
    document["curve"]["mean"][2] = None


def _other_schema(document: dict) -> None:  # type: ignore[type-arg]
    document["schema"] = "residcheck.snapshot/0"


def _no_provenance(document: dict) -> None:  # type: ignore[type-arg]
    del document["provenance"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_scale_layer, "*resid_post_norm drifted: mean at layer 2:*off by 9.99e-04 (bound 1e-05)*"),
        (_lose_layer, "*resid_post_norm drifted: mean at layer 2:*NaN on one side*"),
        (_other_schema, "*has schema 'residcheck.snapshot/0'*"),
        (_no_provenance, "*does not say where it is from*"),
    ],
)
def test_altered_snapshot_fails_and_says_where(
    run: Run,
    models: dict[str, Path],
    pytester: pytest.Pytester,
    change: Callable[[dict], None],  # type: ignore[type-arg]
    said: str,
) -> None:
    run("--model", models["gpt2"], "--snapshot-update")
    _edit(pytester.path / "snapshots/tiny-gpt2/resid_post_norm.json", change)
    result = run("--model", models["gpt2"], "-k", "as_stored and resid_post_norm")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([said])


def test_the_report_overlays_stored_and_new_where_a_curve_drifted(
    run: Run, models: dict[str, Path], pytester: pytest.Pytester
) -> None:
    run("--model", models["gpt2"], "--snapshot-update")
    _edit(pytester.path / "snapshots/tiny-gpt2/resid_post_norm.json", _scale_layer)
    which = "triangle or (as_stored and resid_post_norm)"
    run("--model", models["gpt2"], "--report=out.html", "-k", which)
    page = (pytester.path / "out.html").read_text().partition('id="drift"')[2]
    drifted = page.partition("</section>")[0]
    assert drifted.count("<svg") >= 2
    assert "stored" in drifted
    assert "difference over its bound" in drifted


def test_a_stored_curve_that_the_model_lacks_now_fails(
    run: Run, models: dict[str, Path], pytester: pytest.Pytester
) -> None:
    run("--model", models["llama"], "--snapshot-update", "-k", "as_stored")
    stored = pytester.path / "snapshots/tiny-llama"
    document = json.loads((stored / "attn_out_norm.json").read_text())
    (stored / "b_O_norm.json").write_text(json.dumps(document | {"name": "b_O_norm"}))
    result = run("--model", models["llama"], "-k", "as_stored and b_O_norm")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*b_O_norm has a snapshot and cannot be measured any more*"])


def test_changed_verdict_fails(
    run: Run, models: dict[str, Path], pytester: pytest.Pytester
) -> None:
    run("--model", models["gpt2"], "--snapshot-update")

    def refute(document: dict) -> None:  # type: ignore[type-arg]
        document["verdict"]["verdict"] = "refuted"

    _edit(pytester.path / "snapshots/tiny-gpt2/verdict.triangle-bound.json", refute)
    result = run("--model", models["gpt2"], "-k", "triangle")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["triangle-bound on tiny-gpt2: supported (was refuted)"])


def test_snapshot_of_other_prompts_is_not_compared(
    run: Run, models: dict[str, Path], pytester: pytest.Pytester
) -> None:
    run("--model", models["gpt2"], "--snapshot-update")
    result = run("--model", models["gpt2"], "--max-tokens=12", "-k", "as_stored", "-rs")
    result.stdout.fnmatch_lines(["*taken on other prompts*"])
    assert result.ret == pytest.ExitCode.OK


def test_junit_carries_the_verdict(
    run: Run, models: dict[str, Path], pytester: pytest.Pytester
) -> None:
    run("--model", models["gpt2"], "--junitxml=out.xml", "-k", "triangle")
    tree = ElementTree.parse(pytester.path / "out.xml")
    properties = {p.get("name"): p.get("value") for p in tree.iter("property")}
    assert properties["verdict"] == "supported"
    assert properties["claim"] == "triangle-bound"
    assert "slack" in str(properties["measured"])


def test_report_is_written(run: Run, models: dict[str, Path], pytester: pytest.Pytester) -> None:
    files = ("--report=out.html", "--markdown=out.md")
    run("--model", models["gpt2"], *files, "-k", "triangle or growth_exp")
    page = (pytester.path / "out.html").read_text()
    assert "triangle-bound" in page
    assert "<svg" in page
    assert "| triangle-bound | ✓ supported |" in (pytester.path / "out.md").read_text()


def test_workers_share_one_measurement(
    pytester: pytest.Pytester, models: dict[str, Path], run: Run
) -> None:
    result = pytester.runpytest_subprocess(
        "--pyargs",
        "residcheck.claims",
        "--backend=transformers",
        f"--prompts={pytester.path / 'prompts.txt'}",
        "--max-tokens=16",
        f"--model={models['gpt2']}",
        "-n2",
        "--basetemp=base",
        "--report=out.html",
    )
    assert len(list(pytester.path.glob("base/residcheck-*.json"))) == 1
    result.stdout.fnmatch_lines(["supported *triangle-bound *"])
    assert "triangle-bound" in (pytester.path / "out.html").read_text()


def test_a_model_is_one_workers_and_a_gpu_too(
    pytester: pytest.Pytester, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    both = [str(models["gpt2"]), str(models["llama"])]
    pytester.makepyfile(
        f"""
        import os, pytest
        @pytest.mark.parametrize("n", range(3))
        @pytest.mark.parametrize("model", [0, 1], ids={both})
        def test_x(model, n, worker_id):
            with open(f"{{model}}-{{n}}", "w") as file:
                file.write(worker_id + " " + os.environ["CUDA_VISIBLE_DEVICES"])
        """
    )
    options = (f"--model={both[0]}", f"--model={both[1]}", "--device=cuda")
    result = pytester.runpytest_subprocess(*options, "-n2", "--dist=loadgroup")
    result.assert_outcomes(passed=6)
    said = [{(pytester.path / f"{model}-{n}").read_text() for n in range(3)} for model in (0, 1)]
    assert sorted(said, key=str) == [{"gw0 3"}, {"gw1 5"}]


def test_unknown_option_value_is_a_usage_error(run: Run, models: dict[str, Path]) -> None:
    result = run("--model", models["gpt2"], "--dtype=int7")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*unknown dtype 'int7'*"])


def test_model_that_cannot_be_loaded_is_an_error_not_a_skip(run: Run, tmp_path: Path) -> None:
    result = run("--model", tmp_path, "-k", "triangle")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*could not measure*is not a model folder*"])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_gpu_tests_are_skipped_without_a_gpu(pytester: pytest.Pytester) -> None:
    pytest.importorskip("torch")
    pytester.makepyfile("import pytest\n@pytest.mark.gpu\ndef test_x():\n    import torch\n"
                        "    assert torch.cuda.is_available()\n")  # fmt: skip
    result = pytester.runpytest_inprocess("--strict-markers")
    assert result.ret == pytest.ExitCode.OK
