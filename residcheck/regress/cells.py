"""The cells of the matrix, and where what a witness said of each is kept."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np

from residcheck import backends, measure
from residcheck.errors import RunFileError
from residcheck.files import write_text
from residcheck.models.cache import sha256
from residcheck.regress.environments import LENS, OLD_LENS, TRANSFORMERS, Environment
from residcheck.regress.stand.witness import asked

Library = Literal["bridge", "hooked", "transformers"]
LIBRARIES: tuple[Library, ...] = ("bridge", "hooked", "transformers")
PACKAGE: dict[Library, str] = {"bridge": LENS, "hooked": LENS, "transformers": TRANSFORMERS}
_UNDER = ("torch", "transformers", "numpy")


@dataclass(frozen=True, order=True)
class Cell:
    """One model of the zoo as one version of a library sees it."""

    library: Library
    version: str
    model: str

    def __str__(self) -> str:
        return f"{self.model}, {self.library} {self.version}"


@dataclass(frozen=True)
class Seen:
    """What a witness said. ``status`` is ``ok`` where it came to an end by itself."""

    status: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    @property
    def errors(self) -> Mapping[str, str]:
        return self.facts.get("errors", {}) if self.ok else {"": self.status}

    @property
    def names(self) -> Iterator[str]:
        return chain(self.arrays, self.facts.get("aliases", {}))

    def same(self, one: str, other: str) -> bool:
        """Whether two arrays are one, bit for bit."""
        aliases = self.facts.get("aliases", {})
        return bool(aliases.get(one, one) == aliases.get(other, other))

    @property
    def tokens(self) -> Any:
        """The ids that all witnesses run on, ``[row, position]``."""
        return asked.tokens().numpy()

    def __contains__(self, name: str) -> bool:
        return name in self.arrays or name in self.facts.get("aliases", {})

    def get(self, name: str) -> Any:
        """An array, or None."""
        if name not in self:
            return None
        return self[name]

    def __getitem__(self, name: str) -> Any:
        return self.arrays[self.facts.get("aliases", {}).get(name, name)]


def key_of(cell: Cell, environment: Environment, model: str) -> str:
    """The name of a cell's files: what it depends on, hashed.

    Args:
        model: the digest of the model's folder.
    """
    import sys

    own_base = environment.python == sys.executable
    base = [f"{name} {version(name)}" for name in _UNDER] if own_base else OLD_LENS
    parts = (cell.library, cell.version, model, *base, *_witness(cell.library))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


STAND = Path(asked.__file__).parents[1]
"""What a witness' Python is started with."""
_OPENS: dict[Library, str] = {"bridge": "bridge", "hooked": "hooked", "transformers": "plain"}


def _witness(library: Library) -> Iterator[str]:
    """What the witness of a library does: what opens the other libraries has no part in it."""
    others = {name for other, name in _OPENS.items() if other != library}
    files = [f for f in (STAND / "witness").glob("*.py") if f.stem not in others]
    if library == "transformers":  # residcheck's own plain backend, and its gate
        files += [
            f for folder in (backends, measure) for f in Path(folder.__path__[0]).glob("*.py")
        ]
    yield from (code_hash(str(path)) for path in sorted(files))


@cache
def code_hash(path: str) -> str:
    """Of what a program does: comments and line breaks may change."""
    parsed = ast.parse(Path(path).read_text(encoding="utf-8"))
    return hashlib.sha256(ast.dump(parsed).encode()).hexdigest()


def folder_digest(folder: Path) -> str:
    """One identity for a saved model: configuration, weights and tokenizer."""
    listing = "".join(f"{sha256(path)}  {path.name}\n" for path in sorted(folder.iterdir()))
    return hashlib.sha256(listing.encode()).hexdigest()


def read(path: Path) -> Seen:
    """What is kept at ``path`` (without its suffix).

    Raises:
        RunFileError: damaged files.
    """
    try:
        document = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        status = document.get("status", "ok")
        if status != "ok":
            return Seen(status, document)
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as file:
            return Seen("ok", document, dict(file))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise RunFileError(
            f"the cell {path} cannot be read: {error}", "delete it; it is made again"
        ) from error


def seconds_of(path: Path) -> float:
    """How long a cell took; 0 where it came to no end."""
    document = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return float(document.get("seconds", 0.0))


def finished(path: Path) -> bool:
    """Whether a cell need not be run again: what was killed or crashed is tried once more."""
    try:
        document = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    status = document.get("status", "ok")
    if status == "ok":
        return path.with_suffix(".npz").is_file()
    return bool(status.startswith("cannot import"))


def write_failure(path: Path, status: str) -> None:
    write_text(path.with_suffix(".json"), json.dumps({"status": status}) + "\n")
