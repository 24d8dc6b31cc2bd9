"""The identities of one pass: sound hooks hold them, and each wrong hook is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from lying import Case, Lying, Seen, Where, both_backends, hooks_named, instead, sound
from tiny import LAYERS, Tiny
from torch import Tensor

from residcheck.backends import Site, anatomy
from residcheck.errors import GateError, NonFiniteError

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


@both_backends
@pytest.mark.parametrize("site", ["ln1_out", "ln2_out"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "neox"])
def test_a_wrong_norm_output_is_named(family: str, site: Site, backend: str, tiny: Tiny) -> None:
    case = sound(tiny, family, backend)
    stream: Site = "resid_pre" if site == "ln1_out" or family == "neox" else "resid_mid"
    wrong: list[Callable[[Seen], Tensor]] = [
        instead(1, stream),
        lambda seen: seen[1, site] * 1.001,
        lambda seen: seen[1, site].roll(1, dims=-1),
        lambda seen: seen[0, site],
    ]
    for lie in wrong:
        with pytest.raises(GateError, match=rf"layer 1: norm\({stream}\) = {site} fails") as caught:
            case.check(Lying(case.backend, {(1, site): lie}))
        expected = [case.backend.hook_name(1, stream), case.backend.hook_name(1, site)]
        assert hooks_named(caught.value) == expected


@both_backends
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_the_norm_before_its_gain_is_no_norm_output(family: str, backend: str, tiny: Tiny) -> None:
    options = {"processing": "raw"} if backend == "transformer_lens" else {}
    case = Case(tiny, family, backend=backend, **options)
    affine = case.backend.affine(2, "ln1_out")
    lie = {(2, "ln1_out"): lambda seen: (seen[2, "ln1_out"] - affine.bias) / affine.gain}
    with pytest.raises(GateError, match=r"layer 2: norm\(resid_pre\) = ln1_out fails"):
        case.check(Lying(case.backend, lie))


@both_backends
@pytest.mark.parametrize("processing", ["processed", "raw"])
@pytest.mark.parametrize(
    ("family", "norms"),
    [
        ("gpt2", ("transformer.h.0.ln_1", "transformer.h.1.ln_2")),
        ("llama", ("model.layers.0.input_layernorm", "model.layers.1.post_attention_layernorm")),
    ],
)
def test_gains_of_zero_pass(
    family: str, norms: tuple[str, str], processing: str, backend: str, tiny: Tiny
) -> None:
    def change(model: Any) -> None:
        some, most = (model.get_submodule(name).weight for name in norms)
        some[[0, 7]] = 0
        most[1:] = 0

    options = {"processing": processing} if backend == "transformer_lens" else {}
    Case(tiny, family, before=change, backend=backend, **options).check()


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
