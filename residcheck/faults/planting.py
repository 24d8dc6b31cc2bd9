"""A session on a model with a fault in it."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from residcheck.backends import Backend, open_backend
from residcheck.corpus import Prompts
from residcheck.faults.base import Fault, Subject, Where
from residcheck.measure.opening import Session, open_loaded
from residcheck.models import LoadedModel, ModelSpec, load


def plant(loaded: LoadedModel, fault: Fault) -> None:
    """Change a loaded model in place."""
    with torch.no_grad():
        fault.apply(Subject.of(loaded.model, processed=loaded.spec.processing == "processed"))


def open_faulty(
    spec: ModelSpec,
    fault: Fault,
    prompts: Prompts,
    max_tokens: int | None = None,
    names: Iterable[str] = (),
    by: Where | None = None,
) -> Session:
    """What :func:`residcheck.measure.open_session` does, with a fault planted on the way.

    Args:
        by: whose fault it is, if not the fault's own ``where``: a change of the model can be
            the model library's (``model``, before the reference is taken) or be committed by
            the library that taps it (``library``, after).

    Raises:
        ResidcheckError: the gates saw it.
    """
    by = by or fault.where
    loaded = load(spec)
    if by == "model":
        plant(loaded, fault)

    def opener(loaded: LoadedModel) -> Backend:
        if by != "model":
            plant(loaded, fault)
        with torch.no_grad():
            return fault.wrap(open_backend(loaded))

    return open_loaded(loaded, prompts, max_tokens, names=names, opener=opener)
