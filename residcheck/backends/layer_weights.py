"""The weight matrices of one block, in one layout whatever the library's.

Vectors are rows: ``y = x @ W + b``, TransformerLens' convention. Key and value heads of
grouped-query attention are kept as they are; query head h reads key and value head
``h // (n_heads // n_kv_heads)``.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class AttentionWeights:
    """What an attention sublayer reads and writes with; a bias is None where there is none."""

    W_Q: Float[Tensor, "head d_model d_head"]
    W_K: Float[Tensor, "kv_head d_model d_head"]
    W_V: Float[Tensor, "kv_head d_model d_head"]
    W_O: Float[Tensor, "head d_head d_model"]
    b_Q: Float[Tensor, "head d_head"] | None = None
    b_K: Float[Tensor, "kv_head d_head"] | None = None
    b_V: Float[Tensor, "kv_head d_head"] | None = None
    b_O: Float[Tensor, " d_model"] | None = None

    @property
    def queries_per_value(self) -> int:
        """How many query heads share one key and value head."""
        return self.W_O.shape[0] // self.W_V.shape[0]


@dataclass(frozen=True)
class MLPWeights:
    """What an MLP reads and writes with.

    ``W_gate`` is there in gated MLPs: ``(act(x W_gate + b_gate) * (x W_in + b_in)) W_out``.
    """

    W_in: Float[Tensor, "d_model d_mlp"]
    W_out: Float[Tensor, "d_mlp d_model"]
    W_gate: Float[Tensor, "d_model d_mlp"] | None = None
    b_in: Float[Tensor, " d_mlp"] | None = None
    b_gate: Float[Tensor, " d_mlp"] | None = None
    b_out: Float[Tensor, " d_model"] | None = None


@dataclass(frozen=True)
class LayerWeights:
    """One block; a part is None where ``Anatomy.missing_weights`` says why."""

    attention: AttentionWeights | None
    mlp: MLPWeights | None
