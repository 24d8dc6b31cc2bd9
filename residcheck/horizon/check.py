"""Whether a model's blocks, run one at a time, do what they do in the model."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from residcheck.backends import Backend, Site, Tap
from residcheck.errors import UnsupportedModelError, first_line
from residcheck.logits import logit_distance
from residcheck.tolerances import Tolerance

_HINT = "it may share state between its blocks; horizons need blocks that only read the stream"


@torch.inference_mode()
def check_blocks(backend: Backend, tokens: Int[Tensor, "batch pos"], tolerance: Tolerance) -> None:
    """Run each block alone on the stream that the model gives it, and unembed the last one.

    Raises:
        UnsupportedModelError: a block writes something else than in the whole pass, or the
            logits are others.
    """
    whole = _Passage(backend)
    logits = backend.forward(tokens, torch.ones_like(tokens), whole.taps(), logits=True)
    assert logits is not None
    alone = _Passage(backend)
    for layer in range(backend.anatomy.n_layers):
        stream = whole.found[layer, "resid_pre"]
        taps = {place: tap for place, tap in alone.taps().items() if place[0] == layer}
        del taps[layer, "resid_pre"]
        try:
            backend.alone(layer, stream, tokens, torch.ones_like(tokens), taps)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of many kinds: an architecture whose blocks need each other
            raise UnsupportedModelError(
                f"layer {layer} cannot run alone: {first_line(error)}", _HINT
            ) from error
        for (at, site), there in whole.found.items():
            if at == layer and site != "resid_pre":
                _compare(layer, site, alone.found[layer, site], there, stream, tolerance)
    last = whole.found[backend.anatomy.n_layers - 1, "resid_post"].to(tokens.device)
    shift = logit_distance(backend.unembed(last.flatten(0, 1)), logits.flatten(0, 1))
    if not shift <= tolerance.logits:
        raise UnsupportedModelError(
            f"unembedding the last stream gives other logits than the model (off by {shift:.2g} "
            f"of their spread)",
            _HINT,
        )


def _compare(
    layer: int, site: Site, one: Tensor, other: Tensor, stream: Tensor, tolerance: Tolerance
) -> None:
    """To rounding of the stream, since that is what a block's output is added to."""
    difference = (one.double() - other.double()).norm(dim=-1)
    size = torch.maximum(other.double().norm(dim=-1), stream.double().norm(dim=-1))
    shift = float((difference / size).max())
    if not shift <= tolerance.token:
        raise UnsupportedModelError(
            f"layer {layer}: {site} of the block alone is off by {shift:.2g} of the stream", _HINT
        )


class _Passage:
    """Copies of what the sublayers write, and of the streams before and after the blocks."""

    def __init__(self, backend: Backend) -> None:
        self._depth = backend.anatomy.n_layers
        self.found: dict[tuple[int, Site], Float[Tensor, "batch pos d"]] = {}

    def taps(self) -> dict[tuple[int, Site], Tap]:
        sites: tuple[Site, ...] = ("resid_pre", "attn_out", "mlp_out", "resid_post")
        return {(n, site): self._keep(n, site) for n in range(self._depth) for site in sites}

    def _keep(self, layer: int, site: Site) -> Tap:
        return lambda x: self.found.update({(layer, site): x.clone()})
