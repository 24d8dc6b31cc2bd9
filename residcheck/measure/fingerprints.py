"""A few projections of single vectors, which no norm and no average hides a change of.

Norms do not see a rotation, and rounding of single logits averages out of the loss. So the
stream after every block, and the log-probabilities, are projected on fixed random vectors
at the last token of each row of the gate's text.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from residcheck.backends import Backend, Taps
from residcheck.curves import Curve
from residcheck.seeds import generator

_DIRECTIONS = 4


def fingerprints(backend: Backend, tokens: Int[Tensor, "batch pos"]) -> dict[str, Curve]:
    """``resid_post_fingerprint`` per token, direction and layer, ``logit_fingerprint`` per
    token and direction.

    Vectors are centred where nothing reads their mean (streams before a LayerNorm; logits,
    always), and brought to norm 1; the directions are of standard normal numbers.
    """
    seen: list[Float[Tensor, "batch direction"]] = []

    def see(x: Float[Tensor, "batch pos d"]) -> None:
        seen.append(_projected(backend.anatomy.centred(x[:, -1].double())).cpu())

    taps: Taps = {(n, "resid_post"): see for n in range(backend.anatomy.n_layers)}
    logits = backend.forward(tokens, torch.ones_like(tokens), taps, logits=True)
    assert logits is not None
    last = logits[:, -1].double()
    ends = _projected(last - last.mean(dim=-1, keepdim=True))
    return {
        "resid_post_fingerprint": _curve("resid_post_fingerprint", seen),
        "logit_fingerprint": Curve(
            "logit_fingerprint", ("token", "direction"), ends.cpu().numpy(), "relative projection"
        ),
    }


def _projected(x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch direction"]:
    source = generator("fingerprint")
    directions = torch.randn(_DIRECTIONS, x.shape[-1], generator=source).to(x)
    found: Tensor = x @ directions.T / x.norm(dim=-1, keepdim=True)
    return found


def _curve(name: str, layers: list[Float[Tensor, "batch direction"]]) -> Curve:
    values: np.ndarray = torch.stack(layers, dim=-1).numpy()
    return Curve(name, ("token", "direction", "layer"), values, "relative projection")
