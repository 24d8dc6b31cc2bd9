"""What is said of the error rates of the rules: tables, and sentences for what misses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from proof.page import table
from proof.rules_cases import BOUNDARY, FALSE, TRUE, Case
from proof.rules_cells import RESAMPLES, Cell

from residcheck.stats import LEVEL, Outcome

WRONG = {
    TRUE: (Outcome.REFUTED,),
    FALSE: (Outcome.SUPPORTED,),
    BOUNDARY: (Outcome.SUPPORTED, Outcome.REFUTED),
}
"""Answers that are errors; on the boundary both are, if they are given often."""
ERRORS = 0.05
COVERAGE_OFF = 0.02
CHANCE = 2.0  # standard errors that a share may be off by chance
HEADER = (
    "rule", "planted", "truth", "supported", "refuted", "inconclusive", "most errors at",
    "coverage", "80 % found from",
)  # fmt: skip


Held = dict[str, list[bool]]


def joined(parts: Iterable[Held]) -> Held:
    """The answers of all parts, by estimate."""
    held: Held = {}
    for part in parts:
        for name, hits in part.items():
            held.setdefault(name, []).extend(hits)
    return held


@dataclass(frozen=True)
class Row:
    """One case and truth over its sizes.

    ``power`` is the effect closest to the boundary that is found in four of five, in words.
    """

    case: Case
    truth: str
    cells: tuple[Cell, ...]
    power: str = ""

    def errors(self, cell: Cell) -> float:
        return max(cell.share(outcome) for outcome in WRONG[self.truth])

    @property
    def worst(self) -> Cell:
        return max(self.cells, key=self.errors)

    @property
    def coverage(self) -> Held:
        """Of each estimate: whether its intervals hold the truth."""
        return joined(cell.held for cell in self.cells)


def section(rows: Sequence[Row], repetitions: int, seed: int, covered: int) -> str:
    """The section of the page."""
    parts = [
        "## Error rates of the decision rules",
        _method(repetitions, seed, covered),
        table(HEADER, (_cells(row) for row in rows)),
        "### What misses its target",
        "\n".join(f"- {line}" for line in [*_errors(rows), *_coverages(rows)])
        or "Nothing: all errors and coverages are within their targets.",
        _ranges(rows),
    ]
    return "\n\n".join(filter(None, parts))


def _method(repetitions: int, seed: int, covered: int) -> str:
    error = np.sqrt(ERRORS * (1 - ERRORS) / repetitions)
    return f"""`nox -s calibrate` (seed {seed}; {repetitions} repetitions of every cell, so that a \
share of 5 % is known to {error:.1%}; {RESAMPLES} resamples of the prompts, where claims take \
1999). Every repetition draws a model and prompts and puts the claim itself to them, the choice \
of the window included.

Noise has the sizes that SmolLM2-135M and Gemma 3 270M have on the shipped passages. A model's \
curve is jagged: its steps stray by six tenths of the growth per layer (real: 0.04 at a rate of \
0.09 a layer, 0.16 at 0.23), the same for all prompts. A prompt lies off it by 0.02, by a random \
walk of steps of 0.01 (correlated by 0.5 between neighbours) and by 0.012 a layer, all in logs \
and the steps of Student's t with 4 degrees of freedom: rates vary by 0.004 and steps by 0.02 \
between prompts, as the real ones do. Tokens vary by 0.17, by steps of 0.035 and 0.05 a layer; \
a prompt has 24 of them (8 for `correlated-addition`). What sublayers write strays by 0.3 from \
its line and by 0.07 a layer and prompt; matrices by 0.2, neighbours correlated by 0.4; \
horizons by 10 %.

Sizes are prompts x layers; where a window is chosen, half of the prompts judge it. Claims that \
need 16 prompts answer nothing on 8. Shares are in per cent, least to most over the sizes. \
Coverage is of nominal {LEVEL:.0%} intervals in the first {covered} repetitions of a cell, over \
the sizes, least to most over the estimates whose value over all prompts is known. The last \
column is the effect closest to the boundary of which four of five are found, at 16 prompts x \
24 layers (at the case's first size if it has no such). Rules about single tokens and \
about decays are slow, and have a third of the repetitions."""


def _cells(row: Row) -> list[str]:
    shares = [
        _range([cell.share(outcome) for cell in row.cells])
        for outcome in (Outcome.SUPPORTED, Outcome.REFUTED, Outcome.INCONCLUSIVE)
    ]
    rates = [float(np.mean(hits)) for hits in row.coverage.values()]
    planted = f"{row.case.effect} {row.cells[0].effect:g}"
    worst = row.worst.size if row.errors(row.worst) else ""
    covered = _range(rates) if rates else ""
    return [f"`{row.case.name}`", planted, row.truth, *shares, worst, covered, row.power]


def _range(shares: list[float]) -> str:
    low, high = (f"{100 * share:.0f}" for share in (min(shares), max(shares)))
    return low if low == high else f"{low} to {high}"


def _errors(rows: Sequence[Row]) -> list[str]:
    lines = []
    for row in rows:
        for outcome in WRONG[row.truth]:
            cell = max(row.cells, key=lambda c: c.share(outcome))
            share, n = cell.share(outcome), cell.repetitions
            if share <= ERRORS:
                continue
            chance = share <= ERRORS + CHANCE * np.sqrt(ERRORS * (1 - ERRORS) / n)
            lines.append(
                f"`{row.case.name}`, {row.truth} ({row.case.effect} {cell.effect:g}): "
                f"{outcome.value} in {share:.1%} at {cell.size}"
                + (", which chance allows for." if chance else ".")
            )
    return lines


def _coverages(rows: Sequence[Row]) -> list[str]:
    """Estimates that cover too little or too much, over all truths of a case."""
    lines = []
    for case, own in _by_case(rows):
        for name, hits in joined(row.coverage for row in own).items():
            n, rate = len(hits), float(np.mean(hits))
            allowed = COVERAGE_OFF + CHANCE * np.sqrt(LEVEL * (1 - LEVEL) / n)
            if abs(rate - LEVEL) > allowed:
                way = "too little" if rate < LEVEL else "more than it says"
                lines.append(f"`{case}`, {name}: covers {way}, {rate:.1%} of {n}.")
    return lines


def _ranges(rows: Sequence[Row]) -> str:
    """How often ranges of resamples hold the value over all prompts, in a sentence."""
    shares = []
    for case, own in _by_case(rows):
        for hits in joined(cell.ranged for row in own for cell in row.cells).values():
            shares.append(f"{np.mean(hits):.0%} for `{case}`")
    return (
        "An AIC difference is no property of prompts: its range over their resamples, which "
        "decides, is no confidence interval, and is judged by the errors above. It held the "
        f"value over all prompts in {', '.join(shares)}."
        if shares
        else ""
    )


def _by_case(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    return [(name, list(own)) for name, own in groupby(rows, lambda row: row.case.name)]


def every_cell(rows: Sequence[Row]) -> list[list[object]]:
    """All cells, for a file: a header and one line each."""
    header = ["rule", "effect", "planted", "truth", "prompts", "layers", "repetitions"]
    lines: list[list[object]] = [[*header, *(o.value for o in Outcome), "coverage"]]
    for row in rows:
        for cell in row.cells:
            held = "; ".join(f"{k}: {np.mean(v):.3f} of {len(v)}" for k, v in cell.held.items())
            shares = [f"{cell.share(outcome):.4f}" for outcome in Outcome]
            size = [cell.prompts, cell.layers, cell.repetitions]
            case = [row.case.name, row.case.effect, cell.effect, row.truth]
            lines.append([*case, *size, *shares, held])
    return lines
