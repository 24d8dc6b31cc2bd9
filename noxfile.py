"""Environments: ``nox -l`` lists them.

Every session installs from the tested set in constraints.txt.
"""

from __future__ import annotations

from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.default_venv_backend = "venv"
SMALL = ("smollm2-135m", "control-gpt2", "control-gpt2-rescaled")
MODELS = (*SMALL, "gemma3-270m")
BASELINE = "tests/benchmarks/baseline.json"


def install(session: nox.Session, extra: str = "test") -> None:
    # torch first, alone: nothing may pull another build of it.
    session.install("--constraint", "constraints.txt", "torch")
    session.install("--constraint", "constraints.txt", "--editable", f".[{extra}]")


@nox.session
def tests(session: nox.Session) -> None:
    """The tests of residcheck itself, and the claims on the built-in models but the largest."""
    install(session)
    models = (f"--model={model}" for model in SMALL)
    command = ("pytest", "-n", "2", "--dist", "loadgroup", "tests", "claims", *models)
    session.run(*command, *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff: style and formatting."""
    session.install("--constraint", "constraints.txt", "ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """mypy, strict."""
    install(session, "dev")
    session.run("mypy")


@nox.session
@nox.parametrize("model", MODELS)
def claims(session: nox.Session, model: str) -> None:
    """The claims on one built-in model, against its snapshots."""
    install(session)
    session.run("pytest", "--pyargs", "residcheck.claims", "--model", model, *session.posargs)


@nox.session
def verify(session: nox.Session) -> None:
    """What a user sees: the verdict tables of the built-in models and one report."""
    install(session)
    session.run("residcheck", "verify", *MODELS, "--report", "report.html", *session.posargs)


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Ratios against plain forwards and TransformerLens: claims/BENCHMARKS.md.

    Fails where a median ratio is a quarter above the stored one. To store what was measured,
    copy benchmarks.json to the baseline.
    """
    install(session)
    options = [
        "--override-ini=python_files=bench_*",
        "--override-ini=python_functions=bench_*",
        "--benchmark-only",
        "--benchmark-json=benchmarks.json",
        "--benchmark-columns=median,min,max,rounds",
    ]
    if Path(BASELINE).exists():
        options += [f"--benchmark-compare={BASELINE}", "--benchmark-compare-fail=median:25%"]
    session.run("pytest", "tests/benchmarks", *options, *session.posargs)
    if not session.posargs:
        session.run("python", "tests/benchmarks/page.py", "benchmarks.json", "claims/BENCHMARKS.md")


@nox.session
def gpu(session: nox.Session) -> None:
    """Claims, agreement with the CPU, and costs, on a CUDA GPU; on the CPU with `-- --cpu`."""
    install(session)
    device = "cpu" if "--cpu" in session.posargs else "cuda"
    if device == "cuda":
        session.run("python", "-c", _NEEDS_A_GPU)
    options = ["--device", device, *(("--max-tokens", "32") if device == "cpu" else ())]
    claims = ("python", "-m", "pytest", "--pyargs", "residcheck.claims", *options)
    session.run(*claims, "--dtype", "float32")
    # Told, and not a failure: what is on record is of float32, and bfloat16's rounding moves a
    # verdict and the curves that one huge token makes by more than its bounds, on CPUs too.
    session.run(*claims, "--dtype", "bfloat16", success_codes=[0, 1])
    for script in ("agreement.py", "xl.py"):
        session.run("python", f"tests/gpu/{script}", "--device", device)


_NEEDS_A_GPU = """
import sys, torch
if not torch.cuda.is_available():
    sys.exit("torch finds no CUDA GPU here; to see that the session runs: nox -s gpu -- --cpu")
"""


@nox.session
def planted(session: nox.Session) -> None:
    """Every claim both ways on planted models: a section of claims/PROOF.md."""
    install(session)
    session.run("python", "tests/proof/planted.py", env={"PYTHONPATH": "tests"})


@nox.session
def detect(session: nox.Session) -> None:
    """Every planted fault in every tiny model: a section of claims/PROOF.md."""
    install(session)
    command = ("python", "tests/proof/detect.py")
    session.run(*command, *session.posargs, env={"PYTHONPATH": "tests"})


@nox.session
def quiet(session: nox.Session) -> None:
    """Runs that differ in nothing that matters: a section of claims/PROOF.md."""
    install(session)
    session.run("python", "tests/proof/quiet.py", *session.posargs, env={"PYTHONPATH": "tests"})


@nox.session
def calibrate(session: nox.Session) -> None:
    """How often each decision rule errs: a section of claims/PROOF.md."""
    install(session)
    command = ("python", "tests/proof/calibrate.py")
    session.run(*command, *session.posargs, env={"PYTHONPATH": "tests"})


@nox.session
def train(session: nox.Session) -> None:
    """Trained controls: matched small GPT-2s, `-- --scale small --jobs 2 --out DIR`."""
    install(session)
    session.run("python", "-m", "residcheck.train", *session.posargs)


@nox.session
def controls(session: nox.Session) -> None:
    """What the trained controls that are shipped say: claims/CONTROLS.md."""
    install(session)
    command = ("residcheck", "controls", "--markdown", "claims/CONTROLS.md")
    session.run(*command, *session.posargs, success_codes=[0, 1])


@nox.session
def regress(session: nox.Session) -> None:
    """Models of the zoo through every version of the libraries: claims/REGRESS.md."""
    install(session)
    # A part of the matrix (`-- --only gpt2`) does not replace the page of the whole.
    pages = () if session.posargs else ("--markdown", "claims/REGRESS.md", "--html", "regress.html")
    command = ("python", "-m", "residcheck.regress")
    session.run(*command, *pages, *session.posargs, success_codes=[0, 1])
    if pages:
        session.run("python", "-m", "residcheck.regress.planted", "--append", "claims/REGRESS.md")
