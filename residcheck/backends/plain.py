"""The ``transformers`` backend: forward hooks on the plain modules, nothing between."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
import transformers
from jaxtyping import Float, Int
from torch import Tensor, nn

from residcheck.backends.base import EndOfPass, Site, Tap, Taps
from residcheck.backends.blockwise import end_pass
from residcheck.backends.modules import Modular, Reader


class PlainBackend(Modular):
    """Taps a transformers model through PyTorch's module hooks."""

    name = "transformers"
    version = transformers.__version__

    @torch.inference_mode()
    def run(
        self,
        tokens: Int[Tensor, "batch pos"],
        mask: Int[Tensor, "batch pos"],
        taps: Taps,
        last: int | None,
    ) -> Float[Tensor, "batch pos vocab"] | None:
        with ExitStack() as hooks:
            for (layer, site), tap in taps.items():
                hooks.callback(self._attach(layer, site, tap, tokens.shape).remove)
            if last is not None:
                hooks.callback(self.stack[last].register_forward_hook(end_pass).remove)
            try:
                output = self._model(input_ids=tokens, attention_mask=mask, use_cache=False)
            except EndOfPass:
                return None
        result: Tensor = output.logits
        return result

    def _attach(self, layer: int, site: Site, tap: Tap, shape: torch.Size) -> Any:
        part = self._blocks.parts[site]
        module = self._blocks.modules[layer].get_submodule(part.path)
        read = Reader(part, tap, shape, self.device(layer))
        if part.side == "input":
            return module.register_forward_pre_hook(_on_input(read), with_kwargs=True)
        return module.register_forward_hook(_on_output(read))


def _on_input(read: Reader) -> Any:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            replaced = read.tensor(args[0])
            return None if replaced is None else ((replaced, *args[1:]), kwargs)
        replaced = read.tensor(kwargs["hidden_states"])
        return None if replaced is None else (args, kwargs | {"hidden_states": replaced})

    return hook


def _on_output(read: Reader) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        return read.output(output)

    return hook
