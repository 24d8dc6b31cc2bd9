"""A model in canonical form is the same model, and so is it in any rotated basis.

The expected logits are those of the untouched transformers model, on the same tokens.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import LAYERS, Tiny, new_model
from torch import Tensor

from residcheck.errors import UnsupportedModelError
from residcheck.logits import logit_distance
from residcheck.models import BUILTIN, LoadedModel, ModelSpec, load
from residcheck.seeds import random_rotation
from residcheck.tolerances import tolerance
from residcheck.weights.canonical_model import CanonicalModel, Normalise, canonicalise
from residcheck.weights.rotate import rotate, rotation_shift

FLOAT32, FLOAT64 = tolerance("float32"), tolerance("float64")
FAMILIES = (
    "gpt2", "gpt_neo", "gptj", "codegen", "neox", "neox_sequential", "opt", "bloom", "falcon",
    "falcon_new", "mpt", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3",
    "phi", "phi3", "stablelm", "stablelm_parallel", "olmo", "olmo2", "granite", "cohere",
    "glm4", "starcoder2", "nemotron", "apertus",
)  # fmt: skip


def tokens() -> Tensor:
    return torch.randint(3, 500, (2, 12), generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def logits(model: Any) -> Tensor:
    found: Tensor = model(input_ids=tokens()).logits
    return found


def turned(model: Any, seed: int = 0) -> CanonicalModel:
    made = canonicalise(model)
    rotate(made, random_rotation(made.tables[0].embedding_dim, seed))
    return made


def loaded(tiny: Tiny, family: str, **overrides: Any) -> LoadedModel:
    return load(ModelSpec(str(tiny(family, **overrides)), backend="transformers"))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("family", FAMILIES)
def test_canonical_and_rotated_models_give_the_original_logits(family: str, dtype: str) -> None:
    model = new_model(family).to(getattr(torch, dtype))
    expected, bound = logits(model), tolerance(dtype).logits
    assert logit_distance(logits(canonicalise(model).model), expected) <= bound
    assert logit_distance(logits(turned(model).model), expected) <= bound


@pytest.mark.parametrize("family", ["gpt2", "gemma3", "phi"])
def test_the_model_itself_is_left_as_it_was(family: str) -> None:
    model = new_model(family)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    made = turned(model)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(x, after[name]) for name, x in before.items())
    untied = made.model.get_output_embeddings().weight
    assert untied is not made.model.get_input_embeddings().weight


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "olmo2", "bloom", "neox"])
def test_no_norm_with_a_gain_is_left_on_the_stream(family: str) -> None:
    made = canonicalise(new_model(family)).model
    left = [
        path
        for path, module in made.named_modules()
        if "norm" in type(module).__name__.lower() and list(module.parameters(recurse=False))
    ]
    assert all(path.endswith(("q_norm", "k_norm")) for path in left)  # on heads, not the stream
    assert any(isinstance(module, Normalise) for module in made.modules())


@pytest.mark.parametrize("family", ["gpt2", "neox", "opt", "cohere"])
def test_a_canonical_layer_norm_model_has_a_stream_of_mean_zero(family: str) -> None:
    made = canonicalise(new_model(family).double())
    for table in made.tables:
        assert float(table.weight.detach().mean(dim=-1).abs().max()) <= FLOAT64.identity
    with torch.inference_mode():
        states = made.model(input_ids=tokens(), output_hidden_states=True).hidden_states
    for x in states[:LAYERS]:  # the last one has passed the final norm
        assert float((x.mean(dim=-1) / x.std(dim=-1)).abs().max()) <= FLOAT64.identity


FORGOTTEN = ("readers", "writers", "tables", "maps")


@pytest.mark.parametrize("forgotten", FORGOTTEN)
@pytest.mark.parametrize("family", ["gemma3", "bloom"])
def test_one_matrix_left_unrotated_is_caught(family: str, forgotten: str) -> None:
    model = new_model(family)
    made = canonicalise(model)
    getattr(made, forgotten).pop(0)
    rotate(made, random_rotation(48, 0))
    # A thousand times the tolerance: no rounding.
    assert logit_distance(logits(made.model), logits(model)) > 1000 * FLOAT32.logits


def test_a_rotation_is_orthogonal_and_the_same_for_the_same_seed() -> None:
    one, again, other = (random_rotation(48, seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)
    identity = torch.eye(48, dtype=torch.float64)
    assert float((one.T @ one - identity).abs().max()) <= FLOAT64.identity


@pytest.mark.parametrize("family", ["gpt2", "gemma3", "llama", "neox"])
def test_the_shift_of_a_model_is_rounding(family: str, tiny: Tiny) -> None:
    assert rotation_shift(loaded(tiny, family), tokens(), 4) <= FLOAT32.logits


def test_a_stream_with_a_basis_of_its_own_shifts(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something that acts on single components of the stream cannot be rotated away."""

    class Clipped(Normalise):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.clamp(-1, 1))

    model = loaded(tiny, "llama")
    made = canonicalise(model.model)
    for path, module in list(made.model.named_modules()):
        if isinstance(module, Normalise):
            made.model.set_submodule(path, Clipped(module.eps))
    before = logits(made.model)
    rotate(made, random_rotation(48, 0))
    assert logit_distance(logits(made.model), before) > 1000 * FLOAT32.logits


@pytest.mark.parametrize(
    ("family", "overrides", "reason"),
    [
        ("mixtral", {}, "mixture of experts"),
        ("gpt_oss", {}, "mixture of experts"),
        ("opt", {"word_embed_proj_dim": 24}, "embed_tokens"),  # projected to the stream
    ],
)
def test_models_without_a_canonical_form_are_named(
    family: str, overrides: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        canonicalise(new_model(family, **overrides))


def test_a_norm_on_the_stream_itself_is_found_out(tiny: Tiny) -> None:
    """GPT-1 normalises the stream after each sublayer; its names are those of GPT-2."""
    with pytest.raises(UnsupportedModelError, match=r"canonical form of .* is not the model"):
        rotation_shift(loaded(tiny, "openai_gpt"), tokens(), 4)


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("name", BUILTIN)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_built_in_models_can_be_rotated(name: str, dtype: str) -> None:
    model = load(ModelSpec(name, backend="transformers", dtype=dtype))
    assert rotation_shift(model, tokens(), 4) <= tolerance(dtype).logits
