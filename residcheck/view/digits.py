"""Values as people read them, on the page and in the terminal."""

from __future__ import annotations


def number(value: float) -> str:
    """Three significant digits, or all before the point, with a sign."""
    written = f"{value:+,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:+.3g}"
    return written.replace("-", "−")


def cosine(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")
