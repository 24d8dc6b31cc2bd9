"""Whether a block is sequential or parallel, from what its MLP reacts to.

The sums over a block are the same either way. So one text runs in two rows that are the
same at every block's input; in the second row, what the attention adds is replaced by a
vector of the stream's size. The MLP's outputs then differ in a sequential block, and agree
in a parallel one. Every block is asked in the same pass.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from residcheck.backends import Site, Tap
from residcheck.measure.identities import distance
from residcheck.seeds import generator


class Reaction:
    """Taps on one block; after the pass, whether its MLP ignored its attention.

    ``parallel`` is None where the MLP cannot tell: it gives every token the same output.
    """

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self._stream: Tensor | None = None
        self.parallel: bool | None = None

    def taps(self, layer: int) -> dict[tuple[int, Site], Tap]:
        return {
            (layer, "resid_pre"): self._start_alike,
            (layer, "attn_out"): self._replace,
            (layer, "mlp_out"): self._compare,
        }

    def _start_alike(self, x: Float[Tensor, "2 pos d"]) -> Float[Tensor, "2 pos d"]:
        self._stream = x[0].clone()  # a copy: some models add to it in place later
        return x[[0, 0]]

    def _replace(self, x: Float[Tensor, "2 pos d"]) -> Float[Tensor, "2 pos d"]:
        assert self._stream is not None
        size, self._stream = self._stream.float().norm(dim=-1, keepdim=True), None
        # A random direction: any permutation of the stream would keep its norm and sum.
        noise = torch.randn(x.shape[1:], generator=generator("attention"))
        other = noise.to(x.device) * size / x.shape[-1] ** 0.5
        return torch.stack([x[0], other.to(x)])

    def _compare(self, x: Float[Tensor, "2 pos d"]) -> None:
        own, other = x.double()
        if distance(own[:1].expand_as(own), own) > self._tolerance:
            self.parallel = distance(other, own) <= self._tolerance
