"""The user's cache of converted models: found, filled once, never half-filled.

A finished entry is a folder with a marker file; it appears under its name by one
rename. While it is made, everything is in a hidden staging folder beside it, held
under a lock, so that a second process waits and an interrupted one can go on with
the parts that were complete.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from residcheck.errors import LoadError
from residcheck.progress import Progress, silent

HOME_VARIABLE = "RESIDCHECK_HOME"
MARKER = "residcheck.json"
_CHUNK = 1 << 22
_DISK_TROUBLE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
}


def home() -> Path:
    """Where residcheck keeps things: ``$RESIDCHECK_HOME`` or the user's cache folder."""
    override = os.environ.get(HOME_VARIABLE)
    if override:
        return Path(override).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("residcheck", appauthor=False)


@dataclass(frozen=True)
class Entry:
    """A finished entry of the cache."""

    folder: Path
    weights: str
    bytes: int


def find(key: str) -> Entry | None:
    """The finished entry ``key``, or None. Damaged entries raise :class:`LoadError`."""
    folder = home() / "models" / key
    marker = folder / MARKER
    if not marker.is_file():
        return None
    try:
        noted = json.loads(marker.read_text(encoding="utf-8"))
        files: dict[str, dict[str, int | str]] = noted["files"]
        for name, facts in files.items():
            _check_file(folder / name, facts)
        size = sum(int(facts["bytes"]) for facts in files.values())
        return Entry(folder, str(noted["weights"]), size)
    except (AttributeError, OSError, ValueError, KeyError, TypeError) as error:
        raise LoadError(
            f"the cached model {folder} is damaged: {error}",
            f"delete the folder {folder}; it is made again at the next use",
        ) from error


def _check_file(path: Path, facts: dict[str, int | str]) -> None:
    """Size always; the hash only when the file was touched since it was written."""
    stat = path.stat()
    if stat.st_size != facts["bytes"]:
        raise ValueError(f"{path.name} has {stat.st_size} bytes instead of {facts['bytes']}")
    if stat.st_mtime_ns != facts["mtime_ns"] and sha256(path) != facts["sha256"]:
        raise ValueError(f"{path.name} does not have the sha256 that was noted")


def fill(key: str, make: Callable[[Path, Path], None], progress: Progress = silent) -> Entry:
    """The entry ``key``, made by ``make(staging, out)`` if it is not there yet.

    ``make`` may leave finished parts in ``staging`` and must fill ``out``.

    Raises:
        LoadError: the disk is full or the cache cannot be written.
    """
    if (finished := find(key)) is not None:  # perhaps in a cache that others may only read
        return finished
    models = home() / "models"
    with explain_disk(models):
        with suppress(FileExistsError):  # a file in the folder's place is ENOTDIR below
            models.mkdir(parents=True, exist_ok=True)
        with _lock(models / f".{key}.lock", progress):
            entry = find(key)
            if entry is not None:
                return entry
            staging = models / f".{key}.partial"
            out = staging / "out"
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir(parents=True)
            try:
                make(staging, out)
                _mark(out)
                shutil.rmtree(models / key, ignore_errors=True)  # one that lost its marker
                out.replace(models / key)
            finally:
                shutil.rmtree(out, ignore_errors=True)
                if not any(staging.iterdir()):  # no finished part to go on with
                    staging.rmdir()
            shutil.rmtree(staging, ignore_errors=True)
    finished = find(key)
    assert finished is not None
    return finished


def _mark(folder: Path) -> None:
    files = {
        path.name: {
            "bytes": path.stat().st_size,
            "mtime_ns": path.stat().st_mtime_ns,
            "sha256": sha256(path),
        }
        for path in sorted(folder.iterdir())
    }
    weights = weights_digest({k: str(v["sha256"]) for k, v in files.items()})
    text = json.dumps({"weights": weights, "files": files}, indent=1)
    (folder / MARKER).write_text(text + "\n", encoding="utf-8")


def weights_digest(hashes: dict[str, str]) -> str:
    """One identity for a model's weight files, given each file's sha256."""
    weights = {name: digest for name, digest in hashes.items() if name.endswith(".safetensors")}
    if len(weights) == 1:
        return f"sha256:{next(iter(weights.values()))}"
    listing = "".join(f"{digest}  {name}\n" for name, digest in sorted(weights.items()))
    return f"sha256:{hashlib.sha256(listing.encode()).hexdigest()}"


def sha256(path: Path, progress: Progress = silent) -> str:
    """Hex sha256 of a file, read in chunks."""
    digest, total = hashlib.sha256(), path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            progress(f"checking {path.name}", file.tell(), total)
    return digest.hexdigest()


@contextmanager
def _lock(path: Path, progress: Progress) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress("waiting for another process that fills the cache", 0, None)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def explain_disk(folder: Path) -> Iterator[None]:
    """Turn 'no space', 'no permission' and the like into one clear message."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_TROUBLE:
            raise
        raise LoadError(
            f"cannot write to the cache {folder}: {error.strerror}",
            f"free some space there, or point {HOME_VARIABLE} at another folder",
        ) from error
