"""The page of proofs, ``claims/PROOF.md``: one section for each command that measures one.

A command writes its own section anew and leaves the others alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

PAGE = Path(__file__).parents[2] / "claims" / "PROOF.md"
SECTIONS = ("planted", "faults", "quiet", "rules")
_HEAD = """# Proof that the instrument works

Planted truths, planted defects, runs that differ in nothing that matters, and how often each
decision rule errs. Each section is written by the command that it names.
"""


def write_section(name: str, text: str, page: Path = PAGE) -> None:
    """Put ``text`` (Markdown, with its own ``##`` heading) in the place of a section."""
    sections = {key: found for key in SECTIONS if (found := read_section(key, page))}
    sections[name] = text.strip()
    parts = [
        f"<!-- {key} -->\n{sections[key]}\n<!-- end -->" for key in SECTIONS if key in sections
    ]
    partial = page.with_suffix(".partial")
    partial.write_text("\n\n".join([_HEAD.strip(), *parts]) + "\n", encoding="utf-8")
    partial.replace(page)


def read_section(name: str, page: Path = PAGE) -> str:
    """A section as it is on the page; empty if it is not there yet."""
    if not page.exists():
        return ""
    found = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- end -->", page.read_text("utf-8"), re.DOTALL)
    return found[1] if found else ""


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )
