"""The curves over layer horizons, filled batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from residcheck.curves import Curve, HorizonInfo
from residcheck.errors import UsageError
from residcheck.horizon import (
    DEFAULT_MEMORY,
    DEFINITION,
    SMALLEST,
    Plan,
    Schedule,
    Scores,
    Truncation,
    Variant,
    check_blocks,
    schedule,
    upper_half,
)
from residcheck.measure.memory import DEFAULT_BATCH_SIZE, fits, in_pieces
from residcheck.measure.opening import Session
from residcheck.measure.tokens import Batch, Encoded, batch_of, longest_first
from residcheck.names import HORIZON
from residcheck.progress import Progress
from residcheck.tolerances import tolerance

SAMPLE_LIMIT = 1024
"""Tokens up to which all prompts are taken where only a sample is wanted."""
_SAMPLE = (16, 32)  # else the first 16 prompts, and of each the first 32 tokens
_CONTROL = "horizon_loss_from_middle"
_FIELDS = {"horizon_loss": "loss", "horizon_kl": "kl", "horizon_top1": "top1"}


@dataclass(frozen=True)
class HorizonOptions:
    """How horizons are measured.

    Args:
        variant: what a horizon means.
        sample: a sample will do where the prompts have more than :data:`SAMPLE_LIMIT`
            tokens, since all horizons cost half as many passes as there are layers.
        memory: bytes to take beside the model; unless given, half of what is free on a GPU,
            and :data:`~residcheck.horizon.DEFAULT_MEMORY` elsewhere.
    """

    variant: Variant = DEFINITION
    sample: bool = False
    memory: int | None = None


WHOLE = HorizonOptions()


def curves_of(variant: Variant) -> list[str]:
    """What there is to measure of a variant; the control is one of its own, of all layers."""
    controlled = variant.enforced == "everywhere"
    return [name for name in HORIZON if controlled or name != _CONTROL]


class HorizonRecording:
    """The wanted curves over horizons of one session.

    Args:
        batch_size: at most so many prompts together; unless given, as many as ``free`` allows,
            or 8.
        free: bytes that can be had beside the model; None where that is not known.

    Raises:
        UsageError: a layer that the model has not, or too little memory.
    """

    def __init__(
        self,
        session: Session,
        names: Iterable[str],
        options: HorizonOptions,
        batch_size: int | None,
        free: int | None = None,
    ) -> None:
        self._names = [n for n in names if n in HORIZON and n not in session.missing]
        self._session, self._variant = session, options.variant
        self._encoded = _sampled(session.encoded) if options.sample else session.encoded
        self._done: list[int] = []
        backend, spec = session.backend, session.loaded.spec
        if not self._names:
            return
        self._variant.check(backend.anatomy.n_layers)
        self._schedules = {name: self._schedules_of(name) for name in self._names}
        every = [s for schedules in self._schedules.values() for s in schedules]
        dtype = getattr(torch, spec.torch_dtype)
        self._truncation = Truncation(backend, self._variant, every, dtype)
        self._plan = self._planned(options.memory, batch_size, free)
        self._arrays = {name: self._empty(name, spec.dtype) for name in self._names}

    def _planned(self, memory: int | None, batch_size: int | None, free: int | None) -> Plan:
        loaded, prompts = self._session.loaded, len(self._encoded.ids)
        most = batch_size or (DEFAULT_BATCH_SIZE if free is None else prompts)
        try:
            return self._truncation.plan(
                memory or free or DEFAULT_MEMORY,
                min(most, prompts),
                max(map(len, self._encoded.ids)),
                int(loaded.model.config.get_text_config().vocab_size),
                loaded.device,
            )
        except UsageError:
            if memory is not None or free is None:
                raise
            return SMALLEST  # nobody set a limit, and estimates are on the large side

    def check(self) -> None:
        """Raise ``UnsupportedModelError`` if the model's blocks cannot be run one at a time."""
        session = self._session
        if self._names:
            dtype = session.loaded.spec.dtype
            check_blocks(session.backend, session.gate_tokens, tolerance(dtype))

    def leave_out(self) -> None:
        """Measure no horizons after all."""
        self._names = []

    def _schedules_of(self, name: str) -> list[Schedule]:
        anatomy = self._session.backend.anatomy
        depth, variant = anatomy.n_layers, self._variant
        if name == "loss":
            return []
        longest = variant.longest(depth)
        if name == _CONTROL:
            variant, longest = upper_half(variant, depth), variant.longest(depth // 2)
        horizons = range(1, longest + 1)
        return [schedule(variant, k, depth, anatomy.parallel) for k in horizons]

    def _empty(self, name: str, dtype: str) -> np.ndarray[Any, Any]:
        shape = [len(self._encoded.ids), max(map(len, self._encoded.ids))]
        if name != "loss":
            shape.append(len(self._schedules[name]))
        return np.full(shape, np.nan, np.float64 if dtype == "float64" else np.float32)

    @property
    def done(self) -> list[int]:
        """The prompts that were finished."""
        return sorted(self._done)

    def take_all(self, progress: Progress) -> None:
        """Run every batch; of an interrupted run, what was finished stays."""
        if not self._names:
            return
        label, device = f"horizons of {self._session.loaded.id}", self._session.loaded.device
        work, order = self._truncation.work, longest_first(self._encoded)
        total, done = work * len(order), 0
        batch: Batch

        def note(blocks: int) -> None:
            nonlocal done
            done += blocks * len(batch.indices)
            progress(label, done, total)

        progress(label, 0, total)
        in_pieces(order, self._plan.prompts, partial(self._see, device), device)
        while rest := order[len(self._done) :]:
            batch = batch_of(self._encoded, rest[: self._plan.prompts], device)
            done, smaller = work * len(self._done), self._plan.smaller()
            if smaller is None:
                self._take(batch, note)
            elif not fits(partial(self._take, batch, note), device):
                self._plan = smaller  # for this batch and those after it
        progress(label, total, total)

    def _see(self, device: str, indices: Sequence[int]) -> None:
        batch = batch_of(self._encoded, indices, device)
        self._truncation.see((batch.tokens, batch.mask))

    def _take(self, batch: Batch, note: Callable[[int], None]) -> None:
        """Run a batch and keep its scores: of all its prompts, or of none."""
        plain, found = self._truncation.scores((batch.tokens, batch.mask), self._plan, note)
        lengths: list[int] = (batch.mask.sum(dim=1) - 1).tolist()
        for name in self._names:
            table = self._table(name, plain, found).cpu().numpy()
            ends = np.cumsum(lengths)
            for index, end, length in zip(batch.indices, ends, lengths, strict=True):
                self._arrays[name][index, 1 : 1 + length] = table[end - length : end]
        self._done += batch.indices

    def _table(self, name: str, plain: Scores, found: dict[Schedule, Scores]) -> torch.Tensor:
        """The curve's values at every predicted token of the batch: [token], [token, horizon]."""
        if name == "loss":
            return plain.loss
        columns = [found[s] for s in self._schedules[name]]
        field = _FIELDS.get(name, "loss")
        return torch.stack([getattr(column, field) for column in columns], dim=-1)

    def curves(self) -> dict[str, Curve]:
        """Of the prompts that were finished."""
        if not self._done:
            return {}
        return {
            name: Curve(name, HORIZON[name].dims, self._arrays[name][self.done], HORIZON[name].unit)
            for name in self._names
        }

    def info(self) -> HorizonInfo | None:
        """What was measured, and on which prompts."""
        if not self._done:
            return None
        prompts = self._encoded.select(self.done).info()
        return HorizonInfo(**self._variant.fields, prompts=prompts)


def _sampled(encoded: Encoded) -> Encoded:
    if sum(map(len, encoded.ids)) <= SAMPLE_LIMIT:
        return encoded
    prompts, tokens = _SAMPLE
    ids = tuple(prompt[:tokens] for prompt in encoded.ids[:prompts])
    return replace(encoded, ids=ids, max_tokens=min(tokens, encoded.max_tokens))
