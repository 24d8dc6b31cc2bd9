"""Errors a person can act on.

Every error that residcheck raises for a reason outside its own code is a
:class:`ResidcheckError`: one message that says what was wrong and where, and a
hint that says what to do. The command line prints both and exits with
``exit_status``; nothing else is shown, no traceback.
"""

from __future__ import annotations

from enum import IntEnum


class ExitStatus(IntEnum):
    """What the process says to a shell or a CI job."""

    OK = 0
    REFUTED_OR_DRIFTED = 1
    USAGE = 2
    COULD_NOT_MEASURE = 3
    INTERRUPTED = 130


def first_line(error: BaseException) -> str:
    """What a library's error says, in one line; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class ResidcheckError(Exception):
    """A problem with a model, an input or the machine, explained.

    Args:
        message: what was wrong, and where.
        hint: what to do about it.
    """

    exit_status = ExitStatus.COULD_NOT_MEASURE

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[type[ResidcheckError], tuple[str, str]]:
        return (type(self), (self.message, self.hint))


class UsageError(ResidcheckError):
    """The request itself makes no sense: an unknown name, a bad option, an empty file."""

    exit_status = ExitStatus.USAGE


class LoadError(ResidcheckError):
    """A model could not be fetched, verified, converted or loaded."""


class UnsupportedModelError(LoadError):
    """The model is not a causal language model that residcheck can tap."""


class NonFiniteError(ResidcheckError):
    """NaN or infinity in the weights or in the activations."""


class GateError(ResidcheckError):
    """The identity gate failed: a hook does not mean what its name says."""


class RunFileError(ResidcheckError):
    """A run file or snapshot cannot be read, or was written by another schema."""
