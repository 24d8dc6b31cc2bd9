"""The state of a run between two steps: whole or not there."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from residcheck.errors import ResidcheckError
from residcheck.files import partial_of

SCHEMA = "residcheck.train.checkpoint/1"


@dataclass(frozen=True)
class State:
    """What a run needs to go on, beside its settings.

    No state of random numbers: batches follow from the step, and nothing else is drawn.

    Args:
        step: updates made.
        seconds: spent on training.
        loss_sum: of the steps since the last record of the history.
        loss_count: how many these are.
    """

    step: int
    seconds: float
    loss_sum: float
    loss_count: int
    model: dict[str, Any]
    optimiser: dict[str, Any]


def save(state: State, path: Path) -> None:
    """Replace the checkpoint at ``path``.

    Raises:
        ResidcheckError: it cannot be written.
    """
    partial = partial_of(path)
    try:
        torch.save({"schema": SCHEMA, **vars(state)}, partial)
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError on a full disk
        raise ResidcheckError(f"cannot write {path}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def load(path: Path) -> State | None:
    """The checkpoint at ``path``, on the CPU; None where there is none.

    Raises:
        ResidcheckError: it is damaged.
    """
    if not path.exists():
        return None
    try:
        said = torch.load(path, map_location="cpu", weights_only=True)
        if said.pop("schema") != SCHEMA:
            raise ValueError("another version wrote it")
        return State(**said)
    except (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError,
            pickle.UnpicklingError) as error:  # fmt: skip
        raise ResidcheckError(
            f"the checkpoint {path} cannot be read: {str(error).splitlines()[0]}",
            "delete its folder to begin again",
        ) from error
