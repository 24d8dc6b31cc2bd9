"""The table and its findings as Markdown and as one HTML page without scripts or network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from residcheck.regress.findings import Finding
from residcheck.regress.table import SYMBOLS, Table, in_words, kind_of, size_of
from residcheck.report.markdown import plain

NAMES = {
    "bridge": "TransformerBridge",
    "hooked": "HookedTransformer",
    "transformers": "transformers",
}


@dataclass(frozen=True)
class Shown:
    """A finding with its script and what that printed (empty: not run)."""

    finding: Finding
    script: str
    printed: str


def render_markdown(
    table: Table, found: Sequence[Shown], versions: Mapping[str, str], seconds: float
) -> str:
    """The page ``claims/REGRESS.md``."""
    newest = [one for one in found if one.finding.newest]
    fixed = [one for one in found if not one.finding.newest]
    blocks = ["# Regressions in model libraries", _introduction(table, versions, seconds)]
    blocks += ["## In the newest releases", _findings(newest, numbered=True)]
    blocks += ["## In earlier releases", _findings(fixed, numbered=False)]
    blocks += ["## The newest releases, model by model", _newest_cells(table)]
    blocks += ["## All versions", _legend()]
    for library in table.libraries:
        blocks += [f"### {NAMES[library]}", _matrix(table, library)]
    if newest:
        blocks.append("## Reproductions")
        blocks += [_reproduction(n, one) for n, one in enumerate(newest, 1)]
    return "\n\n".join(blocks) + "\n"


def _introduction(table: Table, versions: Mapping[str, str], seconds: float) -> str:
    counts = ", ".join(f"{n} {name}" for name, n in table.counts().items())
    under = ", ".join(f"{name} {version}" for name, version in versions.items())
    said = (
        f"Written by `residcheck.regress` on {_today()}. {len(table.cells)} cells of "
        f"{len(table.models)} models ({counts}), each in float32 and float64, "
        f"{table.judged} with weight processing counted apart; {seconds:,.0f} s "
        f"of one core, findings: {len(table.findings)}. The judge is plain "
        f"transformers through residcheck's gate; beside {under}."
    )
    for model, why in table.unjudged.items():
        said += f" Not judged: {plain(model)} ({plain(why)})."
    return said


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _legend() -> str:
    return "; ".join(f"`{symbol}` {name}" for name, symbol in SYMBOLS.items())


_HEAD = ["", "library", "quantity", "weights", "since", "until", "models", "size", "cause"]


def _findings(found: Sequence[Shown], numbered: bool) -> str:
    if not found:
        return "None."
    rows = [_HEAD]
    for n, one in enumerate(found, 1):
        finding = one.finding
        number = str(n) if numbered else ""
        rows.append([number, *(plain(cell) for cell in cells_of(finding))])
    return _table(rows)


def cells_of(finding: Finding) -> list[str]:
    """A finding in the columns of the page."""
    span = finding.span
    since = f"{span.first} (good in {span.before})" if span.before else f"{span.first} or earlier"
    until = "now" if finding.newest else span.last
    until += f" (good in {span.after})" if span.after else ""
    where = f" at layer {finding.worst.layer}" if finding.worst.layer >= 0 else ""
    kind = "" if finding.kind == finding.worst.verdict == "different" else f": {finding.kind}"
    return [
        NAMES[finding.library],
        f"{', '.join(finding.quantities)}{kind}",
        ", ".join(finding.processings),
        since,
        until,
        ", ".join(finding.models),
        f"{size_of(finding.worst)}{where}" if finding.worst.size == finding.worst.size else "",
        finding.cause,
    ]


def _newest_cells(table: Table) -> str:
    rows = [["model", *(f"{NAMES[lib]} {table.versions[lib][-1]}" for lib in table.libraries)]]
    for model in table.models:
        found = [table.at(lib, table.versions[lib][-1], model) for lib in table.libraries]
        rows.append([plain(model), *("" if one is None else plain(in_words(one)) for one in found)])
    return _table(rows)


def _matrix(table: Table, library: Any) -> str:
    versions = table.versions[library]
    rows = [["model", *versions]]
    for model in table.models:
        found = [table.at(library, version, model) for version in versions]
        symbols = ["" if one is None else SYMBOLS[kind_of(one)] for one in found]
        rows.append([plain(model), *symbols])
    return _table(rows)


def _reproduction(number: int, one: Shown) -> str:
    finding = one.finding
    title = f"### {number}. {NAMES[finding.library]} {finding.span.last}: {plain(finding.quantity)}"
    if not one.script:
        return f"{title}\n\n{plain(one.printed)}"
    printed = one.printed or "(not run)"
    return f"{title}\n\n```python\n{one.script.rstrip()}\n```\n\n```text\n{_fenced(printed)}\n```"


def _fenced(text: str) -> str:
    return text.replace("```", "'''")


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body))


def render_html(
    table: Table, found: Sequence[Shown], versions: Mapping[str, str], seconds: float
) -> str:
    """The whole table on one page."""
    environment = Environment(
        loader=PackageLoader("residcheck.regress", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "names": NAMES,
        "symbols": SYMBOLS,
        "kind_of": kind_of,
        "in_words": in_words,
        "cells_of": cells_of,
        "head": _HEAD,
    }
    return environment.get_template("page.html.j2").render(
        table=table,
        newest=[one for one in found if one.finding.newest],
        fixed=[one for one in found if not one.finding.newest],
        versions=versions,
        seconds=seconds,
        date=_today(),
    )
