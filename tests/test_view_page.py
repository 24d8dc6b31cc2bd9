"""The viewer's page: text shown as it is, nothing of it taken for HTML, colours that tell."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tokenizer

from residcheck.view.digits import number
from residcheck.view.directions import Direction
from residcheck.view.page import render
from residcheck.view.palette import DARK, LIGHT, colours, luminance, rgb
from residcheck.view.pieces import CONTINUED, Piece, label_of, pieces
from residcheck.view.scale import STEPS, scales
from residcheck.view.stream import Values
from residcheck.view.viewing import View

HOSTILE = (
    "<script>alert('x')</script> \"quoted\" & 'single' </p></style>\n\tline {{ 7*7 }} "
    "🙂 👩‍👧 שלום עולם \u202eevil\u2066 naïve कि \x00\x1b[31m"
)


def cut(text: str) -> tuple[Piece, ...]:
    ids = tokenizer()(text, add_special_tokens=False)["input_ids"]
    return pieces(text, tokenizer(), ids)


def view_of(text: str = HOSTILE, layers: tuple[int, ...] = (-1, 0, 1), **fields: Any) -> View:
    parts = (Piece("<s>", label_of("<s>")), *cut(text))
    dot = np.random.default_rng(1).normal(size=(len(layers), len(parts))).astype(np.float32)
    dot[:, 0] = 5000
    given: dict[str, Any] = {
        "model": "a <b>model</b>",
        "facts": ("3 layers",),
        "spec": "token:<i>",
        "direction": Direction(torch.ones(4), "the unembedding of “<i>”", ("A <note>.",)),
        "site": "resid_post",
        "centred": False,
        "layers": layers,
        "pieces": parts,
        "values": Values(dot, np.full_like(dot, 10_000)),
        "provenance": (("weights", "<w>"),),
    }
    return View(**(given | fields))


class _Reader(HTMLParser):
    """Elements, and the text inside the first paragraph of coloured text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.spans: list[str] = []
        self._inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "p" and ("class", "text") in attrs:
            self._inside, self.spans = True, []
        elif tag == "span" and self._inside:
            self.spans.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "p"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.spans[-1] += data


@pytest.mark.parametrize("text", ["plain words", " leading", "two\n\nlines\n", "a🙂b", "שלום", "x"])
def test_pieces_make_the_text(text: str) -> None:
    assert "".join(piece.text for piece in cut(text)) == text


def test_tokens_that_share_a_character_say_so() -> None:
    a, *rest = cut("🙂")
    assert len(rest) == 3
    assert a.text == "🙂"
    assert [piece.text for piece in rest] == [""] * 3
    assert [piece.shown for piece in rest] == [CONTINUED] * 3
    labels = [piece.label for piece in (a, *rest)]
    assert labels == [f"“🙂” (part {i} of 4)" for i in (1, 2, 3, 4)]


def test_labels_show_what_is_not_seen() -> None:
    assert label_of(" the") == "“␣the”"
    assert label_of("\n") == "“↵”"
    assert label_of("  ") == "“␣␣”"
    assert label_of("a\tb\x00") == "“a⇥b␀”"
    assert label_of("\u202ex") == "“⟨U+202E⟩x”"


def test_tokenizer_without_offsets_is_shown_by_its_own_tokens() -> None:
    class Slow:
        is_fast = False

        def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
            return ["▁Hello", "Ġthere"][: len(ids)]

    assert [piece.text for piece in pieces("Hello there", Slow(), [5, 6])] == [" Hello", " there"]


def test_page_takes_no_text_for_html() -> None:
    page = render(view_of())
    reader = _Reader(page)
    assert "script" not in reader.tags
    assert not {"b", "i", "note", "w"} & set(reader.tags)
    assert not [name for name, _ in reader.attributes if name.startswith("on") or name == "src"]
    assert page.count("</style>") == 1
    assert "\u202e" not in page
    assert "\x00" not in page
    assert "\x1b" not in page


