"""Is the basis of the residual stream arbitrary? Rotate it and see whether outputs change."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from residcheck.backends.projections import linear
from residcheck.errors import UnsupportedModelError
from residcheck.logits import logit_distance
from residcheck.models import LoadedModel
from residcheck.seeds import random_rotation
from residcheck.tolerances import tolerance
from residcheck.weights.canonical_model import CanonicalModel, canonicalise

_ROWS = 1 << 14  # of a table rotated at a time, so that no second table is held


def rotation_shift(loaded: LoadedModel, tokens: Int[Tensor, "batch pos"], seed: int) -> float:
    """How far the outputs move when the whole stream is rotated at random.

    The distance (:func:`~residcheck.logits.logit_distance`) between the model and its
    canonical form with every matrix that reads or writes the stream rotated. Holds one copy of
    the model, of twice its precision, while it runs. To be called before TransformerLens takes
    over the modules.

    Raises:
        UnsupportedModelError: a model without canonical form here, or whose canonical form
            gives other outputs before any rotation, so that rotating it would show nothing.
    """
    if hasattr(loaded.model, "hf_device_map"):
        raise UnsupportedModelError(
            f"{loaded.id} is spread over several devices, and a copy of it is not made",
            "its residual stream is not rotated; measure it on one device",
        )
    expected = _logits(loaded.model, tokens)
    made = canonicalise(loaded.model, _wider(expected))
    _refuse_other_outputs(loaded, _logits(made.model, tokens), expected)
    d_model = loaded.model.config.get_text_config().hidden_size
    rotate(made, random_rotation(d_model, seed), torch.unique(tokens))
    return logit_distance(_logits(made.model, tokens), expected)


def _refuse_other_outputs(loaded: LoadedModel, logits: Tensor, expected: Tensor) -> None:
    off, bound = logit_distance(logits, expected), tolerance(loaded.spec.dtype).logits
    if not off <= bound:
        raise UnsupportedModelError(
            f"the canonical form of {loaded.id} is not the model: its logits are off by "
            f"{off:.2g} of their spread (tolerance {bound:.0e})",
            "residcheck does not know how its norms and weights fit together; "
            "its residual stream is not rotated",
        )


def _wider(logits: Tensor) -> torch.dtype:
    """The precision to rotate in: that of the model's numbers, doubled.

    A rotation spreads the few huge components of a stream over all of them, and their rounding
    with them: Gemma 3 270M's logits move by 8e-5 of their spread in float32, by 0.6 in bfloat16.
    """
    if logits.dtype in (torch.float16, torch.bfloat16) or logits.device.type == "mps":
        return torch.float32
    return torch.float64


@torch.no_grad()
def rotate(
    made: CanonicalModel,
    R: Float[Tensor, "d_model d_model"],
    tokens: Int[Tensor, " token"] | None = None,
) -> None:
    """Turn the stream ``x`` of a canonical model into ``x @ R``, in place.

    What writes the stream is multiplied with R, what reads it with R's inverse before.

    Args:
        tokens: the only ones that will be run; the embeddings of others are left as they are.
    """
    for table in made.tables:
        if tokens is None or table is not made.model.get_input_embeddings():
            _rotate_rows(table.weight.detach(), R)
        else:
            rows = table.weight.detach()[tokens]
            _rotate_rows(rows, R)
            table.weight[tokens] = rows
    for writer in made.writers:
        _rotate_written(*linear(writer), R)
    for reader in made.readers:
        _rotate_rows(linear(reader)[0].T, R)  # R.T @ W = (W.T @ R).T
    for linear_map in made.maps:
        W, b = linear(linear_map)
        _rotate_rows(W.T, R)
        _rotate_written(W, b, R)


def _rotate_written(
    W: Float[Tensor, "d_in d_model"],
    b: Float[Tensor, " d_model"] | None,
    R: Float[Tensor, "d_model d_model"],
) -> None:
    _rotate_rows(W, R)
    if b is not None:
        _rotate_rows(b[None], R)


def _rotate_rows(W: Float[Tensor, "rows d_model"], R: Float[Tensor, "d_model d_model"]) -> None:
    """``W @ R`` in place of ``W``, in float32 at least."""
    dtype = torch.float64 if W.dtype == torch.float64 else torch.float32
    turned = R.to(device=W.device, dtype=dtype)
    for rows in torch.split(W, _ROWS):
        rows.copy_(rows.to(dtype) @ turned)


@torch.inference_mode()
def _logits(model: Any, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos vocab"]:
    logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits
