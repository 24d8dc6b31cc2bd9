"""What every block writes, worked out before there are weights.

The stream of a token is ``shared + own``: ``shared`` is the same vector for all ordinary
tokens, ``own`` differs from token to token and stays as the embedding made it. Sublayers
read a direction of ``shared`` only. A token's normalised stream has the same component
along it whatever the token, so whatever pattern attention has, it copies the same value
everywhere, and what each sublayer writes is one known vector. Its size is chosen so that
the norm is the planted one: with n the norm before, t after, S the norm of what is written
and c its cosine with the stream, ``t^2 = n^2 + S^2 + 2 c S n``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from residcheck.errors import UsageError
from residcheck.planted.plan import Plan

Vector = npt.NDArray[np.float64]

OWN = 0.3  # norm of what tokens do not share; the embedding's norm is 1
QUIET = 0.05  # norm of what a sublayer writes that has no part in the growth
STEADY = 0.2  # norm of a write that turns the stream, or shrinks it, over the stream's
ASIDE, ASIDE_GROWTH = 0.5, 1.15  # what is written beside and taken away, over the stream
ERASED = 0.5  # share of an earlier write that an eraser takes away


@dataclass(frozen=True)
class Slots:
    """Which abstract coordinates hold what; a rotation hides them in the model."""

    layers: int
    main: ClassVar[int] = 0
    bos: ClassVar[int] = 1
    position: ClassVar[int] = 2
    own: ClassVar[slice] = slice(3, 11)
    dead: ClassVar[slice] = slice(11, 19)

    def fresh(self, layer: int, part: int) -> int:
        """The coordinate that attention (part 0) or the MLP (part 1) of a layer writes anew."""
        return int(self.dead.stop) + 2 * layer + part

    @property
    def count(self) -> int:
        return self.fresh(self.layers, 0)

    def unit(self, slot: int) -> Vector:
        vector = np.zeros(self.count)
        vector[slot] = 1
        return vector


@dataclass(frozen=True)
class Write:
    """What one sublayer reads and writes.

    Args:
        reads: the unit direction of the stream that is read.
        share: its component in the stream over the stream's norm.
        writes: what is added to the stream.
        erases: the part of it that an eraser head adds.
        before, after: the stream's norm.
        cosine: of ``writes`` with the stream.
    """

    reads: Vector
    share: float
    writes: Vector
    erases: Vector
    before: float
    after: float
    cosine: float

    @property
    def size(self) -> float:
        return float(np.linalg.norm(self.writes))


@dataclass(frozen=True)
class Block:
    """Both sublayers of a layer; in a parallel block both read the same stream."""

    attention: Write
    mlp: Write


def norms(plan: Plan) -> Vector:
    """The planted norm of ``resid_post`` by layer, in units of the embedding's."""
    first, last = plan.window or (-1, plan.layers - 1)
    length = last - first
    step = np.clip(np.arange(plan.layers) - first, 0, length).astype(np.float64)
    total = plan.growth**length
    if plan.shape == "linear":
        return np.asarray(1 + (total - 1) * step / length)
    if plan.shape == "power":
        return np.asarray((step + 1) ** (np.log(total) / np.log(length + 1)))
    exponent = step**2 / length if plan.shape == "super" else step
    return np.asarray(plan.growth**exponent)


def blocks(plan: Plan) -> list[Block]:
    """What every block writes.

    Raises:
        UsageError: no such stream exists, as where it should become smaller than what
            tokens do not share.
    """
    return list(_walk(plan, Slots(plan.layers)))


def unshared(plan: Plan) -> float:
    """Norm of what sublayers never read: of tokens, and of positions where these differ."""
    return float(np.hypot(OWN, OWN if plan.positions == "apart" else 0.0))


def embedding(plan: Plan, slots: Slots) -> Vector:
    """What the embeddings of all tokens share."""
    return np.asarray(slots.unit(slots.main) * np.sqrt(1 - unshared(plan) ** 2))


def _walk(plan: Plan, slots: Slots) -> Iterator[Block]:
    shared = embedding(plan, slots)
    rest = unshared(plan)
    for layer, target in enumerate(norms(plan)):
        fresh = [slots.unit(slots.fresh(layer, part)) for part in (0, 1)]
        erased = _erased(plan, slots, layer, shared)
        make = _parallel if plan.parallel else _sequential
        attention, mlp = make(plan, layer, _Stream(shared, rest), fresh, float(target), erased)
        before = _Stream(shared, rest)
        middle = before if plan.parallel else before + attention
        yield Block(
            _described(plan, slots, before, attention, erased),
            _described(plan, slots, middle, mlp, np.zeros_like(mlp)),
        )
        shared = shared + attention + mlp


