"""Is a curve still what it was, up to the rounding of its dtype?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from residcheck.tolerances import Tolerance

_BARS = "▁▂▃▄▅▆▇█"
_PARTS = ("mean", "gmean", "bos", "values")


@dataclass(frozen=True)
class Difference:
    """One number of a curve beyond its bound."""

    part: str
    index: int
    stored: float
    measured: float
    size: float
    bound: float


@dataclass(frozen=True)
class Comparison:
    """The numbers of a curve that left their bounds, worst first, and a picture.

    ``picture`` shows difference over bound per layer on a logarithmic scale: the lowest
    bar is within the bound, each further bar a factor of ten beyond it.
    """

    curve: str
    differences: tuple[Difference, ...]
    count: int
    picture: str = ""

    @property
    def same(self) -> bool:
        return not self.differences

    def message(self, accept: str) -> str:
        """Which layer, how far, against what bound, and how to accept it."""
        worst = self.differences[0]
        size = f"{worst.size:.2e}" if math.isfinite(worst.size) else "NaN on one side"
        return (
            f"{self.curve} drifted: {worst.part} at layer {worst.index}: "
            f"{worst.stored:.7g} -> {worst.measured:.7g}, off by {size} "
            f"(bound {worst.bound:.0e}); {len(self.differences)} of {self.count} numbers "
            f"beyond their bound\n  difference by layer ({worst.part}): {self.picture}\n"
            f"  if the change is right, accept it with: {accept}"
        )


def compare_curves(
    name: str, stored: Mapping[str, Any], measured: Mapping[str, Any], row: Tolerance, step: float
) -> Comparison:
    """Compare two summaries of a curve (``mean``, ``gmean``, ``bos``, ``values``).

    Args:
        row: tolerances of the wider of the two dtypes.
        step: smallest change of one token's value; a rate changes in steps of one neuron.
    """
    unit = str(stored.get("unit", ""))
    found: list[Difference] = []
    count = 0
    for part in _PARTS:
        old, new = _flat(stored.get(part, [])), _flat(measured.get(part, []))
        count += len(old)
        if len(old) != len(new):
            found.append(Difference(part, min(len(old), len(new)), len(old), len(new), math.inf, 0))
            continue
        # Rounding turns a neuron near zero on or off: rates jump where norms only tremble.
        averaged = part in ("mean", "gmean") and unit != "fraction"
        bound = row.curve if averaged else row.token
        slack = step if part == "bos" else 0.0
        for index, (a, b) in enumerate(zip(old, new, strict=True)):
            difference = _difference(part, index, a, b, bound, slack, unit)
            if not difference.size <= difference.bound:
                found.append(difference)
    found.sort(
        key=lambda d: d.size / d.bound if d.size == d.size and d.bound else math.inf, reverse=True
    )
    picture = ""
    if found:
        part = found[0].part
        picture = _picture([d for d in found if d.part == part], len(_flat(measured.get(part, []))))
    return Comparison(name, tuple(found), count, picture)


def _difference(
    part: str, index: int, a: float, b: float, bound: float, slack: float, unit: str
) -> Difference:
    if math.isnan(a) and math.isnan(b):
        return Difference(part, index, a, b, 0.0, bound)
    if unit == "cosine" or unit.startswith("relative"):
        return Difference(part, index, a, b, abs(a - b), bound)
    scale = max(abs(a), 1e-30)
    return Difference(part, index, a, b, abs(a - b) / scale, bound + slack / scale)


def _flat(values: Any) -> list[float]:
    if isinstance(values, Sequence) and not isinstance(values, str):
        return [number for value in values for number in _flat(value)]
    return [math.nan if values is None else float(values)]


def _picture(differences: list[Difference], length: int) -> str:
    bars = [_BARS[0]] * length
    for d in differences:
        if d.index < length:
            ratio = d.size / d.bound if d.bound else math.inf
            height = 1 + math.log10(ratio) if math.isfinite(ratio) and ratio > 0 else len(_BARS)
            bars[d.index] = _BARS[max(1, min(len(_BARS) - 1, int(height)))]
    return "".join(bars)
