"""Principal components of the stream over some of the shipped passages."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from residcheck.backends import Taps
from residcheck.errors import UsageError
from residcheck.measure import Session
from residcheck.measure.tokens import batches
from residcheck.view.stream import run_guarded

PASSAGES = 12
"""How many passages are read, spread over all kinds of them."""
_BATCH = 4


@dataclass(frozen=True)
class Component:
    """A principal component: a unit vector, and its share of the variance."""

    vector: Float[Tensor, " d_model"]
    share: float
    tokens: int


@torch.inference_mode()
def principal_component(session: Session, layer: int, number: int) -> Component:
    """Component ``number`` (from 1) of resid_post of ``layer``, of tokens that are not BOS.

    Raises:
        UsageError: there are not so many.
    """
    rows = _stream(session, layer)
    rows = rows - rows.mean(dim=0)
    count = min(rows.shape[0] - 1, rows.shape[1])
    if number > count:
        raise UsageError(f"there is no component {number}", f"components are 1 to {count}")
    if rows.shape[0] < rows.shape[1]:  # the smaller of the two Gram matrices
        variances, left = torch.linalg.eigh(rows @ rows.T)
        vector = left[:, -number] @ rows
    else:
        variances, right = torch.linalg.eigh(rows.T @ rows)
        vector = right[:, -number]
    share = float(variances[-number].clamp_min(0) / variances.sum())
    return Component(vector / vector.norm(), share, len(rows))


def _stream(session: Session, layer: int) -> Float[Tensor, "token d_model"]:
    """The stream after ``layer`` at the ordinary tokens of the passages, in float64."""
    backend, device = session.backend, session.loaded.device
    every = max(1, len(session.encoded.ids) // PASSAGES)
    passages = session.encoded.select(list(range(0, len(session.encoded.ids), every))[:PASSAGES])
    kept: list[Tensor] = []

    def run() -> None:
        for batch in batches(passages, _BATCH, device):
            ordinary = batch.mask.bool()
            ordinary[:, 0] = False
            taps: Taps = {(layer, "resid_post"): partial(_keep, kept, ordinary)}
            backend.forward(batch.tokens, batch.mask, taps, logits=False)

    run_guarded(run, device)
    return backend.anatomy.centred(torch.cat(kept))


def _keep(kept: list[Tensor], where: Tensor, x: Tensor) -> None:
    kept.append(x[where.to(x.device)].cpu().double())
