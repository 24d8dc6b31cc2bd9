"""The random numbers of the experiments: one named seed each, the same on every device."""

from __future__ import annotations

import torch

SEEDS = {"gaussian": 1, "resampled": 2, "shuffled": 3, "rotation": 4}


def generator(name: str) -> torch.Generator:
    """A CPU generator; draw on it and move, since devices draw differently."""
    return torch.Generator().manual_seed(SEEDS[name])
