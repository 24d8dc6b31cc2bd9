"""What a direction is called on the command line, and what is meant by it.

Everything after ``token:`` and ``diff:`` is text, spaces included: ``token: Paris`` is the
token of " Paris". Layers, heads and neurons are counted from 0, components from 1.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from residcheck.errors import UsageError

FORMS: dict[str, tuple[str, str]] = {
    "token": ("token:TEXT", "unembedding of one token; a space after the colon is part of it"),
    "diff": (r"diff:TEXT|TEXT", r"unembedding of one token minus another's; \| is a bar in a text"),
    "head": ("head:L.H", "what head H of layer L writes most strongly"),
    "neuron": ("neuron:L.N", "what neuron N of layer L's MLP writes"),
    "pc": ("pc:L.K", "K-th principal component (from 1) of the stream after layer L"),
    "file": ("file:PATH", "a vector: .npy, .json list, .safetensors, or numbers in a text file"),
}
GRAMMAR = "directions are " + ", ".join(form for form, _ in FORMS.values())


@dataclass(frozen=True)
class OfToken:
    text: str


@dataclass(frozen=True)
class OfDifference:
    plus: str
    minus: str


@dataclass(frozen=True)
class OfHead:
    layer: int
    head: int


@dataclass(frozen=True)
class OfNeuron:
    layer: int
    neuron: int


@dataclass(frozen=True)
class OfComponent:
    layer: int
    number: int


@dataclass(frozen=True)
class OfFile:
    path: Path


Meaning = OfToken | OfDifference | OfHead | OfNeuron | OfComponent | OfFile


def parse_direction(spec: str) -> Meaning:
    """Read a direction.

    Raises:
        UsageError: no kind of direction, or not what that kind takes.
    """
    kind, colon, rest = spec.partition(":")
    kind = kind.strip()
    if not colon or kind not in FORMS:
        close = difflib.get_close_matches(kind, FORMS, n=1)
        guess = f" (did you mean {close[0]!r}?)" if close else ""
        what = f"unknown kind of direction {kind!r}" if colon else f"{spec!r} is no direction"
        raise UsageError(what + guess, GRAMMAR)
    if not rest.strip("\r\n"):
        raise UsageError(f"direction {spec!r} is empty after the colon", f"write {FORMS[kind][0]}")
    return _READERS[kind](rest)


def _difference(rest: str) -> OfDifference:
    parts = re.split(r"(?<!\\)\|", rest)
    if len(parts) != 2 or not all(parts):
        raise UsageError(
            f"direction 'diff:{rest}' needs two tokens with one bar between them",
            r"write diff: Paris| London, and \| for a bar that is part of a token",
        )
    plus, minus = (part.replace(r"\|", "|") for part in parts)
    return OfDifference(plus, minus)


def _numbers(kind: str, rest: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,9})\.(\d{1,9})", rest.strip(), re.ASCII)
    if match is None:
        raise UsageError(
            f"direction '{kind}:{rest}' needs two numbers with a point between them",
            f"write {FORMS[kind][0]}, such as {kind}:3.1",
        )
    return int(match[1]), int(match[2])


def _component(rest: str) -> OfComponent:
    layer, number = _numbers("pc", rest)
    if number == 0:
        raise UsageError(
            f"direction 'pc:{rest}': components are counted from 1", f"the first is pc:{layer}.1"
        )
    return OfComponent(layer, number)


_READERS: dict[str, Callable[[str], Meaning]] = {
    "token": OfToken,
    "diff": _difference,
    "head": lambda rest: OfHead(*_numbers("head", rest)),
    "neuron": lambda rest: OfNeuron(*_numbers("neuron", rest)),
    "pc": _component,
    "file": lambda rest: OfFile(Path(rest.strip()).expanduser()),
}
