"""Which layers to show: ``embed,0,5,10-20``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from residcheck.errors import UsageError

EMBED = -1
"""The stream before the first block, where a layer number is expected."""

_PART = re.compile(r"(?P<first>\d{1,6})(?:-(?P<last>\d{1,6}))?|embed", re.ASCII)


@dataclass(frozen=True)
class Layers:
    """Ranges of layers, as asked for; none of them means all."""

    text: str = ""
    ranges: tuple[tuple[int, int], ...] = ()

    def of(self, n_layers: int, *, embed: bool) -> tuple[int, ...]:
        """The layers meant, in order, in a model of ``n_layers``.

        Args:
            embed: whether the embedding can be shown beside the layers.

        Raises:
            UsageError: a layer that the model does not have.
        """
        lowest = EMBED if embed else 0
        if not self.ranges:
            return tuple(range(lowest, n_layers))
        wanted = {layer for first, last in self.ranges for layer in (first, last)}
        wrong = sorted(layer for layer in wanted if not lowest <= layer < n_layers)
        if wrong:
            raise UsageError(
                f"--layers {self.text}: there is no layer {name(wrong[-1])} at this site",
                f"layers are {'embed and ' if embed else ''}0 to {n_layers - 1}",
            )
        covered = {layer for first, last in self.ranges for layer in range(first, last + 1)}
        return tuple(sorted(covered))


def parse_layers(text: str | None) -> Layers:
    """Read a list of layers and ranges of layers, both ends included.

    Raises:
        UsageError: something that is neither.
    """
    if text is None:
        return Layers()
    return Layers(text, tuple(_range(part.strip(), text) for part in text.split(",")))


def name(layer: int) -> str:
    """What a layer is called on pages and in messages."""
    return "embed" if layer == EMBED else str(layer)


def _range(part: str, text: str) -> tuple[int, int]:
    match = _PART.fullmatch(part)
    if match is None:
        raise UsageError(
            f"--layers {text!r}: cannot read {part!r}",
            "give layers and ranges of layers separated by commas: embed,0,5,10-20",
        )
    if part == "embed":
        return EMBED, EMBED
    first = int(match["first"])
    last = int(match["last"] or first)
    if last < first:
        raise UsageError(
            f"--layers {text!r}: the range {part} runs backwards", f"write {last}-{first}"
        )
    return first, last
