"""How long work reports its progress, without knowing who shows it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told about long work as it goes.

    Args:
        task: what is being done, one short phrase; the same phrase, the same bar.
        done: how much is done, in any unit.
        total: how much there is, or None where nobody knows.
    """

    def __call__(self, task: str, done: float, total: float | None) -> None: ...


def silent(task: str, done: float, total: float | None) -> None:
    """A :class:`Progress` that shows nothing."""
