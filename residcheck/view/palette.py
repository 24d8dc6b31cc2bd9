"""A diverging scale of colours from blue over the page's own to orange.

Blue and orange stay apart for every common kind of colour blindness, and steps differ in
lightness too. The ink on a step is black or white, whichever has more contrast.
"""

from __future__ import annotations

from dataclasses import dataclass

from residcheck.view.scale import STEPS

RGB = tuple[float, float, float]


@dataclass(frozen=True)
class Theme:
    """The page's colour, and on each side of it a colour half way and one at the end."""

    page: str
    negative: tuple[str, str]
    positive: tuple[str, str]


LIGHT = Theme("#ffffff", ("#8ebcea", "#0b4a97"), ("#f3ad70", "#9c3a00"))
DARK = Theme("#15181b", ("#245f99", "#a3d2ff"), ("#96500f", "#ffc48a"))


def colours(theme: Theme) -> tuple[tuple[str, str], ...]:
    """Background and ink of each step, from the most negative to the most positive."""
    shades = [_shade(theme, step) for step in range(-STEPS, STEPS + 1)]
    return tuple((_hex(shade), ink(shade)) for shade in shades)


def luminance(colour: RGB) -> float:
    """Relative luminance as WCAG defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def ink(shade: RGB) -> str:
    bright = (luminance(shade) + 0.05) / 0.05
    dark = 1.05 / (luminance(shade) + 0.05)
    return "#000000" if bright > dark else "#ffffff"


def rgb(colour: str) -> RGB:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue


def _shade(theme: Theme, step: int) -> RGB:
    half, end = map(rgb, theme.positive if step > 0 else theme.negative)
    share = 2 * abs(step) / STEPS
    if share <= 1:
        return _mix(rgb(theme.page), half, share)
    return _mix(half, end, share - 1)


def _mix(a: RGB, b: RGB, share: float) -> RGB:
    red, green, blue = ((1 - share) * x + share * y for x, y in zip(a, b, strict=True))
    return red, green, blue


def _hex(colour: RGB) -> str:
    return "#" + "".join(f"{round(255 * c):02x}" for c in colour)
