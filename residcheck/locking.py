"""Folders that one process at a time works in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"
BUSY = 75
"""Exit status of a worker whose folder another process has; sysexits' EX_TEMPFAIL."""


class Taken(Exception):
    """Another process works in the folder."""


@contextmanager
def locked(folder: Path, seconds: float = 0) -> Iterator[None]:
    """Within, ``folder`` is this process's own.

    Raises:
        Taken: another has it, and has not let go of it within ``seconds``.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        raise Taken from None
    try:
        yield
    finally:
        lock.release()
