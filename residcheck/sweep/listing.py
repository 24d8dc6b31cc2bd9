"""The list of models: one spec a line, with comments and blank lines between."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from residcheck.errors import UsageError
from residcheck.models import ModelSpec, check_name, parse_spec

_COMMENT = re.compile(r"(?:^|\s)#.*")  # a path may have the sign inside


@dataclass(frozen=True)
class Listed:
    """A model of the list: what was written, in which line, and what it means.

    ``repeated`` are the later lines that mean the same.
    """

    text: str
    line: int
    spec: ModelSpec
    repeated: tuple[int, ...] = ()


def read_list(text: str, source: str, options: Mapping[str, str | None]) -> list[Listed]:
    """The models in ``text``, each once, in the order of their first lines.

    Args:
        source: the name of the list, for messages.
        options: of all models (device, dtype, backend, processing), as flags of a command.

    Raises:
        UsageError: lines that are no models, all of them at once, or a list without any.
    """
    found: dict[ModelSpec, tuple[str, list[int]]] = {}
    wrong: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        written = _COMMENT.sub("", line).strip()
        if not written:
            continue
        try:
            spec = parse_spec(written).with_options(**options)
            check_name(spec)
        except UsageError as error:
            hint = f" ({error.hint})" if error.hint else ""
            wrong.append(f"line {number}: {error.message}{hint}")
            continue
        found.setdefault(spec, (written, []))[1].append(number)
    if wrong:
        raise UsageError(f"{source}, {wrong[0]}", "\n  ".join(wrong[1:]))
    if not found:
        raise UsageError(f"{source} names no model", "put one model on each line")
    return [
        Listed(written, first, spec, tuple(later))
        for spec, (written, [first, *later]) in found.items()
    ]
