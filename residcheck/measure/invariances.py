"""What must not change a result: company in the batch, and the processing of weights.

There is no curve of its own for the order of a batch. A row that is the same beside other
rows as alone is the same in any order; and the shortest row stands first here, where the
pass has the longest, so that what a library takes from the first row alone shows.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from residcheck.backends import Backend, Tap, Taps
from residcheck.curves import Curve
from residcheck.logits import logit_distance
from residcheck.measure.tokens import Encoded, pad

_LENGTHS = (4, 8, 16)


def batch_probe(backend: Backend, encoded: Encoded, device: str) -> dict[str, Curve]:
    """``batch_shift`` per layer: the largest distance that other rows in the batch, and the
    padding behind its own, move a token's ``resid_post`` from where it is in a batch of one,
    in units of the norm of the latter.
    """
    texts = encoded.ids
    rows = [texts[i % len(texts)][: encoded.room(n)] for i, n in enumerate(_LENGTHS)]
    rows.sort(key=len)
    together = _streams(backend, rows, encoded.pad_id, device)
    shifts = np.zeros(backend.anatomy.n_layers)
    for i, row in enumerate(rows):
        alone = _streams(backend, [row], encoded.pad_id, device)
        for layer, (here, there) in enumerate(zip(alone, together, strict=True)):
            away = (there[i, : len(row)] - here[0]).norm(dim=-1) / here[0].norm(dim=-1)
            shifts[layer] = np.fmax(shifts[layer], float(away.max()))
    return {"batch_shift": Curve("batch_shift", ("layer",), shifts, "relative distance")}


def _streams(
    backend: Backend, rows: list[tuple[int, ...]], pad_id: int, device: str
) -> list[Float[Tensor, "batch pos d"]]:
    """``resid_post`` of every layer."""
    seen: dict[int, Float[Tensor, "batch pos d"]] = {}

    def keeping(layer: int) -> Tap:
        def keep(x: Float[Tensor, "batch pos d"]) -> None:
            seen[layer] = x.double()

        return keep

    layers = range(backend.anatomy.n_layers)
    taps: Taps = {(n, "resid_post"): keeping(n) for n in layers}
    tokens, mask = pad(rows, pad_id, "right")
    backend.forward(tokens.to(device), mask.to(device), taps, logits=False)
    return [seen[n] for n in layers]


def processing_probe(
    backend: Backend, tokens: Int[Tensor, "batch pos"], raw: Float[Tensor, "batch pos vocab"]
) -> dict[str, Curve]:
    """``processing_shift``: the distance of the log-probabilities with processed weights from
    those that plain transformers has of the same weights, ``raw``."""
    return _shift("processing_shift", _logits(backend, tokens), raw)


def reprocessing_probe(backend: Backend, tokens: Int[Tensor, "batch pos"]) -> dict[str, Curve]:
    """``reprocessing_shift``: how far the log-probabilities move when the library is asked to
    process its weights once more. It leaves the model as that leaves it.

    Raises:
        LoadError: the library fails at it.
    """
    once = _logits(backend, tokens)
    backend.process_again()
    return _shift("reprocessing_shift", _logits(backend, tokens), once)


def _logits(backend: Backend, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos vocab"]:
    logits = backend.forward(tokens, torch.ones_like(tokens), {}, logits=True)
    assert logits is not None
    return logits.clone()


def _shift(name: str, one: Tensor, other: Tensor) -> dict[str, Curve]:
    shift = np.asarray([logit_distance(one, other)])
    return {name: Curve(name, ("pass",), shift, "relative shift")}
