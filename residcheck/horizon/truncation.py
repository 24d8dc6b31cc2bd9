"""A model, one way to truncate its streams, and the horizons to try: ready for batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from residcheck.backends import Backend
from residcheck.horizon.engine import Engine
from residcheck.horizon.original import Means, Tokens
from residcheck.horizon.plan import Demand, Plan, plan
from residcheck.horizon.scores import Scores
from residcheck.horizon.variant import Schedule, Variant


@dataclass
class Truncation:
    """Passes with the horizons ``schedules`` of one variant's ablation and outputs.

    Args:
        schedules: of any variants that agree in ``ablation``, ``outputs`` and ``unit``;
            horizons that do the same thing are run once.
        dtype: what the model computes in.
    """

    backend: Backend
    variant: Variant
    schedules: Sequence[Schedule]
    dtype: torch.dtype

    def __post_init__(self) -> None:
        self.schedules = list(dict.fromkeys(self.schedules))
        mean = self.variant.ablation == "mean"
        self.means = Means(self.backend, self.middles) if mean else None

    @property
    def original(self) -> bool:
        return self.variant.outputs == "original"

    @property
    def middles(self) -> bool:
        """Whether a read needs the unmodified stream between two sublayers of a block."""
        return self.original or self.variant.unit == "sublayers"

    @property
    def work(self) -> int:
        """How many blocks run for one batch."""
        depth = self.backend.anatomy.n_layers
        return sum(depth - schedule.first for schedule in self.schedules)

    def plan(self, memory: int, prompts: int, tokens: int, vocab: int, device: str) -> Plan:
        """How to batch prompts of ``tokens`` within ``memory`` bytes; see :func:`plan`."""
        anatomy = self.backend.anatomy
        demand = Demand.of(
            anatomy, vocab, self.dtype, self.schedules,
            middles=self.middles, original=self.original, tokens=tokens,
        )  # fmt: skip
        return plan(demand, memory, prompts, tokens, len(self.schedules), device)

    def see(self, batch: Tokens) -> None:
        """For an ablation by the mean: every batch is to be seen before the first is scored."""
        if self.means is not None:
            self.means.see(batch)

    def scores(
        self, batch: Tokens, plan: Plan, note: Callable[[int], None] = lambda blocks: None
    ) -> tuple[Scores, dict[Schedule, Scores]]:
        """Scores of the model as it is, and of each schedule, at every token but position 0.

        One after the other, prompt after prompt, padding left out.
        """
        engine = Engine(self.backend, self.dtype, self.means, self.original, plan, note)
        return engine.scores(batch, self.schedules, self.middles)


def upper_half(variant: Variant, n_layers: int) -> Variant:
    """The same, enforced from the middle layer on: the control for how many are touched."""
    return replace(variant, enforced="from", layer=n_layers // 2)
