"""A page of curves that changed: of two runs, or of a run and its snapshots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from residcheck.curves import Run
from residcheck.names import QUANTITIES, STATISTICS
from residcheck.report import plots
from residcheck.report.chart import Chart
from residcheck.report.page import Plot, facts, plot, provenance, templates


@dataclass(frozen=True)
class Change:
    """One curve on the page: ``verdict`` in words and by tone, and what there is to draw.

    ``tone`` is one of the page's classes: ``refuted`` (red), ``inconclusive``, ``supported``,
    ``not-applicable`` (grey).
    """

    name: str
    verdict: str
    tone: str
    text: str
    charts: tuple[Chart, ...] = ()

    @property
    def meaning(self) -> str:
        """What the curve is, where its name does not say it."""
        known = QUANTITIES.get(self.name) or STATISTICS.get(self.name)
        return known.meaning if known else ""


@dataclass(frozen=True)
class Listed:
    """A row of the page's table: cells of text after a name and a verdict."""

    name: str
    verdict: str
    tone: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Changes:
    """All of the page.

    Args:
        sides: what is compared, each with the run that describes it.
        columns: what the cells of the rows are.
    """

    title: str
    summary: str
    sides: tuple[tuple[str, Run], ...]
    changes: tuple[Change, ...]
    columns: tuple[str, ...] = ()
    rows: tuple[Listed, ...] = ()


def render(page: Changes) -> str:
    """The page as HTML, with its style and plots inside it."""
    drawn = [(change, _plots(change.charts, n)) for n, change in enumerate(page.changes)]
    template = templates().get_template("changes.html.j2")
    return template.render(page=page, changes=drawn, facts=facts, provenance=provenance)


def _plots(charts: Sequence[Chart], number: int) -> list[Plot]:
    return [
        plot("", chart, f"plot-{number}-{i}", plots.frames([chart])[0])
        for i, chart in enumerate(charts)
    ]
