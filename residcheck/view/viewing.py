"""From a request to a view: load, gate, direction, pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from residcheck.backends import Site
from residcheck.corpus import Prompts, shipped
from residcheck.errors import UsageError
from residcheck.measure import Session, environment, open_session
from residcheck.measure.tokens import encode
from residcheck.measure.trained_stream import residual_factors
from residcheck.models import ModelSpec
from residcheck.progress import Progress, silent
from residcheck.view.directions import Direction, direction
from residcheck.view.grammar import OfFile, parse_direction
from residcheck.view.layers import parse_layers
from residcheck.view.pieces import Piece, label_of, pieces
from residcheck.view.stream import Values, check_site, has_embed, read
from residcheck.view.vectors import read_vector


@dataclass(frozen=True)
class Extreme:
    """A token at the layer where its value is the largest, or the smallest."""

    position: int
    layer: int
    label: str
    dot: float
    cosine: float


@dataclass(frozen=True)
class View:
    """All that is shown: ``values`` has a row for each of ``layers``, a column for each piece."""

    model: str
    facts: tuple[str, ...]
    spec: str
    direction: Direction
    site: Site
    centred: bool
    layers: tuple[int, ...]
    pieces: tuple[Piece, ...]
    values: Values
    provenance: tuple[tuple[str, str], ...]

    def extremes(self, count: int, *, largest: bool) -> tuple[Extreme, ...]:
        """The ordinary tokens with the largest or smallest values, each at its own layer."""
        dot = self.values.dot[:, 1:] * (1 if largest else -1)
        rows = dot.argmax(axis=0)
        order = np.argsort(-dot.max(axis=0), kind="stable")[:count]
        return tuple(self._extreme(int(rows[i]), int(i) + 1) for i in order)

    def _extreme(self, row: int, position: int) -> Extreme:
        return Extreme(
            position=position,
            layer=self.layers[row],
            label=self.pieces[position].label,
            dot=float(self.values.dot[row, position]),
            cosine=float(self.values.cosine[row, position]),
        )


def view(
    spec: ModelSpec,
    text: str,
    direction_spec: str,
    *,
    layers: str | None = None,
    site: str = "resid_post",
    progress: Progress = silent,
) -> View:
    """Read the stream of ``spec`` on ``text`` along a direction.

    Args:
        direction_spec: as :mod:`residcheck.view.grammar` says.
        layers: such as ``embed,0,5,10-20``; all unless given.
        site: the stream after the block unless given.

    Raises:
        ResidcheckError: bad input, or a model that cannot be loaded or trusted.
    """
    meaning, wanted = parse_direction(direction_spec), parse_layers(layers)
    if not text.strip():
        raise UsageError("the text is empty", "give some with --text or --text-file")
    if isinstance(meaning, OfFile):
        read_vector(meaning.path)  # a bad file is found before the model is loaded
    session = open_session(spec, shipped(), None, progress)
    backend = session.backend
    where = check_site(backend, site)
    chosen = wanted.of(backend.anatomy.n_layers, embed=has_embed(where))
    tokens = _tokens(session, text)
    progress(f"reading the stream of {session.loaded.id}", 0, None)
    found = direction(meaning, session)
    return View(
        model=session.loaded.id,
        facts=_facts(session, len(tokens)),
        spec=direction_spec,
        direction=found,
        site=where,
        centred=backend.anatomy.centring,
        layers=chosen,
        pieces=_pieces(session, text, tokens),
        values=read(backend, tokens, found.vector, chosen, where, session.loaded.device),
        provenance=tuple(_provenance(session)),
    )


def read_text(path: Path) -> str:
    """The text in ``path``, without the line break at its end.

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"cannot read the text file {path}: {reason}") from error


def _tokens(session: Session, text: str) -> tuple[int, ...]:
    """``text`` as token ids with BOS before it, whole."""
    loaded = session.loaded
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError("the text is not valid Unicode", "write it to a UTF-8 file") from error
    count = 1 + len(loaded.tokenizer(text, add_special_tokens=False)["input_ids"])
    limit = session.encoded.positions
    if limit is not None and count > limit:
        raise UsageError(
            f"the text is {count:,} tokens with BOS, and {loaded.id} reads at most {limit:,}",
            "give a shorter text",
        )
    config = loaded.model.config.get_text_config()
    return encode(Prompts("--text", (text,)), loaded.tokenizer, config, max(2, count)).ids[0]


def _pieces(session: Session, text: str, tokens: tuple[int, ...]) -> tuple[Piece, ...]:
    bos = session.encoded.bos
    return (Piece(bos, label_of(bos)), *pieces(text, session.loaded.tokenizer, tokens[1:]))


def _facts(session: Session, tokens: int) -> tuple[str, ...]:
    anatomy, spec = session.backend.anatomy, session.loaded.spec
    factors = residual_factors(session.loaded.model.config, anatomy.n_layers)
    larger = () if factors is None else (f"up to {factors.max():.4g} times the stream as trained",)
    return (
        f"{anatomy.n_layers} layers",
        f"d_model {anatomy.d_model:,}",
        anatomy.norm,
        f"{spec.dtype} on {spec.device}",
        f"through {session.backend.name}",
        f"{spec.processing} weights",
        f"{tokens:,} tokens",
        *larger,
    )


def _provenance(session: Session) -> Iterable[tuple[str, str]]:
    yield "weights", session.loaded.weights
    yield "architecture", session.backend.anatomy.model_type
    yield from sorted(environment(session.backend, session.loaded.spec.device).items())
