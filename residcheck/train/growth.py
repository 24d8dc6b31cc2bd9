"""The growth of a stream while its model trains, measured on the true stream of its blocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from residcheck.stats import Estimate, Phase
from residcheck.stats.fits import Floats
from residcheck.stats.rules import growth_rate

_WINDOWS = 8  # at a time


@dataclass(frozen=True)
class Growth:
    """``pre`` and ``post`` are norms ``[window, position, layer]`` without position 0."""

    loss: float
    pre: Floats
    post: Floats

    def rate(self, phase: Phase) -> Estimate:
        """Factor per layer over ``phase``, with an interval over windows."""
        return growth_rate(np.log(self.post).mean(axis=1), phase)


@torch.no_grad()
def measure(model: Any, windows: Int[Tensor, "window tokens"], *, centred: bool) -> Growth:
    """Loss in nats and norms of a model on held-out windows, in the model's own dtype."""
    losses, before, after = [], [], []
    for some in torch.split(windows, _WINDOWS):
        with _noting(model, centred) as (pre, post):
            logits = model(some[:, :-1], use_cache=False).logits
        losses.append(F.cross_entropy(logits.flatten(0, 1), some[:, 1:].flatten(), reduction="sum"))
        before.append(torch.stack(pre, dim=-1))
        after.append(torch.stack(post, dim=-1))
    count = windows[:, 1:].numel()
    norms = (torch.cat(x).double().cpu().numpy() for x in (before, after))
    return Growth(float(torch.stack(losses).double().sum()) / count, *norms)


@contextmanager
def _noting(model: Any, centred: bool) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Within, the norms that go into each block and come out of it."""
    pre: list[Tensor] = []
    post: list[Tensor] = []

    def norm(stream: Tensor) -> Tensor:
        stream = stream[:, 1:].detach()
        stream = stream - stream.mean(dim=-1, keepdim=True) if centred else stream
        result: Tensor = torch.linalg.vector_norm(stream, dim=-1)
        return result

    def note_input(module: Any, args: Any) -> None:
        pre.append(norm(args[0]))

    def note_output(module: Any, args: Any, output: Any) -> None:
        post.append(norm(output))

    blocks = model.transformer.h
    hooks = [block.register_forward_pre_hook(note_input) for block in blocks]
    hooks += [block.register_forward_hook(note_output) for block in blocks]
    try:
        yield pre, post
    finally:
        for hook in hooks:
            hook.remove()
