"""The growth of a stream while its model trains, measured on the true stream of its blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    """Losses in nats ``[window]``, and norms ``[window, position, layer]`` without position 0.

    Args:
        pre: of what each block receives.
        post: of what it passes on.
        attn: of what its attention writes to the stream; in a post-norm block, before the norm.
        mlp: the same of its MLP.
    """

    losses: Floats
    pre: Floats
    post: Floats
    attn: Floats
    mlp: Floats

    @property
    def loss(self) -> float:
        return float(self.losses.mean())

    def rate(self, phase: Phase) -> Estimate:
        """Factor per layer over ``phase``, with an interval over windows."""
        return growth_rate(np.log(self.post).mean(axis=1), phase)


@torch.no_grad()
def measure(model: Any, windows: Int[Tensor, "window tokens"], *, centred: bool) -> Growth:
    """Loss in nats and norms of a model on held-out windows, in the model's own dtype."""
    parts: list[tuple[Tensor, ...]] = []
    for some in torch.split(windows, _WINDOWS):
        with _noting(model, centred) as noted:
            logits = model(some[:, :-1], use_cache=False).logits
        losses = F.cross_entropy(logits.mT, some[:, 1:], reduction="none").double().mean(dim=1)
        parts.append((losses, *(torch.stack(norms, dim=-1) for norms in noted)))
    return Growth(*(torch.cat(x).double().cpu().numpy() for x in zip(*parts, strict=True)))


@contextmanager
def _noting(model: Any, centred: bool) -> Iterator[tuple[list[Tensor], ...]]:
    """Within, norms per block: what goes in, what comes out, what attention and MLP write."""
    noted: tuple[list[Tensor], ...] = ([], [], [], [])
    pre, post, attn, mlp = noted

    def norm(stream: Tensor) -> Tensor:
        stream = stream[:, 1:].detach()
        stream = stream - stream.mean(dim=-1, keepdim=True) if centred else stream
        result: Tensor = torch.linalg.vector_norm(stream, dim=-1)
        return result

    def note_input(module: Any, args: Any) -> None:
        pre.append(norm(args[0]))

    def note_output(into: list[Tensor]) -> Callable[[Any, Any, Any], None]:
        return lambda module, args, out: into.append(
            norm(out[0] if isinstance(out, tuple) else out)
        )

    hooks = []
    for block in model.transformer.h:
        hooks.append(block.register_forward_pre_hook(note_input))
        for module, into in ((block, post), (block.attn, attn), (block.mlp, mlp)):
            hooks.append(module.register_forward_hook(note_output(into)))
    try:
        yield noted
    finally:
        for hook in hooks:
            hook.remove()
