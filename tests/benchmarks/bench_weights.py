"""What statistics of weights cost: OV norms by Gram matrices against TransformerLens.

``FactoredMatrix.norm()`` runs a singular value decomposition of every head's factors. Both
are timed on the same weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from paired import paired
from torch import Tensor
from transformer_lens import FactoredMatrix

from residcheck.backends import AttentionWeights, open_backend
from residcheck.models import load, parse_spec
from residcheck.tolerances import tolerance
from residcheck.weights.canonical import canonical
from residcheck.weights.norms import ov_frobenius

ROUNDS = 2
FLOAT32 = tolerance("float32")


def _smollm2() -> list[AttentionWeights]:
    backend = open_backend(load(parse_spec("smollm2-135m,backend=transformers")))
    blocks = (canonical(backend, n).attention for n in range(backend.anatomy.n_layers))
    return [attention for attention in blocks if attention is not None]


def _gpt2_xl_shape() -> list[AttentionWeights]:
    """48 layers, random: 25 heads of 64, d_model 1600; W_Q and W_K do not matter here."""

    def draw() -> AttentionWeights:
        values = torch.randn(25, 1600, 64)
        return AttentionWeights(values, values, values, torch.randn(25, 64, 1600))

    return [draw() for _ in range(48)]


@pytest.mark.parametrize("weights", [_smollm2, _gpt2_xl_shape], ids=["smollm2", "gpt2_xl_shape"])
@torch.inference_mode()
def bench_ov_norms_over_factored_matrix(
    benchmark: Any, weights: Callable[[], list[AttentionWeights]]
) -> None:
    layers = weights()

    def ours() -> list[Tensor]:
        return [ov_frobenius(attention) for attention in layers]

    def theirs() -> list[Tensor]:
        return [
            FactoredMatrix(a.W_V.repeat_interleave(a.queries_per_value, dim=0), a.W_O).norm()
            for a in layers
        ]

    for ov, norm in zip(ours(), theirs(), strict=True):
        torch.testing.assert_close(ov.float(), norm.float(), rtol=FLOAT32.token, atol=0)
    shape = weights.__name__.strip("_").replace("_", " ")
    facts = {"what": f"OV norms, {len(layers)} layers ({shape})", "over": "FactoredMatrix.norm()"}
    paired(benchmark, ours, theirs, ROUNDS, target=0.01, **facts)
