"""Trained controls in the terminal, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.markup import escape
from rich.table import Table

from residcheck.console import STYLES, terminal
from residcheck.controls import tables
from residcheck.controls.comparison import Comparison
from residcheck.controls.rates import rate
from residcheck.intervention import provenance
from residcheck.result import Judged
from residcheck.verdict import estimate_json

SCHEMA = "residcheck.controls/1"


def show(found: Comparison, judged: Sequence[Judged]) -> None:
    """Runs, arms, where growth is stored, and the verdicts."""
    console = terminal()
    console.print(f"[bold]{escape(found.zoo.name)}[/]: {escape(tables.subject(found))}")
    for line in tables.warnings(found):
        console.print(f"[yellow]{escape(line)}[/]")
    for one in tables.tables(found):
        table = Table(title=one.title, title_justify="left", title_style="bold",
                      caption=one.note, caption_justify="left")  # fmt: skip
        for number, name in enumerate(one.head):
            words = number < one.left
            table.add_column(name, no_wrap=words, justify="left" if words else "right")
        for row in one.rows:
            table.add_row(*map(escape, row))
        console.print(table)
    console.print(escape(tables.noise(found)))
    console.print(_verdicts(judged))


def _verdicts(judged: Sequence[Judged]) -> Table:
    table = Table(title="Family H", title_justify="left", title_style="bold")
    table.add_column("claim", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("measured (95 % interval over seeds)")
    table.add_column("remarks", ratio=1)
    for one in judged:
        symbol, style = STYLES[one.verdict.outcome]
        measured = "" if one.verdict.effect is None else str(one.verdict.effect)
        label = f"[{style}]{symbol} {one.label}[/]"
        table.add_row(one.claim.id, label, escape(measured), escape(one.verdict.note))
    return table


def document(found: Comparison, judged: Sequence[Judged]) -> str:
    """All numbers as JSON; what is not finite becomes null."""
    said: dict[str, Any] = {
        "schema": SCHEMA,
        "provenance": provenance(found.zoo),
        "window": [found.zoo.scale.window.first, found.zoo.scale.window.last],
        "unfinished": list(found.zoo.unfinished),
        "runs": [
            {
                "arm": arm,
                "seed": seed,
                "rate": estimate_json(rate(run)),
                "divisors": run.measured.divisors.tolist(),
                "values": dict(found.values[arm, seed]),
            }
            for (arm, seed), run in found.runs.items()
        ],
        "layouts": {question: asdict(layout) for question, layout in found.layouts.items()},
        "differences": {
            arm: {
                quantity: estimate_json(found.difference(arm, quantity))
                for quantity in next(iter(found.values.values()))
            }
            for arm in found.all_arms[1:]
        },
        "verdicts": [
            one.verdict.to_json()
            | {
                "statement": one.claim.statement,
                "source": str(one.claim.source),
                "recorded": None if one.recorded is None else one.recorded.value,
                "fails": one.fails,
            }
            for one in judged
        ],
    }
    return json.dumps(said, indent=1, allow_nan=False) + "\n"
