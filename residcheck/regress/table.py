"""The run of a matrix as one object: cells, what is shown of each, findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from residcheck.errors import ResidcheckError
from residcheck.progress import Progress, silent
from residcheck.regress.causes import known
from residcheck.regress.cells import LIBRARIES, Cell, Library
from residcheck.regress.conventions import is_refusal
from residcheck.regress.findings import LOAD, Finding, findings, shown
from residcheck.regress.judge import Judgement
from residcheck.regress.matrix import Matrix

SYMBOLS = {
    "same": "=",
    "noise": "~",
    "different": "≠",
    "missing": "∅",
    "cannot load": "✗",
    "unsupported": "·",
}


@dataclass(frozen=True)
class Table:
    """What a matrix came to.

    ``cells`` has what is shown of every cell; ``unjudged`` says of models why there is no
    reference to judge them by.
    """

    versions: Mapping[Library, Sequence[str]]
    models: Sequence[str]
    cells: Mapping[Cell, Judgement]
    judged: int
    findings: Sequence[Finding]
    unjudged: Mapping[str, str] = field(default_factory=dict)

    @property
    def libraries(self) -> list[Library]:
        return [library for library in LIBRARIES if self.versions.get(library)]

    def at(self, library: Library, version: str, model: str) -> Judgement | None:
        return self.cells.get(Cell(library, version, model))

    def counts(self) -> dict[str, int]:
        """How many cells there are of each kind."""
        kinds = [kind_of(one) for one in self.cells.values()]
        return {name: kinds.count(name) for name in SYMBOLS}


def tabulate(matrix: Matrix, progress: Progress = silent) -> Table:
    """Judge every cell that has been run."""
    judged: dict[Cell, Mapping[str, Sequence[Judgement]]] = {}
    unjudged: dict[str, str] = {}
    for model in matrix.models:
        try:
            matrix.reference(model)
        except ResidcheckError as error:
            unjudged[model] = error.message
    cells = [
        cell
        for cell in matrix.cells
        if cell.model not in unjudged
        # The reference is among the cells whether or not it was asked for.
        and cell.version in matrix.versions.get(cell.library, ())
    ]
    for done, cell in enumerate(cells):
        progress("judging", done, len(cells))
        judged[cell] = matrix.judged(cell)
    return Table(
        matrix.versions,
        [model for model in matrix.models if model not in unjudged],
        {cell: shown(cell, said) for cell, said in judged.items()},
        sum(len(said) for said in judged.values()),
        findings(judged, matrix.versions, known()),
        unjudged,
    )


def kind_of(one: Judgement) -> str:
    """The verdict, ``unsupported`` where a library says so itself."""
    if one.quantity == LOAD and is_refusal(one.note):
        return "unsupported"
    return one.verdict


def in_words(one: Judgement) -> str:
    """What a cell of the table says."""
    kind = kind_of(one)
    if kind == "same":
        return kind
    if kind in ("cannot load", "unsupported"):
        return f"{kind}: {one.note.splitlines()[0][:120]}"
    where = f" at layer {one.layer}" if one.layer >= 0 else ""
    if one.verdict == "missing":
        return f"missing: {one.quantity}{where}"
    return f"{kind}: {one.quantity}{where}, {size_of(one)}"


def size_of(one: Judgement) -> str:
    """How far off, and what was raised or noted."""
    if one.note and one.size == float("inf"):
        return one.note.splitlines()[0][:160]
    double = "" if one.double != one.double else f" ({one.double:.1e} in float64)"
    return f"{one.size:.1e}{double}"
