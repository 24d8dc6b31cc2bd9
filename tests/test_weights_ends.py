"""Embedding, final norm and unembedding, multiplied out against what the model computes."""

from __future__ import annotations

import pytest
import torch
from tiny import LAYERS, Tiny
from torch import Tensor

from residcheck.backends import Backend, Site, open_backend
from residcheck.logits import logit_distance
from residcheck.models import ModelSpec, load
from residcheck.tolerances import tolerance

FLOAT32 = tolerance("float32")
WAYS = {
    "transformers": {"backend": "transformers"},
    "raw": {"processing": "raw"},
    "processed": {"processing": "processed"},
}
# Without Gemma 2, whose logits are capped after the unembedding.
FAMILIES = (
    "gpt2", "gpt_neo", "gptj", "neox", "opt", "falcon", "mpt", "llama", "qwen2", "gemma",
    "gemma3", "phi", "phi3", "stablelm", "granite", "cohere", "glm4", "starcoder2", "nemotron",
)  # fmt: skip
ways = pytest.mark.parametrize("way", WAYS)


def opened(tiny: Tiny, family: str, way: str) -> Backend:
    return open_backend(load(ModelSpec(str(tiny(family))).with_options(**WAYS[way])))


def seen(backend: Backend, tokens: Tensor, layer: int, site: Site) -> tuple[Tensor, Tensor]:
    held: list[Tensor] = []
    taps = {(layer, site): lambda x: held.append(x.double())}
    found = backend.forward(tokens, torch.ones_like(tokens), taps, logits=True)
    assert found is not None
    return held[0], found.double()


def centred(x: Tensor, backend: Backend) -> Tensor:
    """Libraries may take out the mean that LayerNorms take out anyway."""
    return x - x.mean(-1, keepdim=True) if backend.anatomy.norm == "LayerNorm" else x


@ways
@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_are_what_tokens_put_into_the_stream(family: str, way: str, tiny: Tiny) -> None:
    backend = opened(tiny, family, way)
    tokens = torch.tensor([[7], [300], [41]])  # all at position 0: its embedding drops out
    stream = centred(seen(backend, tokens, 0, "resid_pre")[0][:, 0], backend)
    embedded = centred(backend.embedding().double()[tokens[:, 0]], backend)
    expected = stream - stream[0]
    error = (embedded - embedded[0] - expected).norm() / expected.norm()
    assert float(error) <= FLOAT32.product


@ways
@pytest.mark.parametrize("family", FAMILIES)
def test_final_norm_and_unembedding_give_the_logits(family: str, way: str, tiny: Tiny) -> None:
    backend = opened(tiny, family, way)
    tokens = torch.randint(3, 500, (2, 8), generator=torch.Generator().manual_seed(0))
    x, logits = seen(backend, tokens, LAYERS - 1, "resid_post")
    norm, (W_U, b_U) = backend.final_norm(), backend.unembedding()
    assert norm is not None
    x = centred(x, backend)
    x = x / (x.square().mean(-1, keepdim=True) + backend.anatomy.norm_eps).sqrt()
    made = (x * norm.gain + norm.bias) @ W_U.double() + (0 if b_U is None else b_U)
    # Granite and Cohere scale the logits behind the unembedding, by one number.
    scale = (centre(made) * centre(logits)).sum() / centre(made).square().sum()
    if family not in ("granite", "cohere"):
        assert float((scale - 1).abs()) <= FLOAT32.product
    assert logit_distance(scale * made, logits) <= FLOAT32.logits


def centre(logits: Tensor) -> Tensor:
    return logits - logits.mean(-1, keepdim=True)
