"""Norms of products of weight matrices, without the products.

``|A B|_F^2 = tr((A^T A)(B B^T))``: two Gram matrices of the side that A and B share. For a
head's W_V W_O that side is ``d_head``, so no ``d_model x d_model`` matrix is ever made.
Sums of squares cancel nothing, so float32 products are accurate; their sum is float64.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from residcheck.backends.layer_weights import AttentionWeights, MLPWeights


def product_frobenius(
    a: Float[Tensor, "*batch m k"], b: Float[Tensor, "*batch k n"]
) -> Float[Tensor, "*batch"]:
    """Frobenius norm of ``a @ b`` by Gram matrices of the side k that they share."""
    grams = (a.mT @ a).double() * (b @ b.mT).double()
    return grams.sum(dim=(-2, -1)).clamp_min(0).sqrt()


def frobenius(matrix: Float[Tensor, "..."]) -> float:
    """Frobenius norm of all entries, summed in float64."""
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64))


def ov_frobenius(attention: AttentionWeights) -> Float[Tensor, " head"]:
    """Frobenius norm of every query head's W_OV = W_V W_O, in float64."""
    wide = torch.promote_types(attention.W_V.dtype, torch.float32)
    W_V, W_O = attention.W_V.to(wide), attention.W_O.to(wide)
    readers = W_V.mT @ W_V  # one per value head
    readers = readers.repeat_interleave(attention.queries_per_value, dim=0)
    writers = W_O @ W_O.mT
    return (readers.double() * writers.double()).sum(dim=(-2, -1)).clamp_min(0).sqrt()


def ov_eigenvalue_sign(attention: AttentionWeights) -> Float[Tensor, " head"]:
    """Sum of the eigenvalues of each W_OV over the sum of their absolute values.

    1 for a head that copies what it reads, -1 for one that writes its negative (Elhage et
    al. 2021, "A Mathematical Framework for Transformer Circuits", on copying heads). The
    eigenvalues of W_V W_O that are not zero are those of the small W_O W_V. 0 for a head
    without any.
    """
    values = attention.W_V.repeat_interleave(attention.queries_per_value, dim=0)
    small = (attention.W_O.double() @ values.double()).cpu()
    found = torch.linalg.eigvals(small)
    sign: Tensor = found.real.sum(-1) / found.abs().sum(-1).clamp_min(
        torch.finfo(torch.float64).tiny
    )
    return sign


def neuron_cosine(mlp: MLPWeights) -> Float[Tensor, " d_mlp"]:
    """Cosine of what each neuron reads with what it writes; of the gate in a gated MLP.

    Near -1 a neuron writes the negative of what it reads: it may clear it from the stream.
    """
    reading = mlp.W_in if mlp.W_gate is None else mlp.W_gate
    cosine: Tensor = torch.cosine_similarity(reading.mT, mlp.W_out, dim=-1)
    return cosine


def w_in_w_out_frobenius(mlp: MLPWeights) -> float:
    """Frobenius norm of W_in W_out: of the product itself where d_model is its small side,
    by Gram matrices where d_mlp is."""
    d_model, d_mlp = mlp.W_in.shape
    if d_mlp <= d_model:
        return float(product_frobenius(mlp.W_in, mlp.W_out))
    return frobenius(mlp.W_in @ mlp.W_out)
