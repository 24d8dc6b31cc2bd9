"""One pass over a text: the stream's dot product with a direction at every token and layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from residcheck.backends import Backend, Site, Tap
from residcheck.errors import LoadError, NonFiniteError, UsageError
from residcheck.view.layers import EMBED, name

SITES: tuple[Site, ...] = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
Table = Float[np.ndarray, "layer position"]


@dataclass(frozen=True)
class Values:
    """Dot products with the direction and the norms of the vectors, per layer and position."""

    dot: Table
    norm: Table

    @property
    def cosine(self) -> Table:
        """The dot product over the norm; 0 for a vector of zeros."""
        cosine: Table = np.zeros_like(self.dot)
        np.divide(self.dot, self.norm, out=cosine, where=self.norm > 0)
        return cosine


def has_embed(site: Site) -> bool:
    """Whether the embedding goes before the layers at ``site``."""
    return site in ("resid_mid", "resid_post")


def check_site(backend: Backend, site: str) -> Site:
    """``site``, if this model has it.

    Raises:
        UsageError: it has not.
    """
    anatomy = backend.anatomy
    present = [known for known in SITES if anatomy.has(known)]
    for known in present:
        if known == site:
            return known
    reason = next((why for missing, why in anatomy.missing.items() if missing == site), "")
    raise UsageError(
        f"cannot view site {site!r}" + (f": {reason}" if reason else ""),
        f"use one of {', '.join(present)}",
    )


@torch.inference_mode()
def read(
    backend: Backend,
    tokens: tuple[int, ...],
    direction: Float[Tensor, " d_model"],
    layers: tuple[int, ...],
    site: Site,
    device: str,
) -> Values:
    """Run the model on ``tokens``; what the taps see becomes two numbers at once.

    Raises:
        NonFiniteError: NaN or infinity in the stream.
        LoadError: the device has too little memory.
    """
    row = torch.tensor([tokens], device=device)
    direction = direction.to(row.device)
    found: dict[int, tuple[Tensor, Tensor]] = {}

    def tap(layer: int) -> Tap:
        def see(x: Tensor) -> None:
            x = backend.anatomy.centred(x[0].to(direction))
            found[layer] = (x @ direction, torch.linalg.vector_norm(x, dim=-1))

        return see

    taps = {_place(n, site): tap(n) for n in layers}
    run_guarded(lambda: backend.forward(row, torch.ones_like(row), taps, logits=False), device)
    stacked = [torch.stack([found[n][part] for n in layers]).cpu().numpy() for part in (0, 1)]
    _refuse_nonfinite(stacked[1], layers, site)
    return Values(*stacked)


def _place(layer: int, site: Site) -> tuple[int, Site]:
    return (0, "resid_pre") if layer == EMBED else (layer, site)


def run_guarded(forward: Callable[[], object], device: str) -> None:
    """Run a pass; running out of memory becomes an error that says what to do."""
    try:
        forward()
    except torch.OutOfMemoryError as error:
        raise LoadError(
            f"{device} ran out of memory", "use a shorter text, or --dtype bf16"
        ) from error


def _refuse_nonfinite(norm: Table, layers: tuple[int, ...], site: Site) -> None:
    bad = np.argwhere(~np.isfinite(norm))
    if bad.size:
        row, position = bad[0]
        raise NonFiniteError(
            f"layer {name(layers[row])}: {site} is NaN or infinite at position {position}",
            "the activations overflow in this dtype or the weights are damaged",
        )
