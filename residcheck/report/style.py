"""How plots look: colours by role, and strokes that differ in more than colour.

Colours are CSS variables of the page, so that a plot follows its light or dark theme.
"""

from __future__ import annotations

from dataclasses import dataclass

ROLES = ("ink", "muted", "rule", "shade", "strand", "bos", "s0", "s1", "s2", "s3", "s4")
"""Names of the page's colour variables that a plot may use."""

LEVELS = (1.0, 0.95, 0.75, 0.5, 0.25)
"""Shares of a layer's tokens in the nested areas of a histogram, palest first."""
LEVEL_OPACITY = 0.2
BAND_OPACITY = 0.18
PHASE_OPACITY = 0.55

WIDTH, HEIGHT = 400, 236
"""Size of a plot in its own units, near the pixels that it takes on a desktop page."""
MAP_HEIGHT = 340
FONT_SIZE = 12


@dataclass(frozen=True)
class Stroke:
    """A line: colour role, width, and lengths of dashes and gaps (none: solid)."""

    role: str
    width: float
    dashes: tuple[float, ...] = ()


# Five colours and four patterns share no factor: twenty curves differ in one or the other.
_COLOURS = ("s0", "s1", "s2", "s3", "s4")
_DASHES: tuple[tuple[float, ...], ...] = ((), (6, 2.5), (9, 2.5, 2, 2.5), (3, 2.5))

BOS = Stroke("bos", 2, (1.5, 2))
FITTED = (Stroke("ink", 1), Stroke("ink", 1, (1.5, 2.5)), Stroke("ink", 1, (9, 3, 1.5, 3)))
"""Of several fitted lines each has its own."""
PUBLISHED = Stroke("ink", 1, (5, 3))
LEVEL = Stroke("muted", 1.2, (2, 3))
WINDOW = Stroke("muted", 1.2, (7, 2.5, 1.5, 2.5))
MEDIAN = Stroke("ink", 1.4)
STRAND = Stroke("strand", 0.8)
"""One head among many."""


def stroke(index: int) -> Stroke:
    """The stroke of the curve at this place in a figure."""
    return Stroke(_COLOURS[index % len(_COLOURS)], 2, _DASHES[index % len(_DASHES)])
