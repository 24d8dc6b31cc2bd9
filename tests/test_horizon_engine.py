"""The engine against one modified pass per horizon, for every variant and kind of block."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from naive_horizons import PLACES, NaiveScores, naive_horizons
from tiny import PAD, Tiny, new_model

from residcheck.backends import open_backend
from residcheck.horizon import Plan, Scores, Truncation, Variant, schedule
from residcheck.models import load, parse_spec

LENGTHS = (9, 7, 4)  # of three prompts in one batch, padded on the right
PLAN = Plan(prompts=3, rows=3, piece=5)  # uneven groups and pieces
VARIANTS = [
    Variant(ablation, outputs, enforced, layer, unembedding, unit)
    for ablation, outputs, (enforced, layer), unembedding, unit in product(
        ("zero", "mean"),
        ("recomputed", "original"),
        (("everywhere", None), ("from", 2), ("at", 3), ("unembedding", None)),
        ("full", "truncated"),
        ("layers", "sublayers"),
    )
]
FAMILIES = sorted(PLACES)


def depth_of(family: str) -> dict[str, int]:
    layers = {"gpt2": "n_layer", "gptj": "n_layer", "bloom": "n_layer"}
    return {layers.get(family, "num_hidden_layers"): 5} if family != "gemma3" else {}


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(3, 500, (len(LENGTHS), max(LENGTHS)), generator=generator)
    mask = torch.zeros_like(tokens)
    for row, length in enumerate(LENGTHS):
        mask[row, :length] = 1
    return tokens.masked_fill(mask == 0, PAD), mask


def engine_scores(
    folder: Path, backend: str, variant: Variant, plan: Plan = PLAN, dtype: str = "float64"
) -> list[Scores]:
    spec = parse_spec(str(folder)).with_options(backend=backend, dtype=dtype)
    opened: Any = open_backend(load(spec))
    anatomy = opened.anatomy
    schedules = [
        schedule(variant, k, anatomy.n_layers, anatomy.parallel)
        for k in range(1, variant.longest(anatomy.n_layers) + 1)
    ]
    truncation = Truncation(opened, variant, schedules, getattr(torch, dtype))
    truncation.see(batch())
    _, found = truncation.scores(batch(), plan)
    return [found[s] for s in schedules]


def assert_same(found: list[Scores], expected: list[NaiveScores], tolerance: float) -> None:
    for k, (one, other) in enumerate(zip(found, expected, strict=True), 1):
        for name in ("loss", "kl"):
            a, b = getattr(one, name).double(), getattr(other, name)
            shift = float((a - b).abs().max())
            assert shift <= tolerance * (1 + float(b.abs().max())), (k, name, shift)
        disagree = (one.top1.double() - other.top1).abs().mean()
        assert disagree <= (0 if tolerance < 1e-3 else 0.2)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_variant_is_the_naive_loop(tiny: Tiny, variant: Variant) -> None:
    """In float64, on a sequential block with RMSNorm."""
    folder = tiny("llama", **depth_of("llama"))
    model = new_model("llama", **depth_of("llama")).double()
    expected = naive_horizons(model, "llama", *batch(), variant)
    assert_same(engine_scores(folder, "transformers", variant), expected, 1e-9)


SOME = [
    Variant(),
    Variant(ablation="mean", unit="sublayers", unembedding="truncated"),
    Variant(outputs="original", unit="sublayers", enforced="from", layer=1),
    Variant(outputs="original", ablation="mean", enforced="at", layer=2),
]


@pytest.mark.parametrize("backend", ["transformers", "transformer_lens"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_of_block(tiny: Tiny, family: str, backend: str) -> None:
    """LayerNorm and RMSNorm, sandwich norms, no norm before, parallel blocks, experts.

    The library's weights are processed; the plain modules' are not. Some norms compute in
    float32 whatever the dtype; experts run in float32 only.
    """
    folder = tiny(family, **depth_of(family))
    dtype = "float32" if family == "mixtral" else "float64"
    exact = backend == "transformers" and dtype == "float64" and "gemma" not in family
    model = new_model(family, **depth_of(family)).to(getattr(torch, dtype))
    for variant in SOME:
        expected = naive_horizons(model, family, *batch(), variant)
        found = engine_scores(folder, backend, variant, dtype=dtype)
        assert_same(found, expected, 1e-9 if exact else 1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "neox"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.2)])
def test_other_dtypes(tiny: Tiny, family: str, dtype: str, tolerance: float) -> None:
    """Against the naive loop in float64: rounding of the dtype is all that differs."""
    folder = tiny(family, **depth_of(family))
    model = new_model(family, **depth_of(family)).double()
    for variant in SOME:
        expected = naive_horizons(model, family, *batch(), variant)
        found = engine_scores(folder, "transformers", variant, dtype=dtype)
        assert_same(found, expected, tolerance)


def test_a_forward_that_a_library_put_there_stays(tiny: Tiny) -> None:
    """As accelerate's, which moves what a block is given to the block's device."""
    opened: Any = open_backend(load(parse_spec(f"{tiny('llama')},backend=transformers")))
    block = opened.stack[1]
    usual = block.forward
    block.forward = lambda *args, **kwargs: usual(*args, **kwargs)
    theirs = block.forward
    opened.unembed(torch.zeros(3, opened.anatomy.d_model))
    assert block.forward is theirs
