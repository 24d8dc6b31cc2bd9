"""The pytest plugin: claims as tests over models, measured once, with four outcomes.

Options are in the group "residcheck" of ``pytest --help``. Nothing heavy is imported
unless a session collects claims.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from residcheck.claim import Claim
    from residcheck.controls import Comparison
    from residcheck.curves import Run
    from residcheck.intervention import Intervention
    from residcheck.result import Judged
    from residcheck.session import Measurements

SESSION = pytest.StashKey["Measurements"]()
_LETTERS = {"supported": "S", "inconclusive": "I", "not applicable": "n", "refuted": "R"}
_ASKS_FOR_CLAIMS = {
    f"residcheck_{name}"
    for name in (
        *("models", "device", "dtype", "backend", "prompts"),
        *("max_tokens", "report", "markdown"),
    )
}
_MARKERS = (
    "slow: takes more than a few seconds",
    "gpu: needs a CUDA device; skipped where there is none",
    "network: needs the package index or the model hub",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("residcheck", "claims about residual streams")
    add = group.addoption
    add("--model", action="append", default=[], metavar="SPEC", dest="residcheck_models",
        help="model to check: built-in name, hub id, folder or .gguf, with options "
        "(gpt2-xl@REV,dtype=bf16); repeatable")  # fmt: skip
    add("--device", dest="residcheck_device", metavar="DEVICE",
        help="cpu, cuda, cuda:N, auto (over all GPUs) or mps")  # fmt: skip
    add("--dtype", dest="residcheck_dtype", metavar="DTYPE",
        help="float32, tf32, bf16, fp16 or float64")  # fmt: skip
    add("--backend", dest="residcheck_backend", metavar="NAME",
        help="transformer_lens (default), transformers or nnsight")  # fmt: skip
    add("--prompts", dest="residcheck_prompts", metavar="FILE", type=Path,
        help="text file, one prompt a line, or JSON lines with 'text'")  # fmt: skip
    add("--max-tokens", dest="residcheck_max_tokens", metavar="N", type=int,
        help="longest prompt, counting BOS (default 128)")  # fmt: skip
    add("--batch-size", dest="residcheck_batch_size", metavar="N", type=int,
        help="prompts per forward pass (default 8; on a GPU, as many as fit)")  # fmt: skip
    add("--report", dest="residcheck_report", metavar="FILE", type=Path,
        help="write an HTML report of the verdicts")  # fmt: skip
    add("--markdown", dest="residcheck_markdown", metavar="FILE", type=Path,
        help="write a job summary of the verdicts in Markdown")  # fmt: skip
    add("--snapshots", dest="residcheck_snapshots", metavar="DIR", type=Path,
        help="folder of snapshots (default: ./snapshots)")  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    for marker in _MARKERS:
        config.addinivalue_line("markers", marker)
    config.addinivalue_line("markers", "xdist_group(name): models are measured by one worker")
    options = vars(config.option)
    if any(value for name, value in options.items() if name in _ASKS_FOR_CLAIMS):
        specs = _measurements(config).specs  # what is wrong is said before anything runs
        if hasattr(config, "workerinput"):
            from residcheck.workers import take_own_gpu

            take_own_gpu(config.workerinput["workerid"], {s.device for s in specs.values()})


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    if config.getvalue("dist") != "loadgroup" or SESSION not in config.stash:
        return None
    from residcheck.workers import by_model

    return by_model(config, log, _measurements(config).specs)


def _measurements(config: pytest.Config) -> Measurements:
    """This session's measurements, set up when first asked for."""
    if SESSION not in config.stash:
        from residcheck.errors import ResidcheckError
        from residcheck.session import Measurements

        try:
            config.stash[SESSION] = Measurements.of(config.option, config.invocation_params.dir)
        except ResidcheckError as error:
            raise pytest.UsageError(f"residcheck: {error}") from error
    return config.stash[SESSION]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "residcheck_controls" in metafunc.fixturenames:
        from residcheck.controls import shipped

        zoos = [pytest.param(path, id=path.name) for path in shipped()]
        params = zoos or [pytest.param(None, id="none")]
        metafunc.parametrize("residcheck_controls", params, indirect=True, scope="session")
    if "residcheck_run" in metafunc.fixturenames:
        specs = _measurements(metafunc.config).specs
        params = [pytest.param(s, id=text, marks=_marks(text, s)) for text, s in specs.items()]
        metafunc.parametrize("residcheck_run", params, indirect=True, scope="session")


