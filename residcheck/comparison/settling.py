"""Noise or bug? What differs is measured again in float64, where rounding all but vanishes.

A difference beyond the bound of its dtype and within that of float64 was rounding: the
bounds of float64 are ten to a hundred times narrower than those of float32. What is still
beyond float64's is in what was computed. A run from a file is first measured again as it
was: where its own numbers do not come out again, float64 could only say that they were
wrong then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import isnan

from residcheck.comparison.quantities import Compared, Row, Sameness, in_order, rows_of
from residcheck.comparison.sides import Side
from residcheck.curves import Run
from residcheck.errors import ResidcheckError
from residcheck.progress import Progress, silent

DOUBLE = "float64"


def compare(one: Side, other: Side, progress: Progress = silent) -> Compared:
    """Every quantity of two sides, with what differs settled in float64 where it can be."""
    rows = rows_of(one.run, other.run)
    labels = (one.label, other.label)
    open_ = [r for r in rows if r.sameness is Sameness.DIFFERENT and not r.is_fact]
    if open_:
        settled = _settled(one, other, open_, progress)
        rows = in_order([settled.get(row.name, row) for row in rows])
    return Compared((one.run, other.run), labels, rows)


def _settled(one: Side, other: Side, rows: list[Row], progress: Progress) -> dict[str, Row]:
    if {one.run.model.dtype, other.run.model.dtype} == {DOUBLE}:
        return {row.name: replace(row, note="both are in float64") for row in rows}
    names = [row.name for row in rows]
    found: dict[str, Row] = {}
    try:
        for side in (side for side in (one, other) if not side.fresh):
            again = side.again(side.run.model.dtype, names, progress)
            note = f"measured again as it was, {side.label} has other numbers: {{}}"
            found |= _still_different(rows, rows_of(side.run, again), note)
        left = [row for row in rows if row.name not in found]
        if not left:
            return found
        names = [row.name for row in left]
        first, second = (_in_double(side, names, progress) for side in (one, other))
    except ResidcheckError as error:
        note = f"could not be settled in float64: {error.message}"
        return {row.name: found.get(row.name, replace(row, note=note)) for row in rows}
    double = {row.name: row for row in rows_of(first, second)}
    return found | {row.name: _by_double(row, double) for row in left}


def _in_double(side: Side, names: list[str], progress: Progress) -> Run:
    if side.run.model.dtype == DOUBLE:
        return side.run
    return side.again(DOUBLE, names, progress)


def _still_different(rows: list[Row], again: tuple[Row, ...], note: str) -> dict[str, Row]:
    """Those of a run that does not come out again, with what does not."""
    changed = {row.name: row for row in again if not row.sameness.passes}
    return {
        row.name: replace(row, note=note.format(_said(changed[row.name])))
        for row in rows
        if row.name in changed
    }


def _by_double(row: Row, double: Mapping[str, Row]) -> Row:
    found = double.get(row.name)
    if found is None or isnan(found.size):
        return replace(row, note="could not be settled: it has no value in float64")
    if found.sameness is Sameness.SAME:
        note = f"in float64 apart by {found.size:.1e}"
        return replace(row, sameness=Sameness.NOISE, note=note)
    return replace(row, note=f"in float64, too: {_said(found)}")


def _said(row: Row) -> str:
    where = f"{row.place} " if row.place else ""
    return f"{where}off by {row.size:.2e} (bound {row.bound:.0e})"
