"""All horizons at once: layers that a horizon does not touch are computed once for all.

A horizon that leaves the unmodified model at layer f has its own stream from there on. At
each layer the blocks of all horizons that have left run as one batch: L(L-1)/2 blocks for
the horizons 1 ... L of the definition, the work of about L/2 forward passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from residcheck.backends import Backend, Site, Tap
from residcheck.horizon.original import Means, Tokens, streams, wide
from residcheck.horizon.plan import Plan
from residcheck.horizon.scores import Reference, Scores
from residcheck.horizon.variant import Cuts, Schedule

Stream = Float[Tensor, "batch pos d"]


@dataclass
class _Row:
    """One horizon under way: its stream, and those of its earlier streams that will be cut off."""

    schedule: Schedule
    stream: Stream
    kept: dict[int, Stream] = field(default_factory=dict)


@dataclass(frozen=True)
class Engine:
    """Truncated passes over one batch.

    Args:
        dtype: what the model computes in; reads are made in float32 at least.
        means: what stays of a removed stream; None where nothing does.
        original: truncated reads are of the unmodified model's stream.
        plan: how many horizons run together, and how many tokens are unembedded together.
        note: told, layer after layer, how many horizons have gone through it.
    """

    backend: Backend
    dtype: torch.dtype
    means: Means | None
    original: bool
    plan: Plan
    note: Callable[[int], None]

    @torch.inference_mode()
    def scores(
        self, batch: Tokens, schedules: Sequence[Schedule], middles: bool
    ) -> tuple[Scores, dict[Schedule, Scores]]:
        """Scores of the model as it is, and of each schedule, at every predicted token.

        Tokens are those after position 0, prompt after prompt, padding left out.
        """
        tokens, mask = batch
        reading = tokens[:, :-1], mask[:, :-1]  # the last position predicts nothing
        plain = streams(self.backend, reading, middles)
        after = mask[:, 1:].bool()
        finals: dict[Schedule, Tensor] = {}
        waiting = sorted((s for s in schedules if not s.untouched), key=lambda s: s.first)
        for start in range(0, len(waiting), self.plan.rows):
            group = waiting[start : start + self.plan.rows]
            reads = _Group(self, reading, plain, group).run()
            finals |= {s: read[after] for s, read in zip(group, reads, strict=True)}
        last = plain[2 * self.backend.anatomy.n_layers][after]
        del plain
        return self._unembed(last, finals, tokens[:, 1:][after], schedules)

    def _unembed(
        self,
        last: Float[Tensor, "token d"],
        finals: dict[Schedule, Float[Tensor, "token d"]],
        targets: Tensor,
        schedules: Sequence[Schedule],
    ) -> tuple[Scores, dict[Schedule, Scores]]:
        own: list[Scores] = []
        found: dict[Schedule, list[Scores]] = {s: [] for s in schedules}
        for start in range(0, len(targets), self.plan.piece):
            part = slice(start, start + self.plan.piece)
            reference = Reference(self._logits(last[part]), targets[part])
            own.append(reference.own)
            for s in schedules:
                scores = reference.own
                if s in finals:
                    scores = reference.score(self._logits(finals[s][part]))
                found[s].append(scores)
        return _joined(own), {s: _joined(parts) for s, parts in found.items()}

    def _logits(self, stream: Float[Tensor, "token d"]) -> Float[Tensor, "token vocab"]:
        return self.backend.unembed(stream.to(self.dtype))


def _joined(parts: list[Scores]) -> Scores:
    return Scores(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


class _Group:
    """Some horizons, from the first layer that any of them touches to the unembedding's read."""

    def __init__(
        self, engine: Engine, batch: Tokens, plain: dict[int, Stream], group: list[Schedule]
    ) -> None:
        self._engine, self._batch, self._plain = engine, batch, plain
        self._anatomy = engine.backend.anatomy
        self._rows = [_Row(s, plain[2 * s.first]) for s in group]

    def run(self) -> list[Stream]:
        """What the unembedding reads with each horizon."""
        depth = self._anatomy.n_layers
        for layer in range(min(row.schedule.first for row in self._rows), depth):
            self._layer(layer, [row for row in self._rows if row.schedule.first <= layer])
        return [self._less(row, row.stream, row.schedule.final, own=True) for row in self._rows]

    def _layer(self, layer: int, rows: list[_Row]) -> None:
        running: list[_Row] = []
        for row in rows:
            if self._engine.original and row.schedule.layers[layer] is None:
                self._pass(row, layer)
            else:
                running.append(row)
        if running:
            self._run(layer, running)
        self._engine.note(len(rows))

    def _pass(self, row: _Row, layer: int) -> None:
        """What is written is what the original writes, since nothing is cut off."""
        written = self._plain[2 * layer + 2] - self._plain[2 * layer]
        middle = row.stream + (self._plain[2 * layer + 1] - self._plain[2 * layer])
        self._go_on(row, layer, middle, row.stream + written)

    def _run(self, layer: int, rows: list[_Row]) -> None:
        """The block, once, on what each row's attention and MLP read."""
        backend, size = self._engine.backend, len(rows)
        middles: list[Tensor] = []
        written: list[Tensor] = []
        stream = torch.cat([row.stream for row in rows])

        def on_attention(a: Stream) -> None:
            middles.append(stream + a.to(stream.device))

        def on_mlp(m: Stream) -> None:
            written.append(wide(m, stream.device))

        def read(x: Stream) -> Stream:
            own = middles[0].chunk(size)
            reads = [
                self._read(row, layer, 2 * layer + 1, middle)
                for row, middle in zip(rows, own, strict=True)
            ]
            return torch.cat(reads).to(x.device, self._engine.dtype)

        taps: dict[tuple[int, Site], Tap] = {
            (layer, "attn_out"): on_attention,
            (layer, "mlp_out"): on_mlp,
        }
        if self._anatomy.has("resid_mid"):
            taps[layer, "resid_mid"] = read
        reads = torch.cat([self._read(row, layer, 2 * layer, row.stream) for row in rows])
        tokens, mask = (x.repeat(size, 1) for x in self._batch)
        backend.alone(layer, reads.to(self._engine.dtype), tokens, mask, taps)
        after = (middles[0] + written[0]).chunk(size)
        for row, middle, stream_after in zip(rows, middles[0].chunk(size), after, strict=True):
            self._go_on(row, layer, middle, stream_after)

    def _read(self, row: _Row, layer: int, place: int, own: Stream) -> Stream:
        """What the sublayer at ``place`` reads, of the row's own stream or the original's."""
        cuts = row.schedule.layers[layer] or Cuts(None, None)
        cut = cuts.attention if place == 2 * layer else cuts.mlp
        if self._engine.original:
            return self._less(row, self._plain[place], cut, own=False)
        return self._less(row, own, cut, own=True)

    def _less(self, row: _Row, stream: Stream, cut: int | None, *, own: bool) -> Stream:
        """``stream`` without what was written before ``cut``, or with its mean in its place."""
        if cut is None:
            return stream
        removed = row.kept[cut] if own and cut in row.kept else self._plain[cut]
        rest = stream - removed
        means = self._engine.means
        return rest if means is None else rest + means.at(cut, stream)

    def _go_on(self, row: _Row, layer: int, middle: Stream, after: Stream) -> None:
        """Move a row to the next layer; keep what will be cut off later, drop what was."""
        row.stream = after
        uses = row.schedule.last_uses(self._engine.original)
        for place, stream in ((2 * layer + 1, middle), (2 * layer + 2, after)):
            if place in uses:
                row.kept[place] = stream
        for place in [place for place in row.kept if uses[place] <= layer]:
            del row.kept[place]
