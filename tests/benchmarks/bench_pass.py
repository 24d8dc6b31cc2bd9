"""What measuring costs on SmolLM2-135M: 8 prompts of 128 tokens.

Against a plain forward pass with logits, and against ``run_with_cache`` of TransformerLens
over the hooks that the same curves need.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from paired import drawn, paired

from residcheck.corpus import Prompts, shipped
from residcheck.measure import Session, open_session, run_session
from residcheck.measure.tokens import batches
from residcheck.models import load, parse_spec
from residcheck.names import QUANTITIES, STRUCTURE

PAIRS = 7
CACHED = (
    "hook_resid_pre",
    "ln1.hook_normalized",
    "hook_attn_out",
    "hook_resid_mid",
    "ln2.hook_normalized",
    "mlp.hook_pre",
    "mlp.hook_post",
    "hook_mlp_out",
    "hook_resid_post",
)
"""What a user of TransformerLens caches for the norms and rates of the pass."""
MEMORY = Path(__file__).with_name("memory.py")


@pytest.fixture(scope="module")
def plain() -> Any:
    return load(parse_spec("smollm2-135m,backend=transformers")).model


@pytest.fixture(scope="module", params=["transformer_lens", "transformers"])
def session(request: pytest.FixtureRequest) -> Session:
    prompts = Prompts("first passages", shipped().texts[:8])
    return open_session(parse_spec(f"smollm2-135m,backend={request.param}"), prompts, 128)


def instrumented(session: Session, names: Iterable[str] = QUANTITIES) -> Callable[[], object]:
    return lambda: run_session(session, names, batch_size=8)


@pytest.mark.parametrize("more", [(), tuple(STRUCTURE)], ids=["scalars", "structure"])
def bench_pass_over_plain_forward(
    benchmark: Any, plain: Any, session: Session, more: tuple[str, ...]
) -> None:
    batch = next(batches(session.encoded, 8, "cpu"))

    @torch.inference_mode()
    def forward() -> object:
        return plain(input_ids=batch.tokens, attention_mask=batch.mask, use_cache=False).logits

    work = instrumented(session, (*QUANTITIES, *more))
    forward(), work()
    kind = "every measurement and the structure" if more else "every measurement"
    what = f"instrumented pass, {kind} ({session.loaded.spec.backend})"
    paired(benchmark, work, forward, PAIRS, what=what, over="plain forward, logits", target=1.10)


def bench_pass_over_own_forward(benchmark: Any, session: Session) -> None:
    """What the taps cost beside what the backend itself costs over plain transformers."""
    batch, backend = next(batches(session.encoded, 8, "cpu")), session.backend

    def forward() -> object:
        return backend.forward(batch.tokens, batch.mask, {}, logits=True)

    work, name = instrumented(session), session.loaded.spec.backend
    forward(), work()
    what = f"instrumented pass, every measurement ({name})"
    paired(benchmark, work, forward, PAIRS, what=what, over=f"forward of {name}, logits")


def bench_pass_over_run_with_cache(benchmark: Any, session: Session) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    if session.loaded.spec.backend != "transformer_lens":
        pytest.skip("the other backend has no run_with_cache")
    batch = next(batches(session.encoded, 8, "cpu"))
    model = session.backend._bridge  # type: ignore[attr-defined]
    assert isinstance(model, TransformerBridge)

    @torch.inference_mode()
    def cached() -> object:
        wanted = {f"blocks.{n}.{site}" for n in range(len(model.blocks)) for site in CACHED}
        _, cache = model.run_with_cache(
            batch.tokens, attention_mask=batch.mask, names_filter=lambda name: name in wanted
        )
        return cache

    work = instrumented(session)
    cached(), work()
    facts = {"what": "instrumented pass, every measurement", "over": "run_with_cache, same hooks"}
    paired(benchmark, work, cached, PAIRS, target=1 / 1.3, **facts)


@pytest.mark.parametrize("base", ["forward", "cache"])
def bench_peak_memory(benchmark: Any, base: str) -> None:
    """Peak of a whole process, the model and its libraries loaded."""

    def peak(kind: str) -> float:
        command = [sys.executable, str(MEMORY), kind]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return float(said.split()[-1])

    over = {"forward": "plain forward, logits", "cache": "run_with_cache, same hooks"}[base]
    facts = {"what": "peak memory of a process with an instrumented pass", "over": over}
    target = 1.05 if base == "forward" else 1.0
    drawn(benchmark, lambda: peak("pass") / peak(base), 2, target=target, **facts)
