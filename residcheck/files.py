"""Text files that are whole or not there."""

from __future__ import annotations

from pathlib import Path

from residcheck.errors import ResidcheckError


def write_text(path: Path, text: str) -> None:
    """Write ``text``; what was there stays whole until the new text is.

    Raises:
        ResidcheckError: the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise ResidcheckError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
