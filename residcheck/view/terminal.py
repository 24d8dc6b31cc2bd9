"""What the command prints: the tokens with the largest and the smallest values."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from residcheck.view.digits import cosine, number
from residcheck.view.layers import name
from residcheck.view.viewing import View

_SHOWN = 5


def show(view: View) -> None:
    """A small table of the extremes."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    table = Table("token")
    for column in ("position", "layer", "dot product", "cosine"):
        table.add_column(column, justify="right", no_wrap=True)
    for largest in (True, False):
        for found in view.extremes(_SHOWN, largest=largest):
            place = (str(found.position), name(found.layer))
            values = (number(found.dot), cosine(found.cosine))
            table.add_row(escape(found.label), *place, *values)
        table.add_section()
    console.print(f"[bold]{escape(f'{view.model} along {view.direction.title}')}[/]")
    for note in view.direction.notes:
        console.print(escape(note))
    console.print(table)
    console.print("[dim]each token at the layer where it is strongest; position 0 left out[/]")
