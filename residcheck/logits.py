"""How far two sets of logits are apart, as one number."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def logit_distance(a: Float[Tensor, "*shape vocab"], b: Float[Tensor, "*shape vocab"]) -> float:
    """Root-mean-square difference of log-probabilities over the spread of ``b``'s.

    Log-probabilities, since folding and centring may shift all logits of a position.
    """
    a, b = torch.log_softmax(a.double(), -1), torch.log_softmax(b.double(), -1)
    return float((a - b).square().mean().sqrt() / b.std(dim=-1).mean())
