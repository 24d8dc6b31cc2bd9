"""What ``compare`` and ``review`` show in the terminal."""

from __future__ import annotations

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from residcheck.compare import BARS
from residcheck.comparison import Compared, Row, Sameness
from residcheck.comparison.bisect import Bisection
from residcheck.curves import Floats
from residcheck.report.compared import COLUMNS, SYMBOLS, cells
from residcheck.report.reviewed import overlaid
from residcheck.reviewing import Proposal

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
    columns = COLUMNS if any(row.note for row in compared.told) else COLUMNS[:-1]
    table = Table()
    for column in ("quantity", "verdict", *columns):
        table.add_column(column, no_wrap=column in ("quantity", "verdict"))
    for row in compared.told:
        table.add_row(*_cells(row, len(columns)))
    console.print(table)
    console.print(f"{compared.summary}; {compared.agreed}")


def _cells(row: Row, columns: int) -> list[str]:
    kind = row.sameness
    verdict = f"[{_STYLES[kind]}]{SYMBOLS[kind]} {kind.value}[/]"
    return [escape(row.name), verdict, *map(escape, cells(row)[:columns])]


def show_bisection(console: Console, found: Bisection) -> None:
    """The versions that were measured, the answer, and the difference in full."""
    shown = found.different
    if shown is not None and shown.compared is not None:
        show_compared(console, shown.compared)
    table = Table()
    for column in (found.package, "verdict", "worst difference"):
        table.add_column(column, no_wrap=column != "worst difference")
    styles = {True: "green", False: "red", None: "dim"}
    for probe in found.probes:
        verdict = f"[{styles[probe.same]}]{probe.word}[/]"
        table.add_row(escape(probe.version), verdict, escape(probe.said))
    console.print(table)
    console.print(f"[bold]{escape(found.answer)}[/]", soft_wrap=True)


def show_proposal(console: Console, proposal: Proposal) -> None:
    """What a run would change of one snapshot, with a small plot of both."""
    console.print(f"[bold]{escape(proposal.name)}[/] [red]{proposal.kind.value}[/]")
    console.print(f"  {escape(proposal.message)}", soft_wrap=True)
    chart = overlaid(proposal)
    if chart is None:
        return
    low, high = chart.extent
    width = max(len(series.name) for series in chart.series)
    for series in chart.series:
        bars = sparkline(series.values, low, high, chart.log)
        console.print(f"  {series.name:{width}}  {bars}", soft_wrap=True)
    console.print(f"  from {low:.4g} to {high:.4g}, by {chart.axis.name}")


def sparkline(values: Floats, low: float, high: float, log: bool) -> str:
    """A bar for each value between ``low`` and ``high``; a space where there is none."""
    if log:
        values, low, high = np.log(values), np.log(low), np.log(high)
    span = (high - low) or 1.0
    with np.errstate(invalid="ignore"):
        heights = np.clip((values - low) / span * len(BARS), 0, len(BARS) - 1)
    return "".join(BARS[int(h)] if np.isfinite(h) else " " for h in heights)
