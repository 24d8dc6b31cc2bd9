"""AdamW with what it decays, and the learning rate of each step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from residcheck.train.arms import Decay
from residcheck.train.scales import Scale

DECAY = 0.1
BETAS = (0.9, 0.95)
CLIP = 1.0
_LOWEST = 0.1  # of the highest learning rate, at the end


def learning_rate(step: int, scale: Scale) -> float:
    """Linear warm-up, then a cosine to a tenth of the highest at the last step."""
    if step < scale.warm_up:
        return scale.learning_rate * (step + 1) / scale.warm_up
    done = (step - scale.warm_up) / max(1, scale.steps - 1 - scale.warm_up)
    share = (1 + math.cos(math.pi * min(1.0, done))) / 2
    return scale.learning_rate * (_LOWEST + (1 - _LOWEST) * share)


def adamw(model: nn.Module, decay: Decay) -> torch.optim.AdamW:
    """The fused optimiser; ``decay`` says what weight decay of 0.1 acts on.

    Matrices are all parameters of two dimensions, embeddings among them; the scalars of
    learned residual factors, which have none, are never decayed.
    """
    decayed, kept = list[nn.Parameter](), list[nn.Parameter]()
    for parameter in model.parameters():
        least = {"matrices": 2, "all": 1, "none": 3}[decay]
        (decayed if parameter.ndim >= least else kept).append(parameter)
    groups = [
        {"params": parameters, "weight_decay": amount}
        for parameters, amount in ((decayed, DECAY), (kept, 0.0))
        if parameters
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=BETAS, fused=True)


def update(
    optimiser: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], rate: float
) -> None:
    """One step at a learning rate, with gradients clipped to norm 1 and then dropped."""
    torch.nn.utils.clip_grad_norm_(parameters, CLIP, foreach=True)
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
