"""What all layer horizons cost, against plain forward passes and against one pass each.

On one machine in turn, so that the ratio of each pair holds while its speed drifts: all
horizons of the definition, with loss, divergence and top-1 agreement, at 4 x 64 tokens,
on SmolLM2-135M and on a random GPT-2 of 24 layers.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from naive_horizons import PLACES, naive_logits
from paired import drawn, seconds
from tiny import build
from torch.nn.functional import cross_entropy

from residcheck.backends import open_backend
from residcheck.horizon import DEFAULT_MEMORY, DEFINITION, Truncation, schedule
from residcheck.models import load, parse_spec

ROUNDS = 3
FORWARDS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2 of 24 layers, 512 wide, with 16,384 tokens."""
    shape = {"n_layer": 24, "n_embd": 512, "n_head": 8, "vocab_size": 16384}
    return build("gpt2", tmp_path_factory.mktemp("gpt2"), **shape)


@pytest.mark.parametrize("over", ["plain", "own", "loop"])
@pytest.mark.parametrize("backend", ["transformers", "transformer_lens"])
@pytest.mark.parametrize("model", ["smollm2-135m", "random-24-layers"])
def bench_all_horizons(benchmark: Any, folder: Path, model: str, backend: str, over: str) -> None:
    """Over as many plain forwards as there are layers, over the backend's own, over the loop."""
    spec = parse_spec(model if model == "smollm2-135m" else str(folder))
    plain = load(spec).model
    opened = open_backend(load(spec.with_options(backend=backend)))
    anatomy, vocab = opened.anatomy, plain.config.vocab_size
    depth = anatomy.n_layers
    tokens = torch.randint(5, vocab, (4, 64), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    schedules = [schedule(DEFINITION, k, depth, anatomy.parallel) for k in range(1, depth + 1)]
    truncation = Truncation(opened, DEFINITION, schedules, torch.float32)
    plan = truncation.plan(DEFAULT_MEMORY, 4, 64, vocab, "cpu")

    @torch.inference_mode()
    def forward() -> object:
        return plain(input_ids=tokens, attention_mask=mask, use_cache=False).logits

    def own_forward() -> object:
        return opened.forward(tokens, mask, {}, logits=True)

    def horizons() -> object:
        return truncation.scores((tokens, mask), plan)

    @torch.inference_mode()
    def loop() -> None:
        """One pass a horizon with hooks, and its loss alone."""
        places = PLACES["llama" if model == "smollm2-135m" else "gpt2"]
        for k in range(1, depth + 1):
            logits = naive_logits(plain, places, tokens, mask, DEFINITION, k, {}, {})
            cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    def of_forwards(work: Any) -> float:
        """Before and after, since one forward is short beside all horizons."""
        before = [seconds(work) for _ in range(FORWARDS)]
        cost = seconds(horizons)
        after = [seconds(work) for _ in range(FORWARDS)]
        return cost / depth / statistics.median(before + after)

    forward(), own_forward()
    ratio = {
        "plain": lambda: of_forwards(forward),
        "own": lambda: of_forwards(own_forward),
        "loop": lambda: seconds(horizons) / seconds(loop),
    }[over]
    names = {
        "plain": f"{depth} plain forwards, logits",
        "own": f"{depth} forwards of the same backend",
        "loop": "one pass a horizon, loss alone",
    }
    what = f"all {depth} horizons of {model} ({backend})"
    wanted = {"target": 0.6} if over == "plain" else {}
    drawn(benchmark, ratio, ROUNDS, what=what, over=names[over], **wanted)
