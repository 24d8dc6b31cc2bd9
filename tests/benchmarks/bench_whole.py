"""What a user waits for: start-up, loading, decisions, the whole of ``verify``; SmolLM2-135M."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from paired import paired

from residcheck.claim import all_claims
from residcheck.corpus import Prompts, shipped
from residcheck.curves import Run, load_run, save_run
from residcheck.judging import DEFAULT_SNAPSHOTS, judge_run
from residcheck.measure import HorizonOptions, measure, open_session
from residcheck.measure.tokens import batches
from residcheck.models import load, parse_spec

SPEC = "smollm2-135m"


def python(*arguments: str) -> Callable[[], object]:
    command = [sys.executable, *arguments]
    return lambda: subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(scope="module")
def forward() -> Callable[[], object]:
    """Ten plain forward passes with logits over 8 prompts of 128 tokens."""
    prompts = Prompts("first passages", shipped().texts[:8])
    session = open_session(parse_spec(f"{SPEC},backend=transformers"), prompts, 128)
    batch, model = next(batches(session.encoded, 8, "cpu")), session.loaded.model

    @torch.inference_mode()
    def run() -> None:
        for _ in range(10):
            model(input_ids=batch.tokens, attention_mask=batch.mask, use_cache=False)

    run()
    return run


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "smollm2.json"
    run: Run = measure(parse_spec(SPEC), horizon=HorizonOptions(sample=True))
    save_run(run, path)
    return path


def bench_help(benchmark: Any) -> None:
    facts = {"what": "residcheck --help", "over": "python -c 'import click'"}
    work = python("-m", "residcheck", "--help")
    paired(benchmark, work, python("-c", "import click"), 10, target_seconds=0.3, **facts)


def bench_collecting_the_claims(benchmark: Any) -> None:
    collect = python("-m", "pytest", "--pyargs", "residcheck.claims", "--collect-only", "-q")
    facts = {"what": "pytest collects the claims", "over": "python -c 'import torch'"}
    paired(benchmark, collect, python("-c", "import torch"), 5, **facts)


def bench_loading_from_the_cache(benchmark: Any) -> None:
    from transformers import AutoModelForCausalLM

    spec = parse_spec(f"{SPEC},backend=transformers")
    folder = load(spec).model.name_or_path

    def plain() -> object:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    facts = {"what": "loading from the cache, checked", "over": "from_pretrained alone"}
    paired(benchmark, lambda: load(spec), plain, 5, **facts)


def bench_deciding_all_claims(
    benchmark: Any, run_file: Path, forward: Callable[[], object]
) -> None:
    def decide() -> object:
        return judge_run(load_run(run_file), all_claims(), DEFAULT_SNAPSHOTS)

    decide()
    facts = {"what": "all claims decided from a run file", "over": "10 plain forwards"}
    paired(benchmark, decide, forward, 5, target_seconds=5, **facts)


def bench_verify(benchmark: Any, forward: Callable[[], object]) -> None:
    def verify() -> None:
        status = subprocess.run([sys.executable, "-m", "residcheck", "verify"], check=False)
        assert status.returncode == 0

    facts = {"what": "residcheck verify, warm", "over": "10 plain forwards"}
    paired(benchmark, verify, forward, 3, target_seconds=60, **facts)
