"""Where prompts come from: the passages shipped with residcheck, or a user's file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from residcheck.errors import UsageError

SHIPPED = "residcheck passages"


@dataclass(frozen=True)
class Prompts:
    """Texts to measure on, and where they are from."""

    source: str
    texts: tuple[str, ...]


def shipped() -> Prompts:
    """Passages of many registers, written for this project, one kind after another."""
    text = files(__name__).joinpath("passages.jsonl").read_text(encoding="utf-8")
    return Prompts(SHIPPED, tuple(json.loads(line)["text"] for line in text.splitlines()))


def read_prompts(path: Path | None) -> Prompts:
    """The prompts in ``path``: JSON lines with ``text``, or plain text with one a line.

    A file is taken for JSON lines when its name ends in ``.jsonl``, ``.ndjson`` or
    ``.json``, or when its first line is a JSON object with ``text``. Blank lines are
    passed over. Without a path, the shipped passages.

    Raises:
        UsageError: the file cannot be read, is empty, or has a line that does not parse.
    """
    if path is None:
        return shipped()
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"cannot read the prompts file {path}: {reason}") from error
    lines = [(n, line) for n, line in enumerate(content.split("\n"), 1) if line.strip()]
    if not lines:
        raise UsageError(f"the prompts file {path} is empty", "put one prompt on each line")
    if path.suffix.lower() in (".jsonl", ".ndjson", ".json") or _text_of(lines[0][1]) is not None:
        return Prompts(path.name, tuple(_json_line(path, *line) for line in lines))
    return Prompts(path.name, tuple(line.strip() for _, line in lines))


def _json_line(path: Path, number: int, line: str) -> str:
    text = _text_of(line)
    if text is None or not text.strip():
        raise UsageError(
            f"{path}, line {number}: not a JSON object with a non-empty 'text'",
            'each line must look like {"text": "..."}',
        )
    return text


def _text_of(line: str) -> str | None:
    try:
        record = json.loads(line)
        text = record.get("text") if isinstance(record, dict) else None
        if isinstance(text, str):
            text.encode()  # a lone surrogate is no text
            return text
    except (ValueError, RecursionError):
        pass
    return None
