"""The random numbers of the experiments: one named seed each, the same on every device."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

DRAWS = 256
"""Draws of every experiment: means of rates and norms are then known to a few per cent."""
SEEDS = {
    "gaussian": 1,
    "resampled": 2,
    "shuffled": 3,
    "rotation": 4,
    "attention": 5,
    "fingerprint": 6,
}


def generator(name: str) -> torch.Generator:
    """A CPU generator; draw on it and move, since devices draw differently."""
    return torch.Generator().manual_seed(SEEDS[name])


def random_rotation(
    d_model: int, seed: int = SEEDS["rotation"]
) -> Float[Tensor, "d_model d_model"]:
    """A random orthogonal matrix, float64, uniform over all: QR of a Gaussian one with the
    signs of R's diagonal moved into Q. The same for the same seed on every machine."""
    numbers = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(d_model, d_model, generator=numbers, dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    rotation: Tensor = q * r.diagonal().sign()
    return rotation
