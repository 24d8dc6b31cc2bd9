"""What ``compare`` and ``review`` show in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from residcheck.comparison import Compared, Row, Sameness
from residcheck.report.compared import COLUMNS, SYMBOLS, cells

_STYLES = {
    Sameness.DIFFERENT: "red",
    Sameness.MISSING: "magenta",
    Sameness.NOISE: "yellow",
    Sameness.SAME: "green",
}


def show_compared(console: Console, compared: Compared) -> None:
    """Every quantity, worst first, and one line of what came out."""
    for label, run in zip(compared.labels, compared.runs, strict=True):
        model, made = run.model, run.environment
        versions = ", ".join(
            f"{name} {made[name]}" for name in ("transformer_lens", "transformers") if name in made
        )
        console.print(
            f"[bold]{escape(label)}[/]: {escape(model.id)}, {model.dtype} on {model.device}, "
            f"{model.backend} ({model.processing} weights); {versions}",
            soft_wrap=True,
        )
    table = Table()
    table.add_column("quantity", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column)
    for row in compared.told:
        table.add_row(*_cells(row))
    console.print(table)
    console.print(f"{compared.summary}; {compared.agreed}")


def _cells(row: Row) -> list[str]:
    kind = row.sameness
    verdict = f"[{_STYLES[kind]}]{SYMBOLS[kind]} {kind.value}[/]"
    return [escape(row.name), verdict, *map(escape, cells(row))]
