"""Is a curve still what it was, up to the rounding of its dtype?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from residcheck.names import SAMPLED_AXES
from residcheck.tolerances import Tolerance

BARS = "▁▂▃▄▅▆▇█"
_PARTS = ("mean", "gmean", "bos", "values")
Axes = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Difference:
    """One number of a curve beyond its bound."""

    part: str
    index: int
    stored: float
    measured: float
    size: float
    bound: float

    @property
    def ratio(self) -> float:
        """Size over bound; infinite where only one side is a number."""
        if self.size == 0:
            return 0.0
        return self.size / self.bound if self.size == self.size and self.bound else math.inf


@dataclass(frozen=True)
class Comparison:
    """The numbers of a curve that left their bounds, worst first, and a picture.

    ``picture`` shows difference over bound per layer on a logarithmic scale: the lowest
    bar is within the bound, each further bar a factor of ten beyond it. ``axis`` is what
    averages and the picture are counted along, from ``first``; empty for a single number.
    ``axes`` are names and sizes of what ``values`` are counted along. ``closest`` is the
    number that came closest to its bound, or left it the furthest.
    """

    curve: str
    differences: tuple[Difference, ...]
    count: int
    picture: str = ""
    axis: str = "layer"
    first: int = 0
    axes: Axes = ()
    closest: Difference | None = None

    @property
    def margin(self) -> float:
        """The largest difference over its bound: above 1 where the curve has moved."""
        return 0.0 if self.closest is None else self.closest.ratio

    @property
    def same(self) -> bool:
        return not self.differences

    def message(self, accept: str) -> str:
        """Which layer, how far, against what bound, and how to accept it."""
        worst = self.differences[0]
        size = f"{worst.size:.2e}" if math.isfinite(worst.size) else "NaN on one side"
        return (
            f"{self.curve} drifted: {self.name(worst)}: "
            f"{worst.stored:.7g} -> {worst.measured:.7g}, off by {size} "
            f"(bound {worst.bound:.0e}); {len(self.differences)} of {self.count} numbers "
            f"beyond their bound\n{self._drawn(worst.part)}"
            f"  if the change is right, accept it with: {accept}"
        )

    def name(self, one: Difference) -> str:
        """A number in words: ``mean at layer 3``, ``values at head 2, layer 0``, ``norm_eps``."""
        place = self.place(one)
        return f"{one.part} at {place}" if place else one.part

    def place(self, one: Difference) -> str:
        """Where a number is: ``layer 3``, ``head 2, layer 0``; empty if there is one only."""
        if one.part not in _PARTS or not self.axis:
            return ""
        if one.part != "values" or not self.axes:
            return f"{self.axis} {one.index + self.first}"
        indices = _unravel(one.index, self.axes)
        counted = zip(self.axes, indices, strict=True)
        first = {self.axis: self.first}
        return ", ".join(f"{n} {i + first.get(n, 0)}" for (n, size), i in counted if size > 1)

    def _drawn(self, part: str) -> str:
        return f"  difference by {self.axis} ({part}): {self.picture}\n" if self.picture else ""


def compare_curves(
    name: str,
    stored: Mapping[str, Any],
    measured: Mapping[str, Any],
    row: Tolerance,
    step: float,
    constants: Mapping[str, tuple[float, float]] = MappingProxyType({}),
    sampled: int = 1,
) -> Comparison:
    """Compare two summaries of a curve (``mean``, ``gmean``, ``bos``, ``values``).

    Args:
        row: tolerances of the wider of the two dtypes.
        step: what rounding may move a number that changes in steps: the rate of neurons
            at BOS, or the mean over tokens at a horizon of what is 0 or 1.
        constants: numbers of the model that the curve depends on, stored and now.
        sampled: how many tokens a mean is over: of a sum of them, a step moves that share.
    """
    unit = str(stored.get("unit", ""))
    horizons = "horizon" in stored
    everything = [
        _difference(part, 0, *values, row.curve, 0.0, unit="") for part, values in constants.items()
    ]
    count = len(everything)
    for part in _PARTS:
        old, new = _flat(stored.get(part, [])), _flat(measured.get(part, []))
        count += len(old)
        if len(old) != len(new):
            shorter = min(len(old), len(new))
            everything.append(Difference(part, shorter, len(old), len(new), math.inf, 0))
            continue
        if horizons:
            bound, slack = row.truncated, _slack_over_horizons(row, unit, step, old)
        else:
            # Rounding turns a neuron near zero on or off: rates jump where norms only tremble.
            averaged = part in ("mean", "gmean") and unit != "fraction"
            bound = row.curve if averaged else row.token
            slack = step / (1 if part == "bos" else sampled * math.prod(stored.get("draws", ())))
        for index, (a, b) in enumerate(zip(old, new, strict=True)):
            everything.append(_difference(part, index, a, b, bound, slack, unit))
    everything.sort(key=lambda d: d.ratio, reverse=True)
    found = [d for d in everything if not d.size <= d.bound]
    closest = everything[0] if everything else None
    single = stored.get("dims") == ["prompt", "position"]
    axes = kept_axes(measured)
    axis = "horizon" if horizons else _along(axes)
    picture = "" if single or not found else _picture(found, measured, axes, axis)
    first = 1 if horizons else 0
    axis = "" if single else axis
    return Comparison(name, tuple(found), count, picture, axis, first, axes, closest)


def kept_axes(curve: Mapping[str, Any]) -> Axes:
    """Names and sizes of the axes of ``values``: those that are not averaged over."""
    names = [name for name in curve.get("dims", ()) if name not in SAMPLED_AXES]
    sizes, inner = [], curve.get("values")
    while isinstance(inner, Sequence) and inner:
        sizes.append(len(inner))
        inner = inner[0]
    return tuple(zip(names, sizes, strict=True)) if len(names) == len(sizes) else ()


def _along(axes: Axes) -> str:
    """What a picture of values is along: layers where there are any."""
    names = [name for name, _ in axes]
    return "layer" if "layer" in names or not names else names[-1]


def _unravel(index: int, axes: Axes) -> list[int]:
    """The place of an entry along each axis; the first is the slowest."""
    places: list[int] = []
    for _, size in reversed(axes):
        index, place = divmod(index, size)
        places.insert(0, place)
    return places


def _slack_over_horizons(row: Tolerance, unit: str, step: float, values: list[float]) -> float:
    """What may differ beside a share of the value.

    Of predictions that are near chance, a share changes their likeliest token. A divergence
    comes down to zero, and is noise there.
    """
    if unit == "fraction":
        return row.truncated + step
    return row.curve * max((abs(value) for value in values if math.isfinite(value)), default=0.0)


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


def _picture(found: list[Difference], curve: Mapping[str, Any], axes: Axes, axis: str) -> str:
    """A bar for each entry along the axis: the worst there, of the part with the worst of all."""
    part = found[0].part
    names = [name for name, _ in axes]
    nested = part == "values" and axis in names
    length = axes[names.index(axis)][1] if nested else len(_flat(curve.get(part, [])))
    if length < 2:
        return ""
    bars = [0] * length
    for d in found:
        place = _unravel(d.index, axes)[names.index(axis)] if nested else d.index
        if d.part == part and place < length:
            ratio = d.size / d.bound if d.bound else math.inf
            height = 1 + math.log10(ratio) if math.isfinite(ratio) and ratio > 0 else len(BARS)
            bars[place] = max(bars[place], 1, min(len(BARS) - 1, int(height)))
    return "".join(BARS[bar] for bar in bars)
