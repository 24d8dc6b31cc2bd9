"""One block of a model by itself, or what follows the last block, on a stream of one's own.

The model's own forward pass is run, with all blocks but one replaced by stubs that let
the stream through. So masks, positions and whatever else a block is handed come from the
model, made for the batch at hand, and no architecture has to be known here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from residcheck.backends.base import EndOfPass, Taps


class Blockwise(ABC):
    """What all backends share: running parts of the model.

    ``stack`` are the modules that the model's forward pass calls one after the other.
    """

    stack: Sequence[nn.Module]

    @abstractmethod
    def run(
        self,
        tokens: Int[Tensor, "batch pos"],
        mask: Int[Tensor, "batch pos"],
        taps: Taps,
        last: int | None,
    ) -> Float[Tensor, "batch pos vocab"] | None:
        """A pass that ends after the block ``last``; with None it goes on to the logits."""

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        mask: Int[Tensor, "batch pos"],
        taps: Taps,
        *,
        logits: bool,
    ) -> Float[Tensor, "batch pos vocab"] | None:
        """Run the model; without ``logits`` the pass ends at the last block."""
        return self.run(tokens, mask, taps, None if logits else len(self.stack) - 1)

    def device(self, layer: int) -> torch.device:
        """Where the block computes; all of its taps see tensors there.

        What a block of a model that is spread over GPUs is handed may come from another one.
        """
        return next(self.stack[layer].parameters()).device

    def alone(
        self,
        layer: int,
        stream: Float[Tensor, "batch pos d"],
        tokens: Int[Tensor, "batch pos"],
        mask: Int[Tensor, "batch pos"],
        taps: Taps,
    ) -> None:
        """Run the block ``layer`` on ``stream``, with ``taps`` on that block.

        Tokens and mask are those that the positions of ``stream`` belong to.
        """
        with self._stubs(spared=layer):
            start: Taps = {(layer, "resid_pre"): lambda x: stream.to(x.device)}
            self.run(tokens, mask, {**start, **taps}, layer)

    def unembed(self, stream: Float[Tensor, "token d"]) -> Float[Tensor, "token vocab"]:
        """Final norm and unembedding, with the scales and caps of the logits, of ``stream``."""
        tokens = torch.zeros(len(stream), 1, dtype=torch.long, device=stream.device)
        with self._stubs(first=stream[:, None]):
            logits = self.run(tokens, torch.ones_like(tokens), {}, None)
        assert logits is not None
        return logits[:, 0]

    @contextmanager
    def _stubs(self, spared: int | None = None, first: Tensor | None = None) -> Iterator[None]:
        """Let all blocks but ``spared`` pass on what they get; the first may pass ``first``."""
        places = [layer for layer in range(len(self.stack)) if layer != spared]
        # A library may have put a forward of its own there already, as accelerate does.
        own = {layer: vars(self.stack[layer]).get("forward") for layer in places}
        try:
            for layer in places:
                given = first if layer == 0 else None
                vars(self.stack[layer])["forward"] = _stub(self._lengths[layer], given)
            yield
        finally:
            for layer, forward in own.items():
                if forward is None:
                    vars(self.stack[layer]).pop("forward", None)
                else:
                    vars(self.stack[layer])["forward"] = forward

    @cached_property
    def _lengths(self) -> list[int]:
        """Length of the tuple that each block returns; 0 where it returns the stream itself."""
        found = [0] * len(self.stack)

        def noting(layer: int) -> Any:
            def note(module: nn.Module, args: Any, output: Any) -> None:
                found[layer] = len(output) if isinstance(output, tuple) else 0

            return note

        token = torch.zeros(1, 1, dtype=torch.long, device=self.device(0))
        with ExitStack() as hooks:
            for layer, block in enumerate(self.stack):
                hooks.callback(block.register_forward_hook(noting(layer)).remove)
            self.run(token, torch.ones_like(token), {}, None)
        return found


def _stub(length: int, given: Tensor | None) -> Any:
    """A block's forward that does nothing, or hands on what it was ``given``."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        stream = given
        if stream is None:
            stream = args[0] if args else kwargs["hidden_states"]
        return (stream, *[None] * (length - 1)) if length else stream

    return forward


def end_pass(*args: Any, **kwargs: Any) -> None:
    """A hook, of any library, that leaves the pass."""
    raise EndOfPass
