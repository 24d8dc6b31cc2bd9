"""Text files that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

from residcheck.errors import ResidcheckError


def partial_of(path: Path) -> Path:
    """Where this process writes before ``path`` is replaced; another process writes elsewhere."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def write_text(path: Path, text: str) -> None:
    """Write ``text``; what was there stays whole until the new text is.

    Raises:
        ResidcheckError: the file cannot be written.
    """
    partial = partial_of(path)
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise ResidcheckError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