def test_page_shows_every_token_at_every_layer() -> None:
    view = view_of()
    page = render(view)
    reader = _Reader(page)
    assert reader.tags.count("section") == len(view.layers) + 2
    assert reader.spans == [piece.shown for piece in view.pieces]
    cells = len(view.layers) * len(view.pieces)
    assert reader.tags.count("td") >= cells
    value = number(view.values.dot[1, 3])
    title = f"\u2066{view.pieces[3].label}\u2069 position 3, layer 0: dot product {value}"
    titles = [text for name, text in reader.attributes if name == "title" and text]
    assert len([text for text in titles if text.startswith(title)]) == 2  # text and table
    assert f'<span class="raw">{value}</span>' in page


def test_page_needs_nothing_from_outside() -> None:
    page = render(view_of())
    assert "http" not in page.replace("http-equiv", "")
    assert "default-src 'none'" in page
    assert not re.search(r"url\(|@import|@font-face", page)


def test_page_begins_at_the_directions_own_layer() -> None:
    def checked(view: View) -> str:
        found = re.search(r'id="at-(\w+)" checked', render(view))
        assert found
        return found[1]

    own = Direction(torch.ones(4), "what head 1 of layer 0 writes", (), 0)
    assert checked(view_of()) == "1"
    assert checked(view_of(direction=own)) == "0"
    assert checked(view_of(direction=own, layers=(-1, 1))) == "1"


def test_every_layer_can_be_chosen() -> None:
    page = render(view_of())
    for name in ("embed", "0", "1"):
        assert f'id="at-{name}"' in page
        assert f"main:has(#at-{name}:checked) #layer-{name}" in page
        assert f'<section class="layer" id="layer-{name}"' in page


def test_bos_does_not_wash_out_the_colours() -> None:
    values = view_of("some words of a text").values
    common, own, cosine = scales(values)
    ordinary = np.abs(values.dot[:, 1:]).max()
    assert common.common is not None
    assert common.common <= ordinary
    assert (np.abs(common.steps[:, 1:]) == STEPS).any()
    assert (common.steps[:, 0] == STEPS).all()
    assert cosine.common == pytest.approx(common.common / 10_000)
    assert own.common is None
    assert np.allclose(own.limits, np.abs(values.dot[:, 1:]).max(axis=1))
    page = render(view_of())
    assert "left out of the scale" in page
    assert "+5,000" in page


def test_one_giant_does_not_wash_out_the_colours() -> None:
    dot = np.linspace(-1, 1, 300)[None].repeat(2, axis=0)
    dot[0, 7] = 1e6
    common, *_ = scales(Values(dot, np.ones_like(dot)))
    assert common.common is not None
    assert common.common <= 1
    assert common.steps[0, 7] == STEPS


def test_zeros_have_no_colour() -> None:
    for scale in scales(Values(np.zeros((2, 5)), np.zeros((2, 5)))):
        assert not scale.steps.any()


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_colours_are_readable_and_ordered(theme: Any) -> None:
    shades = colours(theme)
    assert len(shades) == 2 * STEPS + 1
    assert shades[STEPS][0] == theme.page
    for shade, ink in shades:
        light, dark = sorted((luminance(rgb(shade)), luminance(rgb(ink))), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5
    for side in (shades[STEPS:], shades[STEPS::-1]):
        lightness = [luminance(rgb(shade)) for shade, _ in side]
        assert lightness == sorted(lightness, reverse=theme is LIGHT)


# What is left of colours in full protanopia and deuteranopia (Machado et al. 2009).
_BLIND = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
               [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
               [-0.011820, 0.042940, 0.968881]],
}  # fmt: skip


@pytest.mark.parametrize("theme", [LIGHT, DARK])
@pytest.mark.parametrize("kind", _BLIND)
def test_signs_differ_for_the_colour_blind(theme: Any, kind: str) -> None:
    shades = [shade for shade, _ in colours(theme)]
    for step in range(2, STEPS + 1):
        pair = [np.array(_BLIND[kind]) @ rgb(shades[STEPS + s]) for s in (-step, step)]
        blue_over_red = [colour[2] - colour[0] for colour in pair]
        assert blue_over_red[0] > 0.05
        assert blue_over_red[1] < -0.05


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "+0"), (-0.1234, "−0.123"), (12.345, "+12.3"), (25123.4, "+25,123"), (-1e9, "−1e+09")],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text
