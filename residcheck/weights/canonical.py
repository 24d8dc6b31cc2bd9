"""One form of the weights for every library and every way of storing the same model.

A norm's gain and bias can be moved into the weights that read it, means can be taken out
of what is written or read where a LayerNorm takes them out anyway, and value biases, which
every pattern that sums to one passes on unchanged, into the output bias. None of this
changes what the model computes, all of it changes norms of matrices. Here all of it is
done, so that statistics of weights speak of the model and not of its storage.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from residcheck.backends import (
    Affine,
    AttentionWeights,
    Backend,
    LayerWeights,
    MLPWeights,
    Site,
)

Norm = Affine | None


def canonical(backend: Backend, layer: int) -> LayerWeights:
    """The block's weights in canonical form, on the model's device; float64 stays float64,
    everything else becomes float32.

    * W_Q, W_K, W_V, W_in, W_gate and their biases read the normalised stream: gain and bias
      of the norm are folded in, and where the norm is a LayerNorm, which gives them vectors of
      mean zero, their own mean over d_model is taken out.
    * W_O, W_out, b_O, b_out are what is added to the stream: times the residual multiplier,
      and where the model has LayerNorm, without their mean over d_model.
    * b_V is in b_O, unless attention has sinks, whose patterns do not sum to one. A bias of
      zeros is None.

    Behind a post-norm (Gemma 2 and 3, OLMo 2, GLM 4) W_O, b_O, W_out and b_out stay as they
    are: :meth:`Backend.post_norm` normalises what they make, so that their scale, and with it
    that of W_V @ W_O, is divided away again and means nothing from layer to layer; the size
    of what is added is that of the post-norm's gain. The gain acts after the division by the
    norm and cannot be moved before it; statistics of what is written have it in
    (:func:`as_written`).

    Canonical weights are canonical: from weights that a library has folded and centred, the
    same come out as from the raw ones.
    """
    anatomy = backend.anatomy
    folded = fold(
        backend.weights(layer),
        _norm(backend, layer, anatomy.attention_reads),
        _norm(backend, layer, anatomy.mlp_reads),
        centre=anatomy.centring,
        values=not anatomy.sinks,
    )
    attention, mlp = folded.attention, folded.mlp
    if attention is not None and backend.post_norm(layer, "attn_out") is None:
        W, b = _added(attention.W_O, attention.b_O, anatomy.residual_scale)
        attention = replace(attention, W_O=W, b_O=b)
    if mlp is not None and backend.post_norm(layer, "mlp_out") is None:
        W, b = _added(mlp.W_out, mlp.b_out, anatomy.residual_scale)
        mlp = replace(mlp, W_out=W, b_out=b)
    return LayerWeights(attention, mlp)


def as_written(backend: Backend, layer: int, weights: LayerWeights) -> LayerWeights:
    """Canonical weights with W_O and W_out as they reach the stream: through the gain of the
    norm after them, where there is one.

    That norm divides by one number per token, as the norm before the sublayer does; the
    directions and relative sizes of what is written are those of ``W_O * gain``.
    """
    attention, mlp = weights.attention, weights.mlp
    after_attention = backend.post_norm(layer, "attn_out")
    after_mlp = backend.post_norm(layer, "mlp_out")
    if attention is not None and after_attention is not None:
        gain = after_attention.gain.to(attention.W_O)
        attention = replace(attention, W_O=attention.W_O * gain)
    if mlp is not None and after_mlp is not None:
        mlp = replace(mlp, W_out=mlp.W_out * after_mlp.gain.to(mlp.W_out))
    return LayerWeights(attention, mlp)


def fold(
    weights: LayerWeights, ln1: Norm, ln2: Norm, *, centre: bool, values: bool = True
) -> LayerWeights:
    """Fold the norms' gains and biases and the value biases into the weights around them.

    Args:
        ln1: gain and bias still applied to what attention reads; None without a norm.
        ln2: the same for the MLP.
        centre: the norms are LayerNorms: take means over d_model out of weights and biases.
        values: fold value biases into the output bias.
    """
    attention, mlp = weights.attention, weights.mlp
    return LayerWeights(
        None if attention is None else _fold_attention(attention, ln1, centre, values),
        None if mlp is None else _fold_mlp(mlp, ln2, centre),
    )


def _fold_attention(
    weights: AttentionWeights, norm: Norm, centre: bool, values: bool
) -> AttentionWeights:
    W_Q, b_Q = _reading(weights.W_Q, weights.b_Q, norm, centre)
    W_K, b_K = _reading(weights.W_K, weights.b_K, norm, centre)
    W_V, b_V = _reading(weights.W_V, weights.b_V, norm, centre)
    W_O, b_O = _precise(weights.W_O), _bias(weights.b_O)
    if values and b_V is not None:
        per_query = b_V.repeat_interleave(weights.queries_per_value, dim=0)
        moved = torch.einsum("hd,hdm->m", per_query, W_O)
        b_O, b_V = moved if b_O is None else b_O + moved, None
    if centre:
        W_O, b_O = _centred(W_O), None if b_O is None else _centred(b_O)
    return AttentionWeights(W_Q, W_K, W_V, W_O, b_Q, b_K, b_V, b_O)


def _fold_mlp(weights: MLPWeights, norm: Norm, centre: bool) -> MLPWeights:
    W_in, b_in = _reading(weights.W_in, weights.b_in, norm, centre)
    W_gate, b_gate = None, None
    if weights.W_gate is not None:
        W_gate, b_gate = _reading(weights.W_gate, weights.b_gate, norm, centre)
    W_out, b_out = _precise(weights.W_out), _bias(weights.b_out)
    if centre:
        W_out, b_out = _centred(W_out), None if b_out is None else _centred(b_out)
    return MLPWeights(W_in, W_out, W_gate, b_in, b_gate, b_out)


def _reading(
    W: Float[Tensor, "*head d_model d_out"],
    b: Float[Tensor, "*head d_out"] | None,
    norm: Norm,
    centre: bool,
) -> tuple[Float[Tensor, "*head d_model d_out"], Float[Tensor, "*head d_out"] | None]:
    """Weights and bias that read the normalised stream instead of ``x * gain + bias``."""
    W, b = _precise(W), _bias(b)
    if norm is not None:
        moved = norm.bias.to(W) @ W
        W = norm.gain.to(W)[:, None] * W
        b = _bias(moved if b is None else b + moved)
    if centre:
        W = W - W.mean(dim=-2, keepdim=True)
    return W, b


def _added(
    W: Float[Tensor, "*more d_model"], b: Float[Tensor, " d_model"] | None, scale: float
) -> tuple[Float[Tensor, "*more d_model"], Float[Tensor, " d_model"] | None]:
    if scale == 1.0:
        return W, b
    return W * scale, None if b is None else b * scale


def _norm(backend: Backend, layer: int, site: Site) -> Norm:
    return backend.affine(layer, site) if site in ("ln1_out", "ln2_out") else None


def _centred(x: Float[Tensor, "*more d_model"]) -> Float[Tensor, "*more d_model"]:
    return x - x.mean(dim=-1, keepdim=True)


def _precise(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _bias(b: Float[Tensor, "*more d"] | None) -> Float[Tensor, "*more d"] | None:
    """In float32 at least; None where it is all zeros, as libraries store none at all."""
    return None if b is None or not bool(b.any()) else _precise(b)
