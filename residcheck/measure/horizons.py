"""The curves over layer horizons, filled batch by batch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from residcheck.curves import Curve, HorizonInfo
from residcheck.horizon import (
    DEFAULT_MEMORY,
    DEFINITION,
    Schedule,
    Scores,
    Truncation,
    Variant,
    check_blocks,
    schedule,
    upper_half,
)
from residcheck.measure.opening import Session
from residcheck.measure.tokens import Batch, Encoded, batches
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
        memory: bytes to take beside the model.
    """

    variant: Variant = DEFINITION
    sample: bool = False
    memory: int = DEFAULT_MEMORY


WHOLE = HorizonOptions()


def curves_of(variant: Variant) -> list[str]:
    """What there is to measure of a variant; the control is one of its own, of all layers."""
    controlled = variant.enforced == "everywhere"
    return [name for name in HORIZON if controlled or name != _CONTROL]


class HorizonRecording:
    """The wanted curves over horizons of one session.

    Raises:
        UsageError: a layer that the model has not, or too little memory.
    """

    def __init__(
        self, session: Session, names: Iterable[str], options: HorizonOptions, batch_size: int
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
        self._truncation = Truncation(backend, self._variant, every, getattr(torch, spec.dtype))
        self._plan = self._truncation.plan(
            options.memory,
            min(batch_size, len(self._encoded.ids)),
            max(map(len, self._encoded.ids)),
            int(session.loaded.model.config.get_text_config().vocab_size),
            spec.device,
        )
        self._arrays = {name: self._empty(name, spec.dtype) for name in self._names}

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
        label, device = f"horizons of {self._session.loaded.id}", self._session.loaded.spec.device
        parts = list(batches(self._encoded, self._plan.prompts, device))
        total, done = self._truncation.work * len(parts), 0

        def note(blocks: int) -> None:
            nonlocal done
            done += blocks
            progress(label, done, total)

        progress(label, 0, total)
        self._truncation.take_means((batch.tokens, batch.mask) for batch in parts)
        for number, batch in enumerate(parts, 1):
            self._take(batch, note)
            done = self._truncation.work * number
        progress(label, total, total)

    def _take(self, batch: Batch, note: Any) -> None:
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
