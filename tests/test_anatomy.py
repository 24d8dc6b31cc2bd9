"""What residcheck finds out about a decoder, against what the papers say of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tiny import FAMILIES, LAYERS, new_model
from torch import nn
from transformers.models.cohere.modeling_cohere import CohereLayerNorm
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.nemotron.modeling_nemotron import NemotronLayerNorm1P
from transformers.models.olmo.modeling_olmo import OlmoLayerNorm

from residcheck.backends.anatomy import dissect
from residcheck.backends.base import affine_of, is_centring, norm_eps
from residcheck.errors import UnsupportedModelError
from residcheck.tolerances import tolerance

# A gain comes from two outputs of the norm, each rounded after normalising, scaling and
# adding the bias, and from a division: five roundings, of numbers as large as the largest.
ROUNDINGS = 5
PARALLEL = {"resid_mid"}
ONE_NORM = {"resid_mid", "ln2_out"}
EXPERTS = {"mlp_pre", "mlp_post"}
NO_PRE_NORM = {"ln1_out", "ln2_out"}


class Built(NamedTuple):
    """How a family is built: from its paper and the sizes in ``tiny.FAMILIES``."""

    norm: str
    parallel: bool
    gated: bool
    d_mlp: int | None
    missing: set[str]


LAYERNORM, RMSNORM = "LayerNorm", "RMSNorm"
PUBLISHED = {
    "gpt2": Built(LAYERNORM, False, False, 192, set()),
    "gpt_neo": Built(LAYERNORM, False, False, 192, set()),
    "gptj": Built(LAYERNORM, True, False, 192, ONE_NORM),
    "codegen": Built(LAYERNORM, True, False, 256, ONE_NORM),
    "neox": Built(LAYERNORM, True, False, 96, PARALLEL),
    "neox_sequential": Built(LAYERNORM, False, False, 96, set()),
    "opt": Built(LAYERNORM, False, False, 96, set()),
    "bloom": Built(LAYERNORM, False, False, 192, set()),
    "falcon": Built(LAYERNORM, True, False, 192, ONE_NORM),
    "falcon_new": Built(LAYERNORM, True, False, 192, PARALLEL),
    "mpt": Built(LAYERNORM, False, False, 192, set()),
    "llama": Built(RMSNORM, False, True, 96, set()),
    "mistral": Built(RMSNORM, False, True, 96, set()),
    "mixtral": Built(RMSNORM, False, False, None, EXPERTS),
    "qwen2": Built(RMSNORM, False, True, 96, set()),
    "qwen3": Built(RMSNORM, False, True, 96, set()),
    "gemma": Built(RMSNORM, False, True, 96, set()),
    "gemma2": Built(RMSNORM, False, True, 96, set()),
    "gemma3": Built(RMSNORM, False, True, 96, set()),
    "phi": Built(LAYERNORM, True, False, 96, ONE_NORM),
    "phi3": Built(RMSNORM, False, True, 96, set()),
    "stablelm": Built(LAYERNORM, False, True, 96, set()),
    "stablelm_parallel": Built(LAYERNORM, True, True, 96, ONE_NORM),
    "olmo": Built(LAYERNORM, False, True, 96, set()),
    "olmo2": Built("none", False, True, 96, NO_PRE_NORM),
    "olmo3": Built("none", False, True, 96, NO_PRE_NORM),
    "granite": Built(RMSNORM, False, True, 96, set()),
    "cohere": Built(LAYERNORM, True, True, 96, ONE_NORM),
    "gpt_oss": Built(RMSNORM, False, False, None, EXPERTS),
    "glm4": Built(RMSNORM, False, True, 96, set()),
    "starcoder2": Built(LAYERNORM, False, False, 96, set()),
    "nemotron": Built(LAYERNORM, False, False, 96, set()),
    "apertus": Built(RMSNORM, False, False, 96, set()),
}


@pytest.mark.parametrize("family", PUBLISHED)
def test_a_decoder_is_found_to_be_built_as_published(family: str) -> None:
    found = dissect(new_model(family)).anatomy
    assert PUBLISHED[family] == Built(
        found.norm, found.parallel, found.gated, found.d_mlp, set(found.missing)
    )


@pytest.mark.parametrize("family", PUBLISHED)
def test_sizes_are_those_of_the_configuration(family: str) -> None:
    model = new_model(family)
    found = dissect(model).anatomy
    assert found.d_model == model.get_input_embeddings().weight.shape[1]
    assert (found.n_layers, found.n_heads) == (LAYERS, 4)


@pytest.mark.parametrize(
    ("family", "epsilon"),
    [("gpt2", "layer_norm_epsilon"), ("llama", "rms_norm_eps"), ("gemma3", "rms_norm_eps")],
)
def test_epsilon_is_that_of_the_configuration(family: str, epsilon: str) -> None:
    model = new_model(family, **{epsilon: 3e-4})
    assert dissect(model).anatomy.norm_eps == 3e-4


def test_epsilon_of_a_norm_that_does_not_name_it_is_measured() -> None:
    found = norm_eps(OlmoLayerNorm(48), 48)  # F.layer_norm(..., eps=1e-5), and no attribute
    assert found == pytest.approx(1e-5, rel=tolerance("float32").curve)


@pytest.mark.parametrize("family", ["mamba", "rwkv", "bert"])
def test_what_has_no_decoder_blocks_is_unsupported(family: str) -> None:
    with pytest.raises(UnsupportedModelError, match=family):
        dissect(new_model(family))


def test_experts_after_a_dense_first_block_leave_no_activation_rate() -> None:
    found = dissect(new_model("qwen3_moe_dense_first")).anatomy
    assert {"mlp_pre", "mlp_post"} <= set(found.missing)
    assert "layer 1" in found.missing_weights["mlp"]


@pytest.mark.parametrize("family", PUBLISHED)
def test_heads_are_those_of_the_configuration(family: str) -> None:
    model = new_model(family)
    found, config = dissect(model).anatomy, model.config
    one_key = family == "falcon"  # Falcon 7B's multi-query attention, the default
    grouped = getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", 4)
    assert found.n_kv_heads == (1 if one_key else grouped)
    assert found.d_head == config.hidden_size // 4


def test_only_experts_have_no_weights_to_give() -> None:
    found = {family: dissect(new_model(family)).anatomy.missing_weights for family in PUBLISHED}
    without = {family: set(reasons) for family, reasons in found.items() if reasons}
    assert without == {"mixtral": {"mlp"}, "gpt_oss": {"mlp"}}
    assert "experts" in found["mixtral"]["mlp"]


def test_reasons_for_what_is_missing_say_why() -> None:
    reasons = {f: dissect(new_model(f)).anatomy.missing for f in ("mixtral", "phi", "olmo2")}
    assert "experts" in reasons["mixtral"]["mlp_pre"]
    assert "parallel" in reasons["phi"]["resid_mid"]
    assert "share one norm" in reasons["phi"]["ln2_out"]
    assert "without a norm" in reasons["olmo2"]["ln1_out"]


def test_every_family_but_the_unsupported_is_in_the_table() -> None:
    unsupported = {"mamba", "bert", "t5", "rwkv", "openai_gpt", "qwen3_moe_dense_first"}
    assert set(PUBLISHED) == set(FAMILIES) - unsupported


def shaken(norm: Any, dtype: torch.dtype = torch.float32) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return norm.to(dtype)


# module, its gain as published, whether it subtracts the mean
KINDS: dict[str, tuple[Any, Any, bool]] = {
    "LayerNorm": (lambda d: nn.LayerNorm(d, eps=1e-5), lambda m: m.weight, True),
    "LlamaRMSNorm": (lambda d: LlamaRMSNorm(d, eps=1e-5), lambda m: m.weight, False),
    "GemmaRMSNorm": (lambda d: GemmaRMSNorm(d, eps=1e-5), lambda m: 1 + m.weight, False),
    "NemotronLayerNorm1P": (
        lambda d: NemotronLayerNorm1P(d, eps=1e-5),
        lambda m: 1 + m.weight,
        True,
    ),
    "CohereLayerNorm": (lambda d: CohereLayerNorm(d, eps=1e-5), lambda m: m.weight, True),
    "OlmoLayerNorm": (OlmoLayerNorm, lambda m: torch.ones(m.normalized_shape), True),
}
ALL_KINDS = pytest.mark.parametrize("kind", KINDS)


@ALL_KINDS
@pytest.mark.parametrize("width", [6, 7, 48, 577])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_gain_and_bias_are_those_of_the_module(kind: str, width: int, dtype: str) -> None:
    make, gain_of, _ = KINDS[kind]
    norm = shaken(make(width), getattr(torch, dtype))
    found = affine_of(norm, width)
    gain = gain_of(norm).detach().double().numpy()
    bias = getattr(norm, "bias", None)
    expected = np.zeros(width) if bias is None else bias.detach().double().numpy()
    # These modules normalise in float32 whatever they are given; nn.LayerNorm does not.
    precision = tolerance(dtype) if kind == "LayerNorm" else tolerance("float32", dtype)
    bound = ROUNDINGS * precision.unit * max(np.abs(gain).max(), np.abs(expected).max(), 1)
    assert np.abs(found.gain.double().numpy() - gain).max() <= bound
    assert np.abs(found.bias.double().numpy() - expected).max() <= bound


@ALL_KINDS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_norms_that_subtract_the_mean_are_told_from_those_that_do_not(
    kind: str, dtype: str
) -> None:
    make, _, centring = KINDS[kind]
    assert is_centring(shaken(make(48), getattr(torch, dtype)), 48) is centring


def test_a_large_epsilon_does_not_spoil_the_gain() -> None:
    norm = shaken(nn.LayerNorm(48, eps=0.5))
    gain = norm.weight.detach()
    bound = ROUNDINGS * tolerance("float32").unit * float(gain.abs().max())
    assert float((affine_of(norm, 48).gain - gain).abs().max()) <= bound


def test_a_gain_far_below_the_bias_is_not_invertible() -> None:
    norm = shaken(nn.LayerNorm(8))
    with torch.no_grad():
        norm.weight[2], norm.bias[2] = 0.0, 1.0
        norm.weight[5], norm.bias[5] = 1e-5, 1.0
    assert (~affine_of(norm, 8).invertible).nonzero().flatten().tolist() == [2, 5]


def test_a_gain_that_bfloat16_loses_beside_the_bias_is_not_invertible() -> None:
    norm = shaken(nn.LayerNorm(8), torch.bfloat16)
    with torch.no_grad():  # 0.005 x is below half a unit of 1 for any x below 0.7
        norm.weight[2], norm.bias[2] = 0.005, 1.0
    assert not affine_of(norm, 8).invertible[2]
