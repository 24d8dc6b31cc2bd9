"""Built-in models where they are: in the user's cache, or in the package itself."""

from __future__ import annotations

from residcheck.errors import LoadError
from residcheck.models.builtin import BuiltinModel, PackagedModel
from residcheck.models.cache import Entry, find, sha256, weights_digest
from residcheck.models.gguf import cached_wheels, wheels_key
from residcheck.progress import Progress, silent

_WEIGHTS = "model.safetensors"


def at_hand(model: BuiltinModel) -> Entry | None:
    """The folder of a built-in model if nothing has to be fetched for it, else None.

    Raises:
        LoadError: it is damaged.
    """
    if isinstance(model, PackagedModel):
        return _packaged(model)
    return find(wheels_key(model))


def obtained(model: BuiltinModel, progress: Progress = silent) -> Entry:
    """The folder of a built-in model, fetched and converted at first use where it has to be.

    Raises:
        LoadError: it cannot be fetched, or is damaged.
    """
    if isinstance(model, PackagedModel):
        return _packaged(model)
    return cached_wheels(model, progress)


def _packaged(model: PackagedModel) -> Entry:
    weights = model.folder / _WEIGHTS
    try:
        found = sha256(weights)
        size = model.disk_bytes
    except OSError as error:
        raise _damaged(model, f"{weights} cannot be read: {error.strerror}") from error
    if found != model.weights_sha256:
        raise _damaged(model, f"{weights} does not have the sha256 that residcheck expects")
    return Entry(model.folder, weights_digest({_WEIGHTS: found}), size)


def _damaged(model: PackagedModel, reason: str) -> LoadError:
    return LoadError(
        f"{model.name}, which is part of residcheck, is damaged: {reason}",
        "install residcheck again",
    )
