"""What a comparison of two runs looks like: a page, and a summary in Markdown."""

from __future__ import annotations

from residcheck.comparison import Compared, Row, Sameness
from residcheck.comparison.bisect import Bisection
from residcheck.curves import summary
from residcheck.report.changes import Change, Changes, Listed
from residcheck.report.chart import Chart
from residcheck.report.markdown import pipe_table, plain
from residcheck.report.overlay import beyond, overlay

COLUMNS = ("worst at", "first", "second", "apart by", "settled by")
TONES = {
    Sameness.DIFFERENT: "refuted",
    Sameness.MISSING: "not-applicable",
    Sameness.NOISE: "inconclusive",
    Sameness.SAME: "supported",
}
SYMBOLS = {
    Sameness.DIFFERENT: "✗",
    Sameness.MISSING: "-",
    Sameness.NOISE: "~",
    Sameness.SAME: "✓",
}


def cells(row: Row) -> tuple[str, ...]:
    """What is said of a row beside its name and verdict, in the order of :data:`COLUMNS`."""
    return (row.place, *row.values, row.distance, row.note)


def page_of(compared: Compared) -> Changes:
    """The page: what is not the same with the curves overlaid, then every quantity."""
    one, other = compared.labels
    return Changes(
        title=f"{one} against {other}",
        summary=f"{compared.summary}; {compared.agreed}.",
        sides=tuple(zip(_apart(compared.labels), compared.runs, strict=True)),
        changes=tuple(_change(compared, r) for r in compared.told if r.sameness.value != "same"),
        columns=COLUMNS,
        rows=tuple(
            Listed(row.name, row.sameness.value, TONES[row.sameness], cells(row))
            for row in compared.rows
        ),
    )


def markdown(compared: Compared, longest: int = 40) -> str:
    """A job summary: what is not the same, worst first, at most ``longest`` rows of it."""
    one, other = (plain(label) for label in compared.labels)
    blocks = [f"## residcheck: {one} against {other}", f"{plain(compared.summary)}."]
    rows = [row for row in compared.rows if row.sameness is not Sameness.SAME]
    if rows:
        head = ["quantity", "verdict", *COLUMNS]
        body = [
            [plain(row.name), f"{SYMBOLS[row.sameness]} {row.sameness.value}"]
            + [plain(cell) for cell in cells(row)]
            for row in rows[:longest]
        ]
        blocks.append(pipe_table([head, *body]))
    if len(rows) > longest:
        blocks.append(f"{len(rows) - longest} more are in the report.")
    return "\n\n".join(blocks) + "\n"


def bisection_markdown(found: Bisection) -> str:
    """The answer, a row for each version that was measured, and the difference in full."""
    rows = [["version", "verdict", "worst"]]
    rows += [[plain(p.version), p.word, plain(p.said)] for p in found.probes]
    said = f"## residcheck: bisecting {plain(found.package)}\n\n{plain(found.answer)}\n\n"
    said += pipe_table(rows) + "\n"
    shown = found.different
    if shown is not None and shown.compared is not None:
        said += "\n" + markdown(shown.compared)
    return said


def _change(compared: Compared, row: Row) -> Change:
    kind = row.sameness
    text = f"{row.place}: {row.values[0]} -> {row.values[1]}, {row.distance}"
    if row.comparison is None:
        text = f"{row.values[0]} -> {row.values[1]}"
    if row.note:
        text += f"; {row.note}"
    return Change(row.name, kind.value, TONES[kind], text, _charts(compared, row))


def _charts(compared: Compared, row: Row) -> tuple[Chart, ...]:
    if row.comparison is None:
        return ()
    one, other = (summary(run[row.name]) for run in compared.runs)
    labels = _apart(compared.labels)
    drawn = (overlay(one, other, labels, row.comparison), beyond(row.comparison))
    return tuple(chart for chart in drawn if chart is not None)


def _apart(labels: tuple[str, str]) -> tuple[str, str]:
    """Labels that are told apart even where both sides are called alike."""
    one, other = labels
    return (f"first: {one}", f"second: {other}") if one == other else labels
