"""The ``nnsight`` backend: nnsight's tracing reads the plain modules and replaces in them."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import nnsight
import torch
from jaxtyping import Float, Int
from nnsight.intervention.interleaver import OutOfOrderError
from torch import Tensor

from residcheck.backends.base import Site, Tap, Taps
from residcheck.backends.modules import Modular, Reader
from residcheck.errors import UnsupportedModelError, first_line
from residcheck.models import LoadedModel


class InsightBackend(Modular):
    """Taps a transformers model through nnsight.

    nnsight puts forwards of its own into the modules of ``loaded.model``, which do nothing
    outside a trace.
    """

    name = "nnsight"
    version = version("nnsight")

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__(loaded)  # first: it looks at the modules' own forwards
        self._traced = nnsight.NNsight(loaded.model)

    @torch.inference_mode()
    def run(
        self,
        tokens: Int[Tensor, "batch pos"],
        mask: Int[Tensor, "batch pos"],
        taps: Taps,
        last: int | None,
    ) -> Float[Tensor, "batch pos vocab"] | None:
        logits: Tensor | None = None
        try:
            # One block of code would have to name modules in the order in which the model
            # runs them, which architectures differ in; so every tap has a block of its own.
            with self._traced.trace() as tracer:
                for (layer, site), tap in taps.items():
                    with tracer.invoke():
                        self._serve(layer, site, tap, tokens.shape)
                with tracer.invoke(input_ids=tokens, attention_mask=mask, use_cache=False):
                    logits = nnsight.save(self._end(tracer, last))
        except OutOfOrderError as error:
            raise UnsupportedModelError(
                f"nnsight {self.version} misses a part of {self.anatomy.model_type}: "
                f"{first_line(error)}",
                "try backend=transformers, which taps the same modules by itself",
            ) from error
        return logits

    def _serve(self, layer: int, site: Site, tap: Tap, shape: torch.Size) -> None:
        """Inside a trace: wait until the model is there, and go on with what the tap returns."""
        part, module = self._blocks.parts[site], self._of(layer, site)
        read = Reader(part, tap, shape, self.device(layer))
        if part.side == "input":
            replaced = read.tensor(module.input)
            if replaced is not None:
                module.input = replaced
        else:
            replaced = read.output(module.output)
            if replaced is not None:
                module.output = replaced

    def _end(self, tracer: Any, last: int | None) -> Tensor:
        """Inside a trace: the logits, or a stop after the block ``last``."""
        if last is not None:
            self._of(last, "resid_post").output  # noqa: B018
            tracer.stop()
        logits: Tensor = self._traced.output.logits
        return logits

    def _of(self, layer: int, site: Site) -> Any:
        """nnsight's view of the module whose input or output the site is."""
        return self._traced.get(self.path(layer, site))
