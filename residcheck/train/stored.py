"""Where a trained model stores the size of what it writes: norms of its weights, by layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from residcheck.stats.fits import Floats
from residcheck.train.arms import Changes
from residcheck.train.export import residual_factors
from residcheck.train.growth import Growth
from residcheck.train.measured import Measured
from residcheck.weights.norms import frobenius, product_frobenius


def measured_of(grown: Growth, model: Any) -> Measured:
    """What is kept of a trained model, from its growth on the held-out windows."""
    norms = {
        "resid_pre_norm": grown.pre,
        "resid_post_norm": grown.post,
        "attn_out_norm": grown.attn,
        "mlp_out_norm": grown.mlp,
    }
    factors = np.array(residual_factors(model))
    return Measured(
        grown.losses,
        {name: np.log(norm).mean(axis=1) for name, norm in norms.items()},
        weights_of(model),
        factors[1:] / factors[:-1],
    )


@torch.no_grad()
def weights_of(model: Any) -> dict[str, Floats]:
    """Each of :data:`residcheck.train.measured.WEIGHTS` in float64, ``[layer]``."""
    changes, before = Changes(**model.config.changes), None
    layers = []
    for block in model.transformer.h:
        ln1, ln2 = _gain(block.ln_1), _gain(block.ln_2)
        # A post-norm attention reads what the block before handed on: the first, embeddings.
        reads = (before, ln1) if changes.post_norm else (ln1, ln2)
        layers.append(_of_block(block, ln1, ln2, *reads, centre=changes.norm == "LayerNorm"))
        before = ln2
    return {name: np.array([layer[name] for layer in layers]) for name in layers[0]}


def _of_block(
    block: Any,
    ln1: Tensor,
    ln2: Tensor,
    attn_gain: Tensor | None,
    mlp_gain: Tensor,
    *,
    centre: bool,
) -> dict[str, float]:
    heads = block.attn.num_heads
    W_V = block.attn.c_attn.weight.double().chunk(3, dim=1)[2]
    W_O = block.attn.c_proj.weight.double()
    W_O = W_O.view(heads, -1, W_O.shape[1])
    W_in = block.mlp.c_fc.weight.double()

    def ov(values: Float[Tensor, "d_model d_model"]) -> float:
        per_head = values.reshape(len(values), heads, -1).movedim(1, 0)
        return _rms(product_frobenius(per_head, W_O))

    return {
        "ln1_gain_rms": _rms(ln1),
        "ln2_gain_rms": _rms(ln2),
        "W_OV_frobenius": ov(W_V),
        "W_in_frobenius": frobenius(W_in),
        "W_out_frobenius": frobenius(block.mlp.c_proj.weight),
        "W_OV_folded": ov(_folded(W_V, attn_gain, centre)),
        "W_in_folded": frobenius(_folded(W_in, mlp_gain, centre)),
    }


def _gain(norm: Any) -> Float[Tensor, " d_model"]:
    gain: Tensor = norm.weight.double() * getattr(norm, "factor", 1.0)
    return gain


def _folded(
    weight: Float[Tensor, "d_model d_out"], gain: Float[Tensor, " d_model"] | None, centre: bool
) -> Float[Tensor, "d_model d_out"]:
    """What reads the vector that a norm has divided; as it is where it reads no norm."""
    if gain is None:
        return weight
    weight = gain[:, None] * weight
    return weight - weight.mean(dim=0) if centre else weight


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())
