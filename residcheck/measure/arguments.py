"""What a caller may ask of a measurement, checked before a model is loaded for it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from residcheck.errors import UsageError
from residcheck.names import EVERYTHING


def checked(names: Iterable[str], batch_size: int | None) -> list[str]:
    """The names of curves, as a list.

    Raises:
        UsageError: a name that is none, or a batch without prompts.
    """
    if batch_size is not None and batch_size < 1:
        raise UsageError(
            f"--batch-size {batch_size} measures nothing",
            "it counts the prompts of a forward pass, so it must be at least 1",
        )
    wanted = [names] if isinstance(names, str) else list(names)
    for name in wanted:
        if name not in EVERYTHING:
            raise UsageError(_unknown(name), f"the curves are {', '.join(EVERYTHING)}")
    return wanted


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, EVERYTHING, n=1)
    return f"unknown curve {name!r}" + (f"; did you mean {close[0]!r}?" if close else "")
