"""The text that every machine has: the sources of the running Python's standard library."""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

FOREIGN = {"site-packages", "dist-packages", "__pycache__"}
TESTS = {"test", "tests", "idle_test"}
TABLES = {"encodings", "pydoc_data"}
"""Lists of numbers and one huge literal: most of their text is escapes and hex digits."""
_HELD_OUT = 0.05
_TABLE_FILES = {"html/entities.py"}
_OF_THE_BUILD = ("_sysconfigdata", "config-")  # how and where this Python was compiled


@dataclass(frozen=True)
class Document:
    """A source file; ``path`` is below the library's folder, with slashes."""

    path: str
    text: str

    @property
    def held_out(self) -> bool:
        """Whether it is kept for testing: settled by its path alone, for about one in twenty."""
        number = int.from_bytes(hashlib.sha256(self.path.encode()).digest()[:4])
        return number < _HELD_OUT * 2**32


@dataclass(frozen=True)
class Library:
    """All documents, sorted by their paths."""

    documents: tuple[Document, ...]
    python: str

    @property
    def training(self) -> list[str]:
        return [document.text for document in self.documents if not document.held_out]

    @property
    def held_out(self) -> list[str]:
        return [document.text for document in self.documents if document.held_out]

    @property
    def sha256(self) -> str:
        """Hex, over paths and texts with their lengths."""
        digest = hashlib.sha256()
        for document in self.documents:
            for part in (document.path.encode(), document.text.encode()):
                digest.update(len(part).to_bytes(8, "little") + part)
        return digest.hexdigest()


def read_library(folder: Path | None = None) -> Library:
    """The library at ``folder``; without one, that of this Python.

    Left out are installed packages, tests (as large as all the rest, and much of it data),
    tables, files of this machine's build, and files that are empty or not UTF-8.
    """
    root = folder or Path(sysconfig.get_path("stdlib"))
    found = []
    for path in root.rglob("*.py"):
        name = path.relative_to(root).as_posix()
        text = _text(path) if _wanted(PurePosixPath(name)) else None
        if text is not None:
            found.append(Document(name, text))
    found.sort(key=lambda document: document.path)
    return Library(tuple(found), platform.python_version())


def _wanted(path: PurePosixPath) -> bool:
    folders = set(path.parts[:-1])
    if folders & (FOREIGN | TESTS) or path.parts[0] in TABLES or str(path) in _TABLE_FILES:
        return False
    return not path.parts[0].startswith(_OF_THE_BUILD)


def _text(path: Path) -> str | None:
    try:
        text = path.read_bytes().decode("utf-8").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError):
        return None
    return text if text.strip() else None
