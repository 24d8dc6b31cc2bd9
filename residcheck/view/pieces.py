"""The tokens of a text as parts of that text, to be shown."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

CONTINUED = "⋯"
"""Shown for a token that only continues a character begun by the one before."""

_JOINERS = "\u200c\u200d"  # parts of words and of emoji
_SIGNS = {"\n": "↵", "\t": "⇥", "\r": "␍", "\x7f": "␡"}


@dataclass(frozen=True)
class Piece:
    """A token as a part of the text.

    ``text`` is what the token adds to the text: nothing, where it only continues a
    character; ``label`` names it on one line, with spaces and controls made visible.
    """

    text: str
    label: str

    @property
    def shown(self) -> str:
        """``text`` to be drawn with its line breaks, controls made visible."""
        lines = map(visible, self.text.split("\n"))
        return "↵\n".join(lines) if self.text else CONTINUED


def visible(text: str) -> str:
    """``text`` with controls and marks that are not seen (or change direction) as signs."""
    return "".join(map(_sign, text))


def _sign(character: str) -> str:
    if character in _JOINERS or unicodedata.category(character) not in ("Cc", "Cf", "Zl", "Zp"):
        return character
    if character in _SIGNS:
        return _SIGNS[character]
    code = ord(character)
    return chr(0x2400 + code) if code < 0x20 else f"⟨U+{code:04X}⟩"


def label_of(text: str) -> str:
    """``text`` in quotes on one line; spaces at its ends are drawn."""
    shown = visible(text)
    inner = shown.strip(" ")
    if not inner:
        return f"“{'␣' * len(shown)}”"
    before = len(shown) - len(shown.lstrip(" "))
    after = len(shown) - len(shown.rstrip(" "))
    return f"“{'␣' * before}{inner}{'␣' * after}”"


def pieces(text: str, tokenizer: Any, ids: Sequence[int]) -> tuple[Piece, ...]:
    """The tokens ``ids`` of ``text``, without what comes before the text."""
    if not getattr(tokenizer, "is_fast", False):
        return tuple(_alone(token) for token in tokenizer.convert_ids_to_tokens(list(ids)))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return _cut(text, [(int(a), int(b)) for a, b in encoded["offset_mapping"]])


def _alone(token: str) -> Piece:
    text = token.replace("▁", " ").replace("Ġ", " ").replace("Ċ", "\n")
    return Piece(text, label_of(text))


def _cut(text: str, spans: Sequence[tuple[int, int]]) -> tuple[Piece, ...]:
    """Cut ``text`` where tokens end. Tokens that overlap are parts of one character."""
    owner, place = _shared(spans)
    sizes = Counter(owner)
    made, end = [], 0
    for i, (start, stop) in enumerate(spans):
        label = label_of(text[start:stop])
        if (size := sizes[owner[i]]) > 1:
            label += f" (part {place[i]} of {size})"
        made.append(Piece(text[end : max(end, stop)], label))
        end = max(end, stop)
    return tuple(made)


def _shared(spans: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """For each span, the first one that it overlaps with, and its place among them from 1."""
    owner: list[int] = []
    place: list[int] = []
    end = 0
    for i, (start, stop) in enumerate(spans):
        goes_on = i > 0 and start < end
        owner.append(owner[-1] if goes_on else i)
        place.append(place[-1] + 1 if goes_on else 1)
        end = max(end, stop)
    return owner, place
