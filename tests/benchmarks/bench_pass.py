"""What measuring costs: the instrumented pass against a plain forward pass with logits.

Both run on one loaded model, in turn, so that the ratio of each pair holds while the
machine's speed drifts. 8 prompts of 128 tokens, SmolLM2-135M, CPU.
Run with: nox -s bench
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from residcheck.corpus import Prompts, shipped
from residcheck.measure import Session, open_session, run_session
from residcheck.measure.tokens import batches
from residcheck.models import load, parse_spec
from residcheck.names import QUANTITIES

PAIRS = 7


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@pytest.fixture(scope="module")
def plain() -> Any:
    return load(parse_spec("smollm2-135m,backend=transformers")).model


@pytest.mark.parametrize("backend", ["transformer_lens", "transformers"])
def bench_pass_over_plain_forward(benchmark: Any, plain: Any, backend: str) -> None:
    """``extra_info.ratio``: median over pairs of instrumented over plain; target 1.15."""
    prompts = Prompts("first passages", shipped().texts[:8])
    session: Session = open_session(parse_spec(f"smollm2-135m,backend={backend}"), prompts, 128)
    batch = next(batches(session.encoded, 8, "cpu"))

    @torch.inference_mode()
    def forward() -> object:
        return plain(input_ids=batch.tokens, attention_mask=batch.mask, use_cache=False).logits

    def instrumented() -> object:
        return run_session(session, QUANTITIES, batch_size=8)

    forward(), instrumented()
    bases, times = [], []
    for _ in range(PAIRS):
        bases.append(_timed(forward))
        times.append(_timed(instrumented))
    ratios = [time / base for time, base in zip(times, bases, strict=True)]
    benchmark.extra_info["ratio"] = statistics.median(ratios)
    benchmark.extra_info["ratio_of_minima"] = min(times) / min(bases)
    pairs = [round(ratio, 2) for ratio in sorted(ratios)]
    print(f"\n{backend}: {benchmark.extra_info}; pairs {pairs}")
    benchmark.pedantic(instrumented, rounds=1)


def bench_help(benchmark: Any) -> None:
    """``residcheck --help`` as a whole process; target 0.3 s."""
    command = [sys.executable, "-m", "residcheck", "--help"]
    benchmark.pedantic(lambda: subprocess.run(command, check=True, capture_output=True), rounds=10)
