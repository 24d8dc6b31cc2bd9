"""Weight matrices on Gaussian inputs, and what theory says of them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from residcheck.backends.layer_weights import AttentionWeights, LayerWeights
from residcheck.seeds import generator
from residcheck.tolerances import tolerance


def normalized(
    x: Float[Tensor, "*batch d"], *, centre: bool, eps: float = 0.0
) -> Float[Tensor, "*batch d"]:
    """Scaled to mean square 1, after the mean is subtracted where ``centre``."""
    if centre:
        x = x - x.mean(dim=-1, keepdim=True)
    return x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt()


def attention_on_gaussian(
    attention: AttentionWeights, x: Float[Tensor, "draw d"]
) -> Float[Tensor, "draw d"]:
    """``sum_h x W_OV[h]``, biases left out: what all heads write of one vector each reads."""
    values = torch.einsum("nd,hde->nhe", x, attention.W_V)
    values = values.repeat_interleave(attention.queries_per_value, dim=1)
    return torch.einsum("nhe,hed->nd", values, attention.W_O)


def squared_ratios(
    W: Float[Tensor, "reading writing"], draws: int
) -> tuple[Float[Tensor, " draw"], Float[Tensor, " draw"]]:
    """``|xW|^2`` over its expectation, for Gaussian and for normalised x.

    For isotropic x of unit variance ``E|xW|^2 = |W|_F^2``, since ``E[x^T x]`` is the
    identity. Normalised to mean 0 and variance 1, x is uniform on the sphere of radius
    sqrt(d) in the hyperplane across u = (1, ..., 1) / sqrt(d), so ``E[x^T x]`` is
    ``d / (d-1) (I - u^T u)`` and the expectation ``d / (d-1) (|W|_F^2 - |uW|^2)``. Of a
    matrix that reads the mean alone that is zero but for rounding, and the ratio NaN.
    """
    d = len(W)
    x = torch.randn(draws, d, generator=generator("gaussian")).to(W)
    y, columns = x @ W, W.sum(dim=0)
    spread, mean = torch.std_mean(x, dim=-1, correction=0, keepdim=True)
    squared = _square(W)
    centred = d / (d - 1) * (squared - _square(columns) / d)
    rounding = tolerance(str(W.dtype).removeprefix("torch.")).product * squared
    centred = torch.where(centred > rounding, centred, torch.nan)
    # Normalising x is affine, so its product follows from that of x.
    return _square(y, -1) / squared, _square((y - mean * columns) / spread, -1) / centred


def _square(x: Tensor, dim: int | None = None) -> Tensor:
    """Sum of squares in float64."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=dim, dtype=torch.float64)
    return norm.square()


def matrix(weights: LayerWeights, name: str) -> Float[Tensor, "reading writing"] | None:
    """A matrix that rows multiply from the left; the heads' side by side, or stacked in W_O."""
    part = weights.mlp if name in ("W_in", "W_gate", "W_out") else weights.attention
    W: Tensor | None = getattr(part, name, None)
    if W is None or W.ndim == 2:
        return W
    return W.flatten(0, 1) if name == "W_O" else W.transpose(0, 1).flatten(1)