def _marks(text: str, spec: Any) -> list[pytest.MarkDecorator]:
    from residcheck.session import needs_network

    marks = [pytest.mark.xdist_group(text)]
    if spec.device.startswith("cuda"):
        marks.append(pytest.mark.gpu)
    if needs_network(spec):
        marks.append(pytest.mark.network)
    return marks


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    claims = [c for item in items if (c := _claim(item)) is not None]
    curves = [name for item in items if (name := _curve_name(item)) is not None]
    if claims or curves:
        _measurements(config).want(claims, curves)


def _claim(item: pytest.Item) -> Claim | None:
    return getattr(getattr(item, "function", None), "claim", None)


def _curve_name(item: pytest.Item) -> str | None:
    if "residcheck_curve" not in getattr(item, "fixturenames", ()):
        return None
    callspec = getattr(item, "callspec", None)
    return None if callspec is None else callspec.params.get("curve")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and _claim(item) is None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device, and there is none")


@pytest.fixture(scope="session")
def residcheck_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The measurements of one model, made once a session (once in all under xdist)."""
    from residcheck.errors import ResidcheckError

    base = tmp_path_factory.getbasetemp()
    shared = base.parent if hasattr(request.config, "workerinput") else base
    try:
        return _measurements(request.config).run(request.param, shared)
    except ResidcheckError as error:
        pytest.fail(f"could not measure {request.param}: {error}", pytrace=False)


@pytest.fixture
def residcheck_judge(request: pytest.FixtureRequest, snapshot: Any) -> Callable[[Claim, Run], None]:
    """Evaluates a claim on a run and makes the verdict the outcome of the test."""
    from residcheck.judging import judge
    from residcheck.snapshot import verdict_document

    folder = _measurements(request.config).snapshots

    def check(claim: Claim, run: Run) -> None:
        judged = _clearly(lambda: judge(claim, run, folder))
        document = verdict_document(run, judged.verdict, claim.curves)
        _conclude(request, _stored(snapshot, folder), judged, document)

    return check


@pytest.fixture(scope="session")
def residcheck_controls(request: pytest.FixtureRequest) -> Comparison:
    """The trained controls of one scale that come with residcheck, compared."""
    from residcheck.controls import Comparison, read_zoo

    if request.param is None:
        pytest.skip("no trained controls come with this version")
    found: Comparison = _clearly(lambda: Comparison.of(read_zoo(request.param)))
    return found


@pytest.fixture
def residcheck_judge_controls(
    request: pytest.FixtureRequest, snapshot: Any
) -> Callable[[Intervention, Comparison], None]:
    """Makes the verdict on trained controls the outcome of the test."""
    from residcheck.intervention import provenance
    from residcheck.judging import judge_controls
    from residcheck.snapshot import verdict_of_controls

    folder = _measurements(request.config).snapshots

    def check(intervention: Intervention, found: Comparison) -> None:
        judged = _clearly(lambda: judge_controls(intervention, found, folder))
        document = verdict_of_controls(provenance(found.zoo), judged.verdict)
        _conclude(request, _stored(snapshot, folder), judged, document)

    return check


def _conclude(request: pytest.FixtureRequest, stored: Any, judged: Judged, document: Any) -> None:
    """Report a verdict; write it where snapshots are updated, fail the test where it fails."""
    from residcheck.snapshot import key, verdict_name

    verdict = judged.verdict
    request.node.user_properties.extend(_properties(judged).items())
    if request.config.option.update_snapshots:
        assert stored(name=key(verdict.model, verdict_name(verdict.claim))) == document
    elif judged.fails:
        pytest.fail(_message(judged), pytrace=False)
    if verdict.outcome.value == "not applicable":
        pytest.skip(verdict.note)


@pytest.fixture
def residcheck_curve(request: pytest.FixtureRequest, snapshot: Any) -> Callable[[Run, str], None]:
    """Holds a curve of a run against its snapshot; skips where there is nothing to compare."""
    from residcheck.judging import drift
    from residcheck.snapshot import comparable, curve_document, key, read

    measurements = _measurements(request.config)

    def check(run: Run, name: str) -> None:
        if name not in run.curves:
            lost = _clearly(lambda: drift(run, name, measurements.snapshots))
            if lost is not None and not request.config.option.update_snapshots:
                pytest.fail(lost.message, pytrace=False)
            pytest.skip(run.model.missing.get(name, "not measured in this session"))
        record = _clearly(lambda: read(measurements.snapshots, run.model.id, name))
        if not request.config.option.update_snapshots:
            if record is None:
                pytest.skip(f"no snapshot of {run.model.id} is stored")
            if reason := comparable(record, run):
                pytest.skip(reason)
        stored = _stored(snapshot, measurements.snapshots)(name=key(run.model.id, name))
        if stored != curve_document(run, name):
            pytest.fail("\n".join(stored.get_assert_diff()), pytrace=False)

    return check


def _clearly(work: Callable[[], Any]) -> Any:
    from residcheck.errors import ResidcheckError

    try:
        return work()
    except ResidcheckError as error:
        pytest.fail(str(error), pytrace=False)


def _stored(snapshot: Any, folder: Path) -> Any:
    """syrupy's fixture with our extension; refuses to write on CI before anything is done."""
    from residcheck.snapshot import writing_forbidden
    from residcheck.snapshot.extension import ResidcheckSnapshotExtension

    if snapshot.update_snapshots and (reason := writing_forbidden()):
        pytest.fail(reason, pytrace=False)
    ResidcheckSnapshotExtension.folder = folder
    return snapshot.use_extension(ResidcheckSnapshotExtension)


