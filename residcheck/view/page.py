"""The HTML page of a view: one file without scripts, fonts or network.

Choosing a layer and a way of colouring is CSS alone; where a browser cannot do it, all
layers are shown one under the other.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from residcheck.backends import Site
from residcheck.errors import ResidcheckError
from residcheck.view.digits import cosine, number
from residcheck.view.layers import EMBED, name
from residcheck.view.palette import DARK, LIGHT, colours
from residcheck.view.scale import SHARE, STEPS, Scale, scales
from residcheck.view.viewing import View

_PLACES: dict[Site, str] = {
    "resid_pre": "Before layer {}",
    "resid_mid": "In layer {}, between attention and MLP",
    "resid_post": "After layer {}",
    "attn_out": "What attention adds in layer {}",
    "mlp_out": "What the MLP adds in layer {}",
}
_EXTREMES = 8


@dataclass(frozen=True)
class Cell:
    """One token at one layer: its classes of colour, its values, and both in words."""

    shown: str
    classes: str
    dot: str
    cosine: str
    title: str


@dataclass(frozen=True)
class Layer:
    """One layer: its name, where that is, its own scale, and its cells."""

    name: str
    place: str
    limit: str
    cells: tuple[Cell, ...]


def render(view: View) -> str:
    """The page about ``view``."""
    environment = Environment(
        loader=PackageLoader("residcheck.view", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals |= {"number": number, "cosine": cosine, "name": name}
    ways = scales(view.values)
    return environment.get_template("view.html.j2").render(
        view=view,
        ways=ways,
        layers=_layers(view, ways),
        start=_start(view),
        steps=range(2 * STEPS + 1),
        themes=(colours(LIGHT), colours(DARK)),
        share=f"{SHARE:.0%}",
        first=_first(view),
        largest=view.extremes(_EXTREMES, largest=True),
        smallest=view.extremes(_EXTREMES, largest=False),
    )


def write_page(view: View, path: Path) -> None:
    """Write the page to ``path``; what was there stays whole until the new page is.

    Raises:
        ResidcheckError: the file cannot be written.
    """
    page = render(view)
    partial = path.parent / f".{path.name}.{os.getpid()}"
    try:
        try:
            # Names of files that are no Unicode carry lone surrogates.
            partial.write_text(page, encoding="utf-8", errors="xmlcharrefreplace", newline="\n")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise ResidcheckError(f"cannot write {path}: {error.strerror or error}") from error


def _layers(view: View, ways: tuple[Scale, ...]) -> tuple[Layer, ...]:
    own = next(way for way in ways if way.key == "own")
    return tuple(
        Layer(
            name=name(layer),
            place="Embedding" if layer == EMBED else _PLACES[view.site].format(layer),
            limit=number(own.limits[row]).lstrip("+"),
            cells=tuple(_cell(view, ways, row, i) for i in range(len(view.pieces))),
        )
        for row, layer in enumerate(view.layers)
    )


def _cell(view: View, ways: tuple[Scale, ...], row: int, position: int) -> Cell:
    piece, layer = view.pieces[position], name(view.layers[row])
    dot = number(view.values.dot[row, position])
    share = cosine(view.values.cosine[row, position])
    # Isolated, so that a label that runs from right to left leaves the rest in order.
    label = f"\u2066{piece.label}\u2069"
    return Cell(
        shown=piece.shown,
        classes=" ".join(f"{way.key[0]}{way.steps[row, position] + STEPS}" for way in ways),
        dot=dot,
        cosine=share,
        title=f"{label} position {position}, layer {layer}: dot product {dot}, cosine {share}",
    )


def _start(view: View) -> str:
    """The layer shown first: the one that the direction is from, or else the last."""
    from_layer = view.direction.layer
    return name(from_layer if from_layer in view.layers else view.layers[-1])


def _first(view: View) -> str:
    """The largest value at position 0, that its colours do not show."""
    dot = view.values.dot[:, 0]
    return number(float(dot[abs(dot).argmax()]))
