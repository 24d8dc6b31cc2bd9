"""What people found out about findings: ``causes.toml``, one entry a cause, the first that fits."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from packaging.version import Version

UNTRACED = "not traced"


@dataclass(frozen=True)
class Cause:
    """Why a library gives something else; empty fields stand for all.

    ``since`` and ``until`` are the first and last versions that may have it; ``kind`` is part
    of what a finding's kind says.
    """

    why: str
    library: str
    quantities: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    kind: str = ""
    since: str = ""
    until: str = ""

    def explains(
        self, library: str, quantity: str, kind: str, first: str, last: str, model: str
    ) -> bool:
        return (
            library == self.library
            and (not self.quantities or quantity in self.quantities)
            and (not self.models or model in self.models)
            and self.kind in kind
            and (not self.since or Version(first) >= Version(self.since))
            and (not self.until or Version(last) <= Version(self.until))
        )


def cause_of(
    causes: Sequence[Cause], library: str, quantity: str, kind: str, first: str, last: str, m: str
) -> str:
    """The first cause that explains a model's part in a finding, or :data:`UNTRACED`."""
    fitting = (c.why for c in causes if c.explains(library, quantity, kind, first, last, m))
    return next(fitting, UNTRACED)


@cache
def known() -> tuple[Cause, ...]:
    """The entries that are shipped."""
    text = resources.files("residcheck.regress").joinpath("causes.toml").read_text("utf-8")
    return tuple(map(_read, tomllib.loads(text)["cause"]))


def _read(entry: Mapping[str, Any]) -> Cause:
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
    return Cause(**fields)
