"""Two runs quantity by quantity: every curve within its tolerance, every fact exactly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from math import isfinite
from typing import Any

from residcheck.compare import Comparison
from residcheck.curves import ModelInfo, Run
from residcheck.errors import ExitStatus
from residcheck.names import EVERYTHING, OF_KERNEL, OF_PROCESSING
from residcheck.snapshot import compare_documents, curve_document

SCHEMA = "residcheck.comparison/1"
FACTS = ("model_type", "n_layers", "d_model", "n_heads", "d_mlp", "norm", "parallel", "gated",
         "activation")  # fmt: skip
"""What a model is built like: the same whatever library says it."""


class Sameness(Enum):
    """What became of one quantity from one run to the other, worst first."""

    DIFFERENT = "different"
    MISSING = "missing"
    NOISE = "noise"
    SAME = "same"

    @property
    def passes(self) -> bool:
        return self in (Sameness.SAME, Sameness.NOISE)


@dataclass(frozen=True)
class Row:
    """One quantity of two runs.

    Args:
        place: where it is worst: ``mean at layer 3``; empty for a fact.
        one: its value there in the first run.
        other: the same in the second.
        size: how far they are apart, relative or absolute as the quantity is compared.
        bound: how far they may be.
        note: what settled the verdict, or why nothing did.
        comparison: of a curve, all that left its bounds.
    """

    name: str
    sameness: Sameness
    place: str = ""
    one: float | str = ""
    other: float | str = ""
    size: float = 0.0
    bound: float = 0.0
    note: str = ""
    comparison: Comparison | None = None

    @property
    def margin(self) -> float:
        """Size over bound; 0 for a fact."""
        return self.comparison.margin if self.comparison is not None else 0.0

    @property
    def values(self) -> tuple[str, str]:
        """What the two runs have there, as people read it."""
        one, other = (v if isinstance(v, str) else f"{v:.7g}" for v in (self.one, self.other))
        return one, other

    @property
    def distance(self) -> str:
        """How far they are apart against how far they may be; empty for a fact."""
        if self.comparison is None:
            return ""
        size = f"{self.size:.2e}" if isfinite(self.size) else "NaN on one side"
        return f"{size} (bound {self.bound:.0e})"

    @property
    def is_fact(self) -> bool:
        return self.name not in EVERYTHING


@dataclass(frozen=True)
class Compared:
    """Two runs, what they are called, and every quantity of theirs, worst first."""

    runs: tuple[Run, Run]
    labels: tuple[str, str]
    rows: tuple[Row, ...]

    def of(self, sameness: Sameness) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.sameness is sameness)

    @property
    def status(self) -> ExitStatus:
        if all(row.sameness.passes for row in self.rows):
            return ExitStatus.OK
        return ExitStatus.REFUTED_OR_DRIFTED

    @property
    def worst(self) -> Row | None:
        """The first of what is not the same; None if all is the same or noise."""
        return next((row for row in self.rows if not row.sameness.passes), None)

    @property
    def told(self) -> tuple[Row, ...]:
        """All rows but the facts that are the same, which :attr:`agreed` counts."""
        return tuple(r for r in self.rows if not (r.is_fact and r.sameness is Sameness.SAME))

    @property
    def agreed(self) -> str:
        """How many exact facts are the same."""
        return f"{len(self.rows) - len(self.told)} exact facts (shapes, presence, constants) agree"

    @property
    def summary(self) -> str:
        """``2 different, 1 noise, 76 same``."""
        counts = [(len(self.of(kind)), kind.value) for kind in Sameness]
        return ", ".join(f"{count} {name}" for count, name in counts if count)


def document(compared: Compared) -> dict[str, Any]:
    """Verdicts, sizes and provenance as plain data; numbers that are not finite become null."""
    return {
        "schema": SCHEMA,
        "status": int(compared.status),
        "summary": compared.summary,
        "runs": [
            {
                "label": label,
                "model": asdict(run.model),
                "prompts": asdict(run.prompts),
                "environment": dict(run.environment),
                "seeds": dict(run.seeds),
            }
            for label, run in zip(compared.labels, compared.runs, strict=True)
        ],
        "quantities": [_plain(row) for row in compared.rows],
    }


def _plain(row: Row) -> dict[str, Any]:
    said: dict[str, Any] = {"name": row.name, "verdict": row.sameness.value, "place": row.place}
    for name in ("one", "other", "size", "bound"):
        value = getattr(row, name)
        said[name] = value if isinstance(value, str) or isfinite(value) else None
    return said | {"note": row.note}


def rows_of(one: Run, other: Run) -> tuple[Row, ...]:
    """Every quantity of two runs that may be compared, without a second opinion in float64.

    A curve that one run lacks is missing, but for what raw weights cannot have. What the
    attention kernel chooses is left out where the two had other kernels or libraries.
    """
    return in_order([*_facts(one, other), *_curves(one, other)])


def in_order(rows: list[Row]) -> tuple[Row, ...]:
    """Worst first: by verdict, then by size over bound."""
    kinds = list(Sameness)
    return tuple(sorted(rows, key=lambda row: (kinds.index(row.sameness), -row.margin)))


def _facts(one: Run, other: Run) -> Iterator[Row]:
    yield from _same(_built(one.model), _built(other.model))
    if one.shapes and other.shapes:  # a run of an older version says nothing of them
        yield from _same(_named_shapes(one), _named_shapes(other))


def _built(model: ModelInfo) -> dict[str, str]:
    return {name: str(getattr(model, name)) for name in FACTS}


def _named_shapes(run: Run) -> dict[str, str]:
    return {f"shape of {name}": shape for name, shape in run.shapes.items()}


def _same(one: Mapping[str, str], other: Mapping[str, str]) -> Iterator[Row]:
    for name in dict.fromkeys((*one, *other)):
        a, b = one.get(name, "none"), other.get(name, "none")
        kind = Sameness.SAME if a == b else Sameness.DIFFERENT
        if a != b and "none" in (a, b):
            kind = Sameness.MISSING
        yield Row(name, kind, one=a, other=b)


def _curves(one: Run, other: Run) -> Iterator[Row]:
    alike = _kernel(one) == _kernel(other)
    for name in (name for name in EVERYTHING if alike or name not in OF_KERNEL):
        there = [name in run.curves for run in (one, other)]
        if all(there):
            yield _curve(name, curve_document(one, name), curve_document(other, name))
        elif any(there):
            present, lacking = (one, other) if there[0] else (other, one)
            if name in OF_PROCESSING and lacking.model.processing == "raw":
                continue
            why = lacking.model.missing.get(name, "it was not measured")
            said = ("measured", "missing") if present is one else ("missing", "measured")
            yield Row(name, Sameness.MISSING, "", *said, note=why)


def _kernel(run: Run) -> tuple[str | None, ...]:
    """What decides what masked positions hold."""
    made = (run.environment.get(name) for name in ("torch", "transformers", "transformer_lens"))
    return (run.model.attention, run.model.backend, run.model.device, *made)


def _curve(name: str, stored: Mapping[str, Any], measured: Mapping[str, Any]) -> Row:
    found = compare_documents(dict(stored), dict(measured))
    kind = Sameness.SAME if found.same else Sameness.DIFFERENT
    worst = found.closest
    if worst is None:  # a curve without numbers
        return Row(name, kind, comparison=found)
    place = found.name(worst)
    return Row(
        name, kind, place, worst.stored, worst.measured, worst.size, worst.bound, comparison=found
    )