@dataclass(frozen=True)
class _Stream:
    shared: Vector
    rest: float

    def __add__(self, write: Vector) -> _Stream:
        return _Stream(self.shared + write, self.rest)

    @property
    def norm(self) -> float:
        return float(np.hypot(np.linalg.norm(self.shared), self.rest))

    @property
    def direction(self) -> Vector:
        return np.asarray(self.shared / np.linalg.norm(self.shared))

    @property
    def share(self) -> float:
        return float(np.linalg.norm(self.shared)) / self.norm

    def written(self, size: float, cosine: float, fresh: Vector) -> Vector:
        """A vector of this norm and this cosine with the stream."""
        along = cosine * size / self.share
        if abs(along) > size:
            raise UsageError(
                f"nothing shared has a cosine of {cosine:.3g} with a stream whose shared part "
                f"is {self.share:.3g} of its norm",
                "plant a cosine nearer to zero or a slower change of the norm",
            )
        return np.asarray(along * self.direction + np.sqrt(size**2 - along**2) * fresh)


def _sequential(
    plan: Plan, layer: int, pre: _Stream, fresh: list[Vector], target: float, erased: Vector
) -> tuple[Vector, Vector]:
    if plan.mid == "apart":
        aside = ASIDE * pre.norm * ASIDE_GROWTH**layer * fresh[0]
        return aside, _change(plan, pre, fresh[1], target) - aside
    start = pre + erased
    middle = {"both": np.sqrt(pre.norm * target), "attention": target, "mlp": start.norm}[plan.by]
    quiet = {"attention": plan.by == "mlp", "mlp": plan.by == "attention"}
    attention = erased + _change(plan, start, fresh[0], float(middle), quiet["attention"])
    mid = pre + attention
    removed = (plan.kept - 1) * mid.shared
    return attention, removed + _change(plan, mid + removed, fresh[1], target, quiet["mlp"])


def _change(
    plan: Plan, stream: _Stream, fresh: Vector, target: float, quiet: bool = False
) -> Vector:
    """What takes the stream's norm to ``target``."""
    n = stream.norm
    growing = target > n * (1 + 1e-9)
    if growing and not quiet:
        c = plan.cosine
        return stream.written(n * (np.sqrt(c**2 - 1 + (target / n) ** 2) - c), c, fresh)
    size = QUIET if quiet else max(STEADY * n, 2 * (n - target))
    return stream.written(size, (target**2 - n**2 - size**2) / (2 * size * n), fresh)


def _parallel(
    plan: Plan, layer: int, pre: _Stream, fresh: list[Vector], target: float, erased: Vector
) -> tuple[Vector, Vector]:
    """Two writes of one size and cosine to the stream, or one beside a quiet one.

    With along = c S / share the part of each in the direction of what is shared, both make
    ``t^2 = n^2 + 4 c S n + 2 S^2 + 2 along^2``.
    """
    removed = (plan.kept - 1) * pre.shared
    stream = pre + erased + removed
    n, change = stream.norm, target**2 - stream.norm**2
    if plan.by != "both":
        loud = stream + QUIET * fresh[1]
        both = [_change(plan, loud, fresh[0], target), QUIET * fresh[1]]
        attention, mlp = both if plan.by == "attention" else both[::-1]
        return attention + erased, mlp + removed
    if change > 1e-9 * n**2:
        c = plan.cosine
        a, b = 2 + 2 * (c / stream.share) ** 2, 4 * c * n
        size = (np.sqrt(b**2 + 4 * a * change) - b) / (2 * a)
    else:
        size = max(STEADY * n, 2 * (n - target))
        a, b = 2 * (size / stream.share) ** 2, 4 * size * n
        c = float((np.sqrt(b**2 - 4 * a * (2 * size**2 - change)) - b) / (2 * a))
    attention, mlp = (stream.written(float(size), c, direction) for direction in fresh)
    return attention + erased, mlp + removed


def _erased(plan: Plan, slots: Slots, layer: int, shared: Vector) -> Vector:
    gone = np.zeros_like(shared)
    if plan.eraser and plan.eraser[0] == layer:
        for part in (0, 1):
            slot = slots.fresh(layer - 1, part)
            gone[slot] = -ERASED * shared[slot]
    return gone


def _described(plan: Plan, slots: Slots, stream: _Stream, write: Vector, erases: Vector) -> Write:
    reads = slots.unit(slots.main) if plan.reads == "embedding" else stream.direction
    return Write(
        reads=reads,
        share=float(reads @ stream.shared) / stream.norm,
        writes=write,
        erases=erases,
        before=stream.norm,
        after=(stream + write).norm,
        cosine=float(write @ stream.shared / (np.linalg.norm(write) * stream.norm)),
    )
