"""The gate: sound models pass it, and logits, blocks and attention that are wrong stop at it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lying import Case, Lying, Seen, both_backends, hooks_named, sound
from tiny import LAYERS, Tiny
from torch import Tensor

from residcheck.backends import anatomy
from residcheck.errors import GateError, NonFiniteError, ResidcheckError, UnsupportedModelError
from residcheck.measure import gate
from residcheck.tolerances import tolerance

SEQUENTIAL, PARALLEL = ("gpt2", "llama", "gemma3"), ("neox", "phi", "falcon")


@both_backends
@pytest.mark.parametrize("family", [*SEQUENTIAL, *PARALLEL, "olmo2", "granite", "bloom", "opt"])
def test_sound_hooks_pass(family: str, backend: str, tiny: Tiny) -> None:
    sound(tiny, family, backend).check()


@both_backends
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "neox"])
def test_sound_hooks_pass_in_half_precision(
    family: str, dtype: str, backend: str, tiny: Tiny
) -> None:
    Case(tiny, family, backend=backend, dtype=dtype).check()


@both_backends
@pytest.mark.parametrize("family", ["gpt2", "llama", "falcon"])  # Falcon adds in place
def test_sound_hooks_pass_in_float64(family: str, backend: str, tiny: Tiny) -> None:
    Case(tiny, family, backend=backend, dtype="float64").check()


@pytest.mark.parametrize(
    ("family", "parallel"),
    [("neox", False), ("stablelm_parallel", False), ("gptj", False), ("llama", True)],
)
def test_a_wrong_notion_of_parallel_blocks_stops(
    family: str, parallel: bool, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anatomy, "_is_parallel", lambda block, config: parallel)
    with pytest.raises(GateError, match="layer 0"):
        Case(tiny, family, backend="transformers").check()


@both_backends
@pytest.mark.parametrize("family", ["olmo2", "bloom", "granite"])
def test_a_sequential_block_is_not_parallel_though_its_sums_are_the_same(
    family: str, backend: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anatomy, "_is_parallel", lambda block, config: True)
    find_norms = anatomy._find_norms

    def without_norms(*arguments: Any) -> None:  # where there are norms, they tell, too
        find_norms(*arguments)
        parts, missing = arguments[-2:]
        for site in ("ln1_out", "ln2_out"):
            parts.pop(site, None)
            missing.setdefault(site, "left out")

    monkeypatch.setattr(anatomy, "_find_norms", without_norms)
    case = Case(tiny, family, backend=backend)
    with pytest.raises(GateError, match="layer 0: the block was taken for parallel") as caught:
        case.check()
    expected = [case.backend.hook_name(0, "attn_out"), case.backend.hook_name(0, "mlp_out")]
    assert hooks_named(caught.value) == expected


def test_a_parallel_block_is_not_sequential_though_its_hooks_add_up(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    def middle(layer: int) -> Callable[[Seen], Tensor]:
        return lambda seen: seen[layer, "resid_pre"] + seen[layer, "attn_out"]

    monkeypatch.setattr(anatomy, "_is_parallel", lambda block, config: False)
    case = Case(tiny, "gptj", backend="transformers")
    lies = {(n, "resid_mid"): middle(n) for n in range(LAYERS)}
    with pytest.raises(GateError, match="layer 0: the block was taken for sequential"):
        case.check(Lying(case.backend, lies))


@pytest.mark.parametrize("layer", range(LAYERS))
def test_one_sequential_block_among_parallel_ones_is_named(layer: int, tiny: Tiny) -> None:
    def make_sequential(model: Any) -> None:
        block = model.transformer.h[layer]

        def forward(x: Tensor, attention_mask: Tensor, position_ids: Tensor, **_: Any) -> Any:
            read = block.ln_1(x)
            attn, _ = block.attn(read, attention_mask=attention_mask, position_ids=position_ids)
            return x + attn + block.mlp(read + attn), None

        block.forward = forward

    case = Case(tiny, "gptj", before=make_sequential, backend="transformers")
    with pytest.raises(GateError, match=f"layer {layer}: the block was taken for parallel"):
        case.check()


@both_backends
@pytest.mark.parametrize(
    ("family", "writer"),
    [("llama", "model.layers.1.mlp.down_proj"), ("neox", "gpt_neox.layers.1.mlp.dense_4h_to_h")],
)
def test_an_mlp_that_writes_the_same_at_every_token_passes(
    family: str, writer: str, backend: str, tiny: Tiny
) -> None:
    def silence(model: Any) -> None:
        model.get_submodule(writer).weight.zero_()

    Case(tiny, family, before=silence, backend=backend).check()


@both_backends
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_logits_that_are_no_numbers_are_named(value: float, backend: str, tiny: Tiny) -> None:
    def spoilt(logits: Tensor) -> Tensor:
        logits = logits.clone()
        logits[1, 3, 5] = value
        return logits

    case = sound(tiny, "llama", backend)
    with pytest.raises(NonFiniteError, match="logits of plain transformers hold NaN or inf"):
        gate.check(case.backend, case.tokens, spoilt(case.reference), tolerance("float32"))
    with pytest.raises(NonFiniteError, match=f"logits of {backend} hold NaN or infinity"):
        case.check(Lying(case.backend, {}, logits=spoilt))


@both_backends
@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("gpt2", lambda model: model.transformer.wpe.weight.mul_(1.01)),
        ("llama", lambda model: model.model.layers[1].self_attn.o_proj.weight.mul_(1.01)),
        ("neox", lambda model: model.lm_head.weight[3:].mul_(1.01)),
    ],
)
def test_logits_of_other_weights_stop(
    family: str, change: Callable[[Any], Tensor], backend: str, tiny: Tiny
) -> None:
    case = Case(tiny, family, change, backend=backend)
    with pytest.raises(GateError, match="the logits differ from plain transformers'"):
        case.check()


@both_backends
def test_attention_that_looks_ahead_is_no_causal_model(
    backend: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "transformers.models.llama.modeling_llama.create_causal_mask",
        lambda inputs_embeds, **_: torch.zeros(1, 1, *[inputs_embeds.shape[1]] * 2),
    )
    case = Case(tiny, "llama", backend=backend, attention="eager")
    with pytest.raises(UnsupportedModelError, match="changing the last token"):
        case.check()


def test_one_head_that_looks_ahead_is_enough(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def mask(inputs_embeds: Tensor, **_: object) -> Tensor:
        n = inputs_embeds.shape[1]
        causal = torch.full((1, 4, n, n), torch.finfo(torch.float32).min).triu(1)
        causal[:, 2] = 0
        return causal

    monkeypatch.setattr("transformers.models.llama.modeling_llama.create_causal_mask", mask)
    case = Case(tiny, "llama", backend="transformers", attention="eager")
    with pytest.raises(UnsupportedModelError, match="causal"):
        case.check()


@pytest.mark.parametrize(
    ("family", "overrides", "options"),
    [
        ("opt", {"do_layer_norm_before": False}, {"backend": "transformers"}),
        ("opt", {"do_layer_norm_before": False}, {"backend": "transformer_lens"}),
        ("codegen", {}, {"backend": "transformer_lens", "dtype": "bfloat16"}),
        ("openai_gpt", {}, {"backend": "transformers"}),
    ],
    ids=["OPT-350m, plain", "OPT-350m, lens", "CodeGen in bfloat16", "GPT-1"],
)
def test_what_a_backend_cannot_run_is_explained(
    family: str, overrides: dict[str, Any], options: dict[str, str], tiny: Tiny
) -> None:
    with pytest.raises(ResidcheckError):
        Case(tiny, family, overrides=overrides, **options).check()
