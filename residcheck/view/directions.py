"""A direction in the stream: what the user named, as a unit vector.

Directions are taken where the stream is, so gains belong to them: a token's is
``gain * W_U[:, token]`` with the gain of the final norm, a head's and a neuron's are
multiplied by the gain of the norm on what the sublayer writes, where there is one, and a
head reads through the gain of the norm before it. Where the model has LayerNorm the
direction is centred as the stream is. All backends then give the same direction for
``diff``, ``head`` and ``neuron``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from residcheck.backends import Backend, Site
from residcheck.errors import UsageError
from residcheck.measure import Session
from residcheck.tolerances import tolerance
from residcheck.view.components import principal_component
from residcheck.view.grammar import (
    Meaning,
    OfComponent,
    OfDifference,
    OfFile,
    OfHead,
    OfNeuron,
    OfToken,
)
from residcheck.view.pieces import label_of
from residcheck.view.vectors import read_vector
from residcheck.weights import gate

Vector = Float[Tensor, " d_model"]
_SIGN = "The sign is chosen so that its largest component is positive."


@dataclass(frozen=True)
class Direction:
    """A unit vector, what it is, and the layer that it comes from, if it comes from one."""

    vector: Vector
    title: str
    notes: tuple[str, ...] = ()
    layer: int | None = None


def direction(meaning: Meaning, session: Session) -> Direction:
    """The direction meant, in the model of ``session``.

    Raises:
        UsageError: the model has no such token, layer, head, neuron or component, or the
            vector has the wrong length.
        GateError: the weights that a head or neuron is read from are not the model's.
    """
    match meaning:
        case OfToken(text):
            return _of_tokens(session, text, None)
        case OfDifference(plus, minus):
            return _of_tokens(session, plus, minus)
        case OfHead(layer, head):
            return _of_head(session, layer, head)
        case OfNeuron(layer, neuron):
            return _of_neuron(session, layer, neuron)
        case OfComponent(layer, number):
            return _of_component(session, layer, number)
        case OfFile(path):
            return _of_file(session, path)


def _of_tokens(session: Session, plus: str, minus: str | None) -> Direction:
    tokenizer = session.loaded.tokenizer
    token, shown = one_token(tokenizer, plus)
    vector, title = _unembedding(session, token), f"the unembedding of {shown}"
    if minus is not None:
        token, other = one_token(tokenizer, minus)
        vector = vector - _unembedding(session, token)
        title += f" minus that of {other}"
    notes = ["The gain of the final norm is part of it: it is gain * W_U."]
    if session.loaded.spec.processing == "processed" and minus is None:
        notes.append("Processed weights: W_U without its mean over the vocabulary.")
    return Direction(_unit(session, vector, title), title, tuple(notes))


def _unembedding(session: Session, token: int) -> Vector:
    norm = session.backend.final_norm()
    column = _double(session.backend.unembedding()[0][:, token])
    return column if norm is None else column * _double(norm.gain)


def one_token(tokenizer: Any, text: str) -> tuple[int, str]:
    """The one token that ``text`` is, or that it is with or without a space before it.

    Raises:
        UsageError: it is neither.
    """
    other = text[1:] if text.startswith(" ") else f" {text}"
    tried: list[str] = []
    for form in filter(None, (text, other)):
        ids = tokenizer(form, add_special_tokens=False)["input_ids"]
        if len(ids) == 1:
            return int(ids[0]), label_of(form)
        parts = ", ".join(label_of(tokenizer.decode([token])) for token in ids[:6])
        more = ", ..." if len(ids) > 6 else ""
        tried.append(f"{label_of(form)} is {len(ids)} tokens" + (f": {parts}{more}" * bool(ids)))
    raise UsageError(
        f"no single token of this model is {label_of(text)}, with or without a space before it",
        "; ".join(tried),
    )


def _of_head(session: Session, layer: int, head: int) -> Direction:
    backend = session.backend
    _check("layer", layer, backend.anatomy.n_layers)
    _check("head", head, backend.anatomy.n_heads)
    weights = backend.weights(layer).attention
    if weights is None:
        raise UsageError(f"no weights for head:{layer}.{head}: {_missing(backend, 'attention')}")
    _pass_gate(session)
    reads = _double(weights.W_V[head // weights.queries_per_value])
    if backend.anatomy.has("ln1_out"):
        reads = reads * _double(backend.affine(layer, "ln1_out").gain)[:, None]
    writes = _written(backend, layer, "attn_out", weights.W_O[head])
    vector, share = output_singular(backend.anatomy.centred(reads.T).T, writes)
    title = f"what head {head} of layer {layer} writes"
    notes = (
        f"First output-side singular vector of W_V W_O: {share:.0%} of its squared size.",
        _SIGN,
    )
    return Direction(_positive(_unit(session, vector, title)), title, notes, layer)


def output_singular(
    reads: Float[Tensor, "d_model d_head"], writes: Float[Tensor, "d_head d_model"]
) -> tuple[Vector, float]:
    """First right singular vector of ``reads @ writes``, and its share of the squares.

    With reads = Q R and writes' transpose = P S, the singular values are those of the
    small matrix R S' and the right singular vectors are P times its own.
    """
    _, small = torch.linalg.qr(reads)
    outer, other = torch.linalg.qr(writes.T)
    _, sizes, right = torch.linalg.svd(small @ other.T)
    return outer @ right[0], float(sizes[0] ** 2 / sizes.square().sum().clamp_min(1e-300))


def _of_neuron(session: Session, layer: int, neuron: int) -> Direction:
    backend = session.backend
    _check("layer", layer, backend.anatomy.n_layers)
    weights = backend.weights(layer).mlp
    if weights is None:
        raise UsageError(f"no weights for neuron:{layer}.{neuron}: {_missing(backend, 'mlp')}")
    _check("neuron", neuron, weights.W_out.shape[0])
    _pass_gate(session)
    title = f"what neuron {neuron} of layer {layer} writes"
    vector = _written(backend, layer, "mlp_out", weights.W_out[neuron])
    return Direction(_unit(session, vector, title), title, (), layer)


def _pass_gate(session: Session) -> None:
    """The matrices must be those that the model computes with."""
    gate.check(session.backend, session.gate_tokens, tolerance(session.loaded.spec.dtype))


def _written(backend: Backend, layer: int, site: Site, rows: Tensor) -> Tensor:
    """Rows of an output matrix as they arrive in the stream, up to one factor."""
    norm = backend.post_norm(layer, site)
    rows = _double(rows)
    if norm is not None and norm.centring:
        rows = rows - rows.mean(dim=-1, keepdim=True)
    return backend.anatomy.centred(rows if norm is None else rows * _double(norm.gain))


def _missing(backend: Backend, sublayer: str) -> str:
    reasons = backend.anatomy.missing_weights.items()
    return next((why for name, why in reasons if name == sublayer), "the backend has none")


def _of_component(session: Session, layer: int, number: int) -> Direction:
    anatomy = session.backend.anatomy
    _check("layer", layer, anatomy.n_layers)
    found = principal_component(session, layer, number)
    title = f"principal component {number} of the stream after layer {layer}"
    notes = (
        f"It explains {found.share:.1%} of the variance over {found.tokens:,} tokens of "
        "residcheck's passages, position 0 left out.",
        _SIGN,
    )
    return Direction(_positive(_unit(session, found.vector, title)), title, notes, layer)


def _of_file(session: Session, path: Path) -> Direction:
    values = torch.from_numpy(read_vector(path))
    width = session.backend.anatomy.d_model
    if len(values) != width:
        raise UsageError(
            f"the vector in {path} has {len(values)} numbers",
            f"the stream of {session.loaded.id} has {width}",
        )
    title = f"the vector in {path.name}"
    return Direction(_unit(session, values, title), title)


def _check(what: str, number: int, count: int) -> None:
    if number >= count:
        raise UsageError(f"there is no {what} {number}", f"{what}s are 0 to {count - 1}")


def _double(x: Tensor) -> Tensor:
    return x.detach().cpu().double()


def _unit(session: Session, vector: Vector, title: str) -> Vector:
    """``vector`` centred as the stream is, of norm 1, in the precision of the pass."""
    vector = session.backend.anatomy.centred(vector)
    norm = vector.norm()
    if not bool(norm > 0):
        raise UsageError(f"{title} is zero, and zero has no direction")
    precision = torch.float64 if session.loaded.spec.dtype == "float64" else torch.float32
    unit: Vector = vector / norm
    return unit.to(precision)


def _positive(vector: Vector) -> Vector:
    largest = float(vector[vector.abs().argmax()])
    return -vector if largest < 0 else vector
