"""The identity gate: sound hooks pass it, and every kind of wrong hook stops at it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
import torch
from tiny import LAYERS, Tiny
from torch import Tensor

from residcheck.backends import SITES, Backend, Site, Tap, Taps, anatomy, open_backend
from residcheck.errors import GateError, NonFiniteError, ResidcheckError, UnsupportedModelError
from residcheck.measure import gate
from residcheck.models import ModelSpec, load
from residcheck.tolerances import tolerance

BACKENDS = ("transformer_lens", "transformers")
both_backends = pytest.mark.parametrize("backend", BACKENDS)
Where = tuple[int, Site]
Seen = Mapping[Where, Tensor]
SEQUENTIAL, PARALLEL = ("gpt2", "llama", "gemma3"), ("neox", "phi", "falcon")


class Case:
    """A loaded model, the logits of the plain model, then a change, and then its backend."""

    def __init__(
        self,
        tiny: Tiny,
        family: str,
        change: Callable[[Any], object] = lambda model: None,
        overrides: Mapping[str, Any] = MappingProxyType({}),
        **options: str,
    ) -> None:
        folder = tiny(family, **overrides)
        loaded = load(ModelSpec(str(folder)).with_options(**options))
        self.model = loaded.model
        self.dtype = loaded.spec.dtype
        self.tokens = torch.randint(3, 500, (2, 16), generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            self.reference = self.model(input_ids=self.tokens, use_cache=False).logits
        with torch.no_grad():
            change(self.model)
        self.backend: Backend = open_backend(loaded)

    def check(self, backend: Backend | Lying | None = None) -> None:
        gate.check(backend or self.backend, self.tokens, self.reference, tolerance(self.dtype))


CASES: dict[tuple[str, str], Case] = {}


def sound(tiny: Tiny, family: str, backend: str) -> Case:
    """A case that is only looked at, and so can be shared by the tests."""
    if (family, backend) not in CASES:
        CASES[family, backend] = Case(tiny, family, backend=backend)
    return CASES[family, backend]


class Lying:
    """A backend whose taps at some places are handed other tensors than what is there."""

    def __init__(self, truth: Backend, lies: Mapping[Where, Callable[[Seen], Tensor | None]]):
        self._truth, self._lies = truth, lies
        self.name, self.version, self.anatomy = truth.name, truth.version, truth.anatomy
        self.affine, self.hook_name = truth.affine, truth.hook_name

    def forward(self, tokens: Tensor, mask: Tensor, taps: Taps, *, logits: bool) -> Tensor | None:
        seen: dict[Where, Tensor] = {}

        def keep(where: Where) -> Tap:
            return lambda x: seen.update({where: x.clone()})

        places = [(n, s) for n in range(self.anatomy.n_layers) for s in SITES]
        keeping = {where: keep(where) for where in places if self.anatomy.has(where[1])}
        self._truth.forward(tokens, mask, keeping, logits=False)
        swapped = {where: self._swapped(where, tap, seen) for where, tap in taps.items()}
        return self._truth.forward(tokens, mask, swapped, logits=logits)

    def _swapped(self, where: Where, tap: Tap, seen: Seen) -> Tap:
        if where not in self._lies:
            return tap
        wrong = self._lies[where](seen)
        return lambda x: None if wrong is None else tap(wrong)


def instead(layer: int, site: Site) -> Callable[[Seen], Tensor]:
    return lambda seen: seen[layer, site]


@both_backends
@pytest.mark.parametrize("family", [*SEQUENTIAL, *PARALLEL, "olmo2", "granite", "bloom", "opt"])
def test_sound_hooks_pass(family: str, backend: str, tiny: Tiny) -> None:
    sound(tiny, family, backend).check()


@both_backends
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "neox"])
def test_sound_hooks_pass_in_bfloat16(family: str, backend: str, tiny: Tiny) -> None:
    Case(tiny, family, backend=backend, dtype="bfloat16").check()


@both_backends
@pytest.mark.parametrize("family", ["gpt2", "llama", "falcon"])  # Falcon adds in place
def test_sound_hooks_pass_in_float64(family: str, backend: str, tiny: Tiny) -> None:
    Case(tiny, family, backend=backend, dtype="float64").check()


def hooks_named(error: GateError) -> list[str]:
    return error.message.partition("hooks: ")[2].partition(";")[0].split(", ")


# what is handed out in place of what is there: (family, site, the wrong tensor's site)
WRONG_SITES: list[tuple[str, Site, Site]] = [
    ("gpt2", "attn_out", "resid_mid"),  # as BLOOM in TransformerLens 3.0-3.7
    ("gpt2", "mlp_out", "resid_post"),
    ("gpt2", "resid_post", "resid_pre"),
    ("gpt2", "resid_mid", "resid_post"),
    ("llama", "attn_out", "ln1_out"),
    ("llama", "mlp_out", "attn_out"),
    ("gemma3", "attn_out", "ln1_out"),
    ("neox", "attn_out", "mlp_out"),
    ("neox", "mlp_out", "resid_post"),
    ("neox", "resid_post", "resid_pre"),
]


@both_backends
@pytest.mark.parametrize(("family", "site", "wrong"), WRONG_SITES)
def test_a_wrong_hook_in_one_layer_is_named(
    family: str, site: Site, wrong: Site, backend: str, tiny: Tiny
) -> None:
    case = sound(tiny, family, backend)
    for layer in range(LAYERS):
        with pytest.raises(GateError, match=f"layer {layer}: ") as caught:
            case.check(Lying(case.backend, {(layer, site): instead(layer, wrong)}))
        assert case.backend.hook_name(layer, site) in hooks_named(caught.value)
        joins_the_next = site == "resid_post" and layer < LAYERS - 1
        assert ("; so do 1 more layers" in caught.value.message) is joins_the_next


@both_backends
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_wrong_stream_into_a_block_is_named(layer: int, backend: str, tiny: Tiny) -> None:
    case = sound(tiny, "gemma3", backend)
    with pytest.raises(GateError, match=f"layer {layer}: ") as caught:
        case.check(Lying(case.backend, {(layer, "resid_pre"): instead(layer, "ln1_out")}))
    assert case.backend.hook_name(layer, "resid_pre") in hooks_named(caught.value)


@both_backends
def test_a_wrong_hook_in_every_layer_is_counted(backend: str, tiny: Tiny) -> None:
    case = sound(tiny, "gpt2", backend)
    lies = {(n, "attn_out"): instead(n, "resid_mid") for n in range(LAYERS)}
    with pytest.raises(GateError, match=r"layer 0: .*; so do 2 more layers"):
        case.check(Lying(case.backend, lies))


@both_backends
def test_the_size_of_the_mismatch_is_that_of_the_difference(backend: str, tiny: Tiny) -> None:
    case = sound(tiny, "llama", backend)
    lies = {(1, "attn_out"): lambda seen: seen[1, "attn_out"] + 0.25 * seen[1, "resid_mid"]}
    with pytest.raises(GateError, match=r"layer 1: .* off by 0\.25 of the right-hand side"):
        case.check(Lying(case.backend, lies))


@both_backends
@pytest.mark.parametrize("where", [(0, 0), (1, 15)])
def test_a_hook_that_is_wrong_at_one_token_stops(
    where: tuple[int, int], backend: str, tiny: Tiny
) -> None:
    def spoilt(seen: Seen) -> Tensor:
        tensor = seen[2, "mlp_out"].clone()
        tensor[where] = 0
        return tensor

    case = sound(tiny, "llama", backend)
    with pytest.raises(GateError, match=r"layer 2: resid_mid \+ mlp_out = resid_post fails"):
        case.check(Lying(case.backend, {(2, "mlp_out"): spoilt}))


@both_backends
@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "resid_mid", "mlp_out"])
def test_a_hook_that_is_never_reached_is_named(site: Site, backend: str, tiny: Tiny) -> None:
    case = sound(tiny, "llama", backend)
    with pytest.raises(GateError, match=f"layer 1: {site} was never reached") as caught:
        case.check(Lying(case.backend, {(1, site): lambda seen: None}))
    assert case.backend.hook_name(1, site) in caught.value.message


@both_backends
@pytest.mark.parametrize("site", ["ln1_out", "mlp_pre", "resid_post"])
def test_a_silent_hook_beside_the_identities_is_named(site: Site, backend: str, tiny: Tiny) -> None:
    case = sound(tiny, "llama", backend)
    with pytest.raises(GateError, match="never reached") as caught:
        case.check(Lying(case.backend, {(2, site): lambda seen: None}))
    assert case.backend.hook_name(2, site) in caught.value.message


@both_backends
def test_the_last_stream_after_the_final_norm_is_no_resid_post(backend: str, tiny: Tiny) -> None:
    case = sound(tiny, "llama", backend)
    with torch.inference_mode():  # transformers gives exactly this as its last hidden state
        output = case.model.model(case.tokens, use_cache=False, output_hidden_states=True)
    lies = {(2, "resid_post"): lambda seen: output.hidden_states[-1]}
    with pytest.raises(GateError, match=r"layer 2: resid_mid \+ mlp_out = resid_post fails"):
        case.check(Lying(case.backend, lies))


def test_blocks_whose_streams_do_not_join_are_named(tiny: Tiny) -> None:
    case = Case(tiny, "llama", backend="transformers")
    drift: dict[Where, Callable[[Seen], Tensor]] = {}
    for site in ("resid_pre", "resid_mid", "resid_post"):  # each identity of layer 1 holds
        drift[1, site] = lambda seen, site=site: seen[1, site] + seen[1, "attn_out"]
    with pytest.raises(GateError, match=r"layer 1: resid_post\[n-1\] = resid_pre\[n\] fails"):
        case.check(Lying(case.backend, drift))


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "olmo2", "glm4"])
def test_sublayers_tapped_before_their_post_norm_stop(
    family: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anatomy, "_post_norms", lambda block: (None, None))
    with pytest.raises(GateError, match="layer 0: resid_pre"):
        Case(tiny, family, backend="transformers").check()


def test_a_residual_multiplier_that_is_forgotten_stops(tiny: Tiny) -> None:
    case = Case(tiny, "granite", backend="transformers")
    blocks = case.backend._blocks  # type: ignore[attr-defined]
    assert blocks.parts["attn_out"].scale == 0.3  # as configured in tiny.FAMILIES
    parts = blocks.parts | {"attn_out": replace(blocks.parts["attn_out"], scale=1.0)}
    case.backend._blocks = replace(blocks, parts=parts)  # type: ignore[attr-defined]
    with pytest.raises(GateError, match=r"layer 0: resid_pre \+ attn_out = resid_mid fails"):
        case.check()


@pytest.mark.parametrize(
    ("family", "parallel"),
    [
        ("neox", False),
        ("stablelm_parallel", False),
        pytest.param(
            "llama",
            True,
            marks=pytest.mark.xfail(reason="the sum over a sequential block is the same"),
        ),
    ],
)
def test_a_wrong_notion_of_parallel_blocks_stops(
    family: str, parallel: bool, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anatomy, "_is_parallel", lambda block, config: parallel)
    with pytest.raises(GateError, match="layer 0"):
        Case(tiny, family, backend="transformers").check()


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
@pytest.mark.parametrize("layer", [0, 2])
def test_nan_in_a_layer_is_named(layer: int, backend: str, tiny: Tiny) -> None:
    case = sound(tiny, "llama", backend)
    nan = {(layer, "mlp_pre"): lambda seen: torch.full_like(seen[layer, "mlp_pre"], torch.nan)}
    with pytest.raises(NonFiniteError, match=f"layer {layer}: mlp_pre holds NaN"):
        case.check(Lying(case.backend, nan))


def test_nan_in_the_weights_of_a_layer_names_it(tiny: Tiny) -> None:
    case = Case(tiny, "llama", backend="transformers")
    with torch.no_grad():
        case.model.model.layers[1].mlp.down_proj.weight[5, 7] = torch.nan
    with pytest.raises(NonFiniteError, match=r"layer 1: mlp_out .*model\.layers\.1\.mlp"):
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
