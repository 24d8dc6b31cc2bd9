"""The streams of the unmodified model, and their means over the prompts."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from residcheck.backends import Backend, Site, Tap

Tokens = tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]
"""Token ids and mask, padded on the right."""


def streams(backend: Backend, batch: Tokens, middles: bool) -> dict[int, Float[Tensor, "b t d"]]:
    """The stream before each sublayer and after the last one, by its number, in float32 at least,
    all on the device of ``batch``.

    Args:
        middles: whether those between the sublayers of a block are wanted, too; in a
            parallel block, where there is none, resid_pre + attn_out.
    """
    found: dict[int, Tensor] = {}
    device = batch[0].device

    def keep(place: int) -> Tap:
        return lambda x: found.update({place: wide(x, device)})

    def add(layer: int) -> Tap:
        return lambda x: found.update({2 * layer + 1: found[2 * layer] + x.to(device)})

    layers = range(backend.anatomy.n_layers)
    taps: dict[tuple[int, Site], Tap] = {(n, "resid_pre"): keep(2 * n) for n in layers}
    if middles:
        taps |= {(n, "attn_out"): add(n) for n in layers}
    taps[layers[-1], "resid_post"] = keep(2 * len(layers))
    backend.forward(*batch, taps, logits=False)
    return found


def wide(x: Tensor, device: torch.device) -> Tensor:
    """A copy in float32 at least; what a tap sees may be added to in place later."""
    return x.to(device, torch.promote_types(x.dtype, torch.float32), copy=True)


class Means:
    """What stays of a removed stream under ablation by the mean.

    The mean over ordinary tokens of all prompts; position 0, which has norms of its own
    and sees no text, has its own mean.
    """

    def __init__(self, backend: Backend, middles: bool) -> None:
        self._backend, self._middles = backend, middles
        self._sums: dict[int, Float[Tensor, "2 d"]] = {}
        self._counts = torch.zeros(2, 1, dtype=torch.float64)

    @torch.inference_mode()
    def see(self, batch: Tokens) -> None:
        """Add the prompts of a batch; all of them, or, if the pass fails, none."""
        tokens, mask = batch
        ordinary = mask.bool().clone()
        ordinary[:, 0] = False
        sums = {
            # Not every accelerator has float64.
            place: torch.stack([x[:, 0].sum(dim=0), x[ordinary].sum(dim=0)]).cpu().double()
            for place, x in streams(self._backend, batch, self._middles).items()
        }
        self._counts = self._counts + torch.tensor([[len(tokens)], [int(ordinary.sum())]])
        self._sums = {place: self._sums.get(place, 0) + own for place, own in sums.items()}

    def at(self, place: int, like: Float[Tensor, "b t d"]) -> Float[Tensor, "t d"]:
        """For every position the mean of the stream numbered ``place``."""
        bos, rest = (self._sums[place] / self._counts).to(like)
        return torch.cat([bos[None], rest.expand(like.shape[1] - 1, -1)])