def _message(judged: Judged) -> str:
    verdict, claim = judged.verdict, judged.claim
    lines = [f"{claim.id} on {verdict.model}: {judged.label}", f"  claim: {claim.statement}"]
    for e in verdict.estimates:
        where = "" if e.region is None else f"; the claim needs {e.region}"
        lines.append(f"  {e} (over {e.population}, n = {e.n:,}){where}")
    if verdict.note:
        lines.append(f"  {verdict.note}")
    lines.append(f"  published: {claim.published}; {claim.source}")
    lines.append("  if this is how the model is, record it with --snapshot-update")
    return "\n".join(lines)


def _properties(judged: Judged) -> dict[str, str]:
    """What goes into JUnit, and through xdist to the terminal: plain strings."""
    verdict = judged.verdict
    return {
        "claim": verdict.claim,
        "model": verdict.model,
        "verdict": verdict.outcome.value,
        "label": judged.label,
        "measured": verdict.measured,
        "note": verdict.note,
        "estimates": json.dumps(verdict.to_json()["estimates"]),
    }


def _verdict_of(report: pytest.TestReport) -> dict[str, str]:
    return {str(k): str(v) for k, v in report.user_properties} if report.when == "call" else {}


@pytest.hookimpl(tryfirst=True)
def pytest_report_teststatus(
    report: pytest.CollectReport | pytest.TestReport,
) -> tuple[str, str, str] | None:
    if not isinstance(report, pytest.TestReport) or "verdict" not in _verdict_of(report):
        return None
    said = _verdict_of(report)
    letter, word = _LETTERS[said["verdict"]], said["label"].upper()
    return ("failed" if report.failed else said["verdict"], letter, word)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    reports = [r for group in terminalreporter.stats.values() for r in group]
    said = [
        v for r in reports if isinstance(r, pytest.TestReport) and "claim" in (v := _verdict_of(r))
    ]
    if not said:
        return
    terminalreporter.write_sep("=", "verdicts")
    for v in said:
        line = f"{v['label']:<24} {v['claim']:<22} {v['model']}"
        terminalreporter.write_line(f"{line}  {v['measured'] or v['note']}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    files = (config.option.residcheck_report, config.option.residcheck_markdown)
    if files == (None, None) or SESSION not in config.stash or hasattr(config, "workerinput"):
        return
    from residcheck.errors import ResidcheckError

    factory = getattr(config, "_tmp_path_factory", None)
    try:
        _measurements(config).write_files(*files, factory.getbasetemp() if factory else None)
    except ResidcheckError as error:
        session.exitstatus = pytest.ExitCode.USAGE_ERROR
        print(f"\nresidcheck: {error}", file=sys.stderr)
