"""What people see of a sweep in the terminal: the plan, its course, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.markup import escape
from rich.progress import TaskID, TimeElapsedColumn
from rich.table import Table

from residcheck.console import STYLES, show_horizons, terminal
from residcheck.course import Bars
from residcheck.report.outline import Section, count, outline
from residcheck.sweep.estimate import Estimate
from residcheck.sweep.outcome import Outcome
from residcheck.sweep.store import Entry


class Course(Bars):
    """A sweep as it goes: a bar for all models and one for each under way, or lines in a log."""

    def __init__(self, entries: Sequence[Entry], finished: int) -> None:
        super().__init__(TimeElapsedColumn())
        self._done, self._total = finished, len(entries)
        self._all = self.bars.add_task("models", total=self._total, completed=finished)
        self._under_way: dict[Entry, TaskID] = {}

    def began(self, entry: Entry) -> None:
        self._under_way[entry] = self.bars.add_task(escape(entry.text), total=None)
        if not self.drawn:
            self.say(f"measuring {escape(entry.text)}")

    def ended(self, entry: Entry) -> None:
        if entry in self._under_way:
            self.bars.remove_task(self._under_way.pop(entry))
        self._done += 1
        self.bars.update(self._all, completed=self._done)
        status, name = entry.status, escape(entry.text)
        so_far = f"[dim]({self._done} of {self._total})[/]"
        if status is None or status.state == "failed":
            message = "" if status is None else f": {escape(status.message)}"
            self.say(f"[red]failed[/]   {name}{message} {so_far}")
        else:
            self.say(f"[green]finished[/] {name} in {status.seconds:,.0f} s {so_far}")

    def waits(self, entries: Sequence[Entry]) -> None:
        names = ", ".join(escape(entry.text) for entry in entries)
        self.say(f"waiting for what another sweep measures: {names}")


def show_plan(entries: Sequence[Entry], estimates: Sequence[Estimate], where: str) -> None:
    """What a sweep would do: a row for each model."""
    table = Table()
    for name in ("model", "state", "device", "parameters", "memory, up to"):
        numeric = name in ("parameters", "memory, up to")
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for entry, estimate in zip(entries, estimates, strict=True):
        size, memory = escape(estimate.why), ""
        if estimate.size is not None and estimate.memory is not None:
            size, memory = _short(estimate.size.parameters), f"{estimate.memory / 2**30:.1f} GiB"
        spec = entry.spec
        how = f"{spec.device}, {spec.dtype}"
        table.add_row(escape(entry.text), entry.state, how, size, memory)
    console = terminal()
    console.print(table)
    console.print(escape(where), soft_wrap=True)


def _short(parameters: int) -> str:
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if parameters >= size:
            return f"{parameters / size:.3g}{letter}"
    return str(parameters)


def show_outcome(outcome: Outcome) -> None:
    """Models x claims as signs, the horizons beside each other, and what failed."""
    console = terminal()
    if outcome.results:
        _show_matrix(console, outcome)
        show_horizons(outcome.results)
    for failure in outcome.failures:
        hint = f"\n  {escape(failure.hint)}" if failure.hint else ""
        console.print(
            f"[red]not measured:[/] {escape(failure.model)}: {escape(failure.message)}{hint}",
            soft_wrap=True,
        )
    parts = [f"{count(len(outcome.results), 'model')} finished"]
    parts += [f"{len(outcome.failures)} failed"] if outcome.failures else []
    parts += [f"{outcome.open} to do"] if outcome.open else []
    console.print(", ".join(parts))


def _show_matrix(console: Console, outcome: Outcome) -> None:
    """A row for each model, a column for each family of claims, a sign for each claim."""
    page = outline(outcome.results)
    ordered = sorted(page.sections, key=lambda section: section.claim.family)
    families = [
        (name, list(sections)) for name, sections in groupby(ordered, lambda s: s.claim.family)
    ]
    table = Table()
    table.add_column("model", overflow="fold")
    for name, _ in families:
        table.add_column(name, no_wrap=True)
    for i, (label, _) in enumerate(page.models):
        table.add_row(escape(label), *(_signs(sections, i) for _, sections in families))
    console.print(table)
    for name, sections in families:
        console.print(f"{name}: {', '.join(section.claim.id for section in sections)}")
    console.print(", ".join(f"[{style}]{sign}[/] {o.value}" for o, (sign, style) in STYLES.items()))


def _signs(sections: Sequence[Section], model: int) -> str:
    """The verdicts of one model, in the order of the claims; a gap where there is none."""
    signs = []
    for section in sections:
        cell = section.cells[model]
        if cell is None:
            signs.append(" ")
            continue
        sign, style = STYLES[cell.judged.verdict.outcome]
        signs.append(f"[{style}]{sign}[/]")
    return "".join(signs)
