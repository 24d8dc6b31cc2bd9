"""What an axis of a chart counts: its label, its ticks, and its places in words."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from residcheck.names import MATRICES

_PARTS = {"write": ("attn_out", "mlp_out"), "read": ("attention", "MLP")}
"""Axes with two entries a layer, and what the two are called."""
_EMBEDDING = "embed"
_FIRST = {"horizon": 1}
"""What the first entry of an axis is called, where that is not 0."""


@dataclass(frozen=True)
class Axis:
    """An axis by the name of its dimension, and how many entries it has.

    ``unit`` is what horizons are counted in: layers or sublayers.
    """

    name: str
    size: int
    unit: str = ""

    @property
    def first(self) -> int:
        """What the first entry is called."""
        return _FIRST.get(self.name, 0)

    @property
    def label(self) -> str:
        """Along a plot of lines."""
        if self.name == "horizon":
            return f"horizon k, in {self.unit or 'layers'}"
        if self.name not in _PARTS:
            return self.name
        return f"{self.name}, by layer ({', '.join(_PARTS[self.name])})"

    @property
    def pair(self) -> tuple[str, str] | None:
        """What the two entries of a layer are, in order; None if it has one."""
        return _PARTS.get(self.name)

    def place(self, index: int) -> str:
        """An entry in words: ``layer 3``, ``mlp_out of layer 3``, ``W_in``."""
        if self.name in _PARTS:
            layer, second = divmod(index - self._before, 2)
            parts = _PARTS[self.name]
            return "the embedding" if layer < 0 else f"{parts[second]} of layer {layer}"
        if self._named:
            return MATRICES[index]
        return f"{self.name} {index + self.first}"

    def ticks(self, room: float) -> list[tuple[float, str]]:
        """Positions and texts; a text wider than a few digits takes ``room`` entries."""
        if self._named:
            return [(float(i), name) for i, name in enumerate(MATRICES)]
        if self.name not in _PARTS:
            return self._counted
        # Between the two entries of the layer.
        layers = whole_ticks((self.size - self._before) // 2 - 1)
        ticks = [(self._before + 2 * layer + 0.5, f"{layer:.0f}") for layer in layers]
        if not self._before:
            return ticks
        return [(0.0, _EMBEDDING), *(tick for tick in ticks if tick[0] >= room)]

    @property
    def _counted(self) -> list[tuple[float, str]]:
        """Round numbers, and the first entry where it is called 1."""
        places = whole_ticks(self.size - 1 + self.first)
        shown = dict.fromkeys(max(place, self.first) for place in places)
        return [(place - self.first, f"{place:.0f}") for place in shown]

    @property
    def _before(self) -> int:
        """Entries before the layers' pairs: 1 for the embedding where it is counted."""
        return self.size % 2

    @property
    def _named(self) -> bool:
        return self.name == "matrix" and self.size == len(MATRICES)


def whole_ticks(last: int) -> list[float]:
    """Round whole numbers from 0 to ``last``."""
    ticks = MaxNLocator(7, integer=True, steps=[1, 2, 5, 10]).tick_values(0, max(last, 0))
    return [float(tick) for tick in ticks if 0 <= tick <= last and tick == round(tick)]
