"""matplotlib's SVG made fit to stand inside a page: small, themed, and alone with its ids."""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from residcheck.report.style import ROLES

# matplotlib wants colours, the page has variables: each role is drawn in a colour that
# nothing else uses, which the finished text replaces by the variable.
_SENTINEL = re.compile("#fe00([0-9a-f]{2})")
_FONT_FAMILY = re.compile(r"font-family:[^;]*;?\s*")
_FONT = re.compile(r"font: ([\d.]+px)[^;]*")  # as matplotlib before 3.10 writes it
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_NO_TURN = re.compile(r"rotate\(-?0 [^)]*\)")
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def colour(role: str) -> str:
    """The colour that stands for a role while matplotlib draws."""
    return f"#fe00{ROLES.index(role):02x}"


def inline_svg(
    figure: Figure, key: str, label: str, under: ElementTree.Element | None = None
) -> str:
    """``figure`` as an ``<svg>`` element.

    Args:
        key: prefix of the ids in it; no other plot on the page may have it.
        label: the text alternative.
        under: drawn first, in units of the figure.
    """
    file = io.StringIO()
    FigureCanvasSVG(figure).print_svg(file, metadata=_NO_METADATA)  # type: ignore[no-untyped-call]
    # The parser leaves out comments and the document type.
    root = ElementTree.fromstring(file.getvalue().encode())
    _drop_global_style(root)
    for element in root.iter():
        _plain_names(element)
        _restyle(element)
    _own_ids(root, key)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    if under is not None:
        root.insert(0, under)
    root.attrib |= {"role": "img", "aria-label": label}
    return ElementTree.tostring(root, encoding="unicode")


def _drop_global_style(root: ElementTree.Element) -> None:
    """Without matplotlib's ``*{...}`` rule, which would hold for the whole page."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith("}style"):
                parent.remove(child)


def _plain_names(element: ElementTree.Element) -> None:
    """Names without namespaces, which HTML neither needs nor understands."""
    element.tag = element.tag.rpartition("}")[2]
    element.attrib = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
    for name in ("text", "tail"):  # layout whitespace
        if not (getattr(element, name) or "").strip():
            setattr(element, name, None)


def _restyle(element: ElementTree.Element) -> None:
    style = _FONT.sub(r"font-size: \1", _FONT_FAMILY.sub("", element.get("style", "")))
    if style:
        element.set("style", _SENTINEL.sub(lambda m: f"var(--{ROLES[int(m[1], 16)]})", style))
    for name in ("d", "x", "y", "transform"):
        if name in element.attrib:
            element.set(name, " ".join(_NUMBER.sub(_shorter, element.attrib[name]).split()))
    if _NO_TURN.fullmatch(element.get("transform", "")):
        del element.attrib["transform"]


def _shorter(number: re.Match[str]) -> str:
    """A hundredth of a unit is finer than any screen's pixel."""
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")


def _own_ids(root: ElementTree.Element, key: str) -> None:
    """Ids that are referred to become ``key``-0, ``key``-1, ...; the others go."""
    new: dict[str, str] = {}

    def renamed(old: str) -> str:
        return new.setdefault(old, f"{key}-{len(new)}")

    for element in root.iter():
        if "href" in element.attrib:
            element.set("href", "#" + renamed(element.attrib["href"].removeprefix("#")))
        if "clip-path" in element.attrib:
            path = _REFERENCE.sub(lambda m: f"url(#{renamed(m[1])})", element.attrib["clip-path"])
            element.set("clip-path", path)
    for element in root.iter():
        old = element.attrib.pop("id", None)
        if old in new:
            element.set("id", new[old])
