"""The matrices that read and write what is planned, in abstract coordinates.

Rows are vectors of the stream: ``v`` and ``gate`` rows read it, ``o`` and ``out`` rows are
written. Beside what makes the planted writes there are parts that no real stream reaches:
they read coordinates that nothing writes, so that only Gaussian inputs, and the norms of
the weights, see them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import integrate, stats

from residcheck.errors import UsageError
from residcheck.planted.plan import Plan
from residcheck.planted.stream import OWN, Block, Slots, Vector, Write, embedding

HEADS = 4
DEAD_HEADS, DEAD_PER_HEAD = 3, 2  # heads 1 to 3 read two of the coordinates nothing writes
DEAD_NEURONS, DEAD_SIZE = 16, 8.0
PATTERN = 0.5  # size of what W_Q and W_K read of tokens
GATE = 3.0  # pre-activation of active neurons, and of idle ones with the other sign
IDLE = 0.3  # share of idle neurons that Gaussian inputs activate in the first layer
UNSEEN = 8.0  # size of a query and a key of opposite signs, which hide BOS from later positions
BOS_START, BOS_PEAK, BOS_LEFT = 0.5, 40.0, 0.05
EARLY = 7  # positions below this are "up to 6"


@dataclass(frozen=True)
class Matrices:
    """One block; ``d_head`` and the number of neurons are the architecture's.

    ``q``, ``k``, ``v`` and ``o`` are ``[head, d_head, slot]``, the rest ``[neuron, slot]``;
    ``b_in`` is ``[neuron]`` and ``b_o`` ``[slot]``. ``up`` are the linear parts of gated MLPs.
    """

    q: Vector
    k: Vector
    v: Vector
    o: Vector
    b_o: Vector
    gate: Vector
    up: Vector
    b_in: Vector
    out: Vector


def width(plan: Plan) -> int:
    """d_model: a multiple of 16 with room for all slots and, under LayerNorm, a mean of zero."""
    return 16 * -(-(Slots(plan.layers).count + 1) // 16)


def neurons(plan: Plan) -> int:
    """d_mlp."""
    return max(plan.neurons * width(plan), 2 * DEAD_NEURONS + 8)


def activation(plan: Plan, x: Vector) -> Vector:
    """What hidden neurons of the family make of a pre-activation."""
    if plan.family == "llama":
        return np.asarray(x / (1 + np.exp(-x)))
    if plan.family == "neox":
        return np.asarray(x * stats.norm.cdf(x))
    return np.asarray(x / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))))


def first_token(plan: Plan) -> Vector:
    """What the embedding puts at position 0."""
    slots = Slots(plan.layers)
    stream = embedding(plan, slots)
    stream[slots.own.start] = OWN
    if plan.positions == "apart":
        stream[slots.position] = OWN
    if plan.bos == "apart":
        stream[slots.bos] = BOS_START
    return stream


class Blueprint:
    """All blocks' matrices, made one after the other: BOS has a stream of its own."""

    def __init__(self, plan: Plan, blocks: list[Block]) -> None:
        self.plan, self.blocks, self.slots = plan, blocks, Slots(plan.layers)
        self.root = width(plan) ** 0.5
        self._rng = np.random.default_rng(17)
        self._sizes = [block.attention.size for block in blocks]
        self._bos = first_token(plan)

    def matrices(self) -> list[Matrices]:
        return [self._block(layer, block) for layer, block in enumerate(self.blocks)]

    def _block(self, layer: int, block: Block) -> Matrices:
        q, k = self._patterns(layer)
        v, o, b_o = self._values(layer, block.attention)
        attended = np.einsum("hds,s,hdt->t", v, self._normalised_bos(), o) + b_o
        if not self.plan.parallel:
            self._bos = self._bos + attended
        gate, up, b_in, out = self._mlp(layer, block.mlp)
        self._bos = self._bos + self._fed(gate, up, b_in, out)
        if self.plan.parallel:
            self._bos = self._bos + attended
        return Matrices(q, k, v, o, b_o, gate, up, b_in, out)

    def _normalised_bos(self) -> Vector:
        return np.asarray(self._bos / np.linalg.norm(self._bos) * self.root)

    def _fed(self, gate: Vector, up: Vector, b_in: Vector, out: Vector) -> Vector:
        """What the MLP writes at BOS, which attends to itself alone."""
        read = self._normalised_bos()
        hidden = activation(self.plan, gate @ read + b_in)
        return np.asarray((hidden * (up @ read) if self.plan.gated else hidden) @ out)

    def _zeros(self, *shape: int) -> Vector:
        return np.zeros((*shape, self.slots.count))

    def _directions(self, count: int) -> Vector:
        """Random orthonormal rows."""
        return np.asarray(np.linalg.qr(self._rng.standard_normal((self.slots.count, count)))[0].T)

    def _patterns(self, layer: int) -> tuple[Vector, Vector]:
        d_head = width(self.plan) // HEADS
        q, k = self._zeros(HEADS, d_head), self._zeros(HEADS, d_head)
        growth = self.plan.reading**layer
        for rows in (q, k):
            own = self._rng.standard_normal((HEADS, d_head, 8)) / d_head**0.5
            rows[..., self.slots.own] = PATTERN * own
            if growth != 1:
                dead = self._rng.standard_normal((HEADS, d_head, 8)) / d_head**0.5
                rows[..., self.slots.dead] = growth * dead
        if self.plan.bos == "apart":
            slowest = d_head // 2 - 1  # of rotary pairs; not rotated at all in NeoX
            q[:, slowest] = UNSEEN * self.blocks[layer].attention.reads
            k[:, slowest] = -UNSEEN * self.slots.unit(self.slots.bos)
        return q, k

    def _values(self, layer: int, write: Write) -> tuple[Vector, Vector, Vector]:
        plan, d_head = self.plan, width(self.plan) // HEADS
        v, o = self._zeros(HEADS, d_head), self._zeros(HEADS, d_head)
        bias = plan.bias * (write.writes - write.erases) if plan.biased else self._zeros()
        v[0, 0] = write.reads
        o[0, 0] = (write.writes - write.erases - bias) / (write.share * self.root)
        size = self._dead_size(layer, o[0, 0])
        for head in range(1, HEADS) if size else ():
            dead = slice(self.slots.dead.start + 2 * head - 2, self.slots.dead.start + 2 * head)
            v[head, :2] = np.eye(self.slots.count)[dead]
            o[head, :2] = self._directions(DEAD_PER_HEAD) * size
        if plan.eraser and plan.eraser[0] == layer:
            v[plan.eraser[1], 2] = write.reads
            o[plan.eraser[1], 2] = write.erases / (write.share * self.root)
        if plan.mixing:
            half = np.arange(self.slots.own.start, self.slots.own.start + 4)
            v[0, 1:5] = np.eye(self.slots.count)[half]
            o[0, 1:5] = plan.mixing * np.eye(self.slots.count)[half + 4] / (OWN * self.root)
        return v, o, bias

    def _dead_size(self, layer: int, active: Vector) -> float:
        """Norm of each row that a dead head writes."""
        if self.plan.ov == "flat":  # the mean over heads of the norms of W_OV is the same
            level = 1.5 * max(self._sizes) * (1 + self.plan.random_attention)
            others = HEADS * level - float(np.linalg.norm(active))
            return float(others / DEAD_HEADS / DEAD_PER_HEAD**0.5)
        wanted = self.plan.random_attention * self._sizes[layer]
        return float(wanted / (DEAD_HEADS * DEAD_PER_HEAD) ** 0.5)

    def _mlp(self, layer: int, write: Write) -> tuple[Vector, Vector, Vector, Vector]:
        count = neurons(self.plan)
        gate, up, out = self._zeros(count), self._zeros(count), self._zeros(count)
        b_in = np.zeros(count)
        active = self._main(write, gate, up, out)
        first = active
        if self.plan.random_mlp:
            self._dead(write, gate[active:], up[active:], b_in[active:], out[active:])
            first += DEAD_NEURONS
        if self.plan.bos == "apart":
            self._peak(layer, gate[first:], up[first:], out[first:])
            first += 2
        idle = slice(first, count)
        lit = round(self.plan.active * self.plan.activation**layer * count) - 1
        if not 0 <= lit <= count - first:
            raise UsageError(
                f"cannot plant {self.plan}: layer {layer} would need {lit + 1} active neurons "
                f"of {count}",
                "plant another activation, or fewer layers",
            )
        self._idle(layer, write, lit, gate[idle], b_in[idle])
        gate[idle] *= self.plan.reading**layer
        return gate, up, b_in, out

    def _main(self, write: Write, gate: Vector, up: Vector, out: Vector) -> int:
        """What writes the planted vector: x = act(x) - act(-x) where nothing is gated."""
        read = write.share * self.root
        if self.plan.gated:
            gate[0], up[0] = GATE / self.root * write.reads, write.reads
            hidden = activation(self.plan, np.asarray(GATE * write.share)) * read
            out[0] = write.writes / hidden
            return 1
        gate[0], gate[1] = write.reads, -write.reads
        out[0], out[1] = write.writes / read, -write.writes / read
        return 2

    def _dead(self, write: Write, gate: Vector, up: Vector, b_in: Vector, out: Vector) -> None:
        """Neurons that only Gaussian inputs reach, and what they then write."""
        rows = self._zeros(DEAD_NEURONS)
        inside = self._rng.standard_normal((DEAD_NEURONS, 8))
        rows[:, self.slots.dead] = inside / np.linalg.norm(inside, axis=1, keepdims=True)
        some = slice(DEAD_NEURONS)
        if self.plan.gated:
            gate[some] = DEAD_SIZE * (rows - write.reads / self.root)
            up[some] = np.roll(rows, 1, axis=0)
        else:
            gate[some], b_in[some] = DEAD_SIZE * rows, -DEAD_SIZE
        power = self._power(0.0 if self.plan.gated else -DEAD_SIZE)
        wanted = self.plan.random_mlp * write.size
        out[some] = self._directions(DEAD_NEURONS) * wanted / (DEAD_NEURONS * power) ** 0.5

    def _power(self, mean: float) -> float:
        """Mean square of an activation whose pre-activation is normal, of sd DEAD_SIZE."""
        density = stats.norm(mean, DEAD_SIZE).pdf
        span = (mean - 8 * DEAD_SIZE, mean + 8 * DEAD_SIZE)
        found = integrate.quad(
            lambda x: activation(self.plan, x) ** 2 * density(x), *span, limit=200
        )
        return float(found[0])

    def _idle(self, layer: int, write: Write, lit: int, gate: Vector, b_in: Vector) -> None:
        """Neurons that write nothing: the first ``lit`` are active at every token."""
        signs = np.where(np.arange(len(gate)) < lit, 1.0, -1.0)
        if not self.plan.biased:
            gate[:] = GATE / self.root * signs[:, None] * write.reads
            return
        rows = self._rng.standard_normal((len(gate), 8))
        gate[:, self.slots.dead] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        idle = -stats.norm.ppf(np.clip(IDLE * self.plan.gaussian**layer, 1e-6, 0.999))
        b_in[:] = np.where(signs > 0, GATE, -idle)
        if self.plan.positions == "apart":
            early = slice(lit, lit + len(gate) // 2)
            gate[early], b_in[early] = self.slots.unit(self.slots.position), 0.0

    def _peak(self, layer: int, gate: Vector, up: Vector, out: Vector) -> None:
        """In an early and a late layer, neurons that read what BOS alone has."""
        bos = self.slots.unit(self.slots.bos)
        gate[0], gate[1] = bos, -bos
        up[0] = bos
        read = np.asarray(bos @ self._normalised_bos())
        hidden = activation(self.plan, read) * read if self.plan.gated else read
        change = self._bos_change(layer)
        out[0] = change / hidden * bos
        if not self.plan.gated:
            out[1] = -out[0]

    def _bos_change(self, layer: int) -> float:
        if layer == 1:
            return BOS_PEAK
        late = layer == self.plan.layers - 2
        return float(-(1 - BOS_LEFT) * self._bos[self.slots.bos]) if late else 0.0
