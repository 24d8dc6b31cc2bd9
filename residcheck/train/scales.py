"""The sizes at which arms are trained."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from residcheck.stats import Phase

_PUBLISHED_FIRST, _PUBLISHED_LAST, _PUBLISHED_DEPTH = 5, 41, 48


@dataclass(frozen=True)
class Scale:
    """How large a model is and how long it is trained.

    Args:
        context: tokens a window reads, the BOS token among them.
        batch: windows a step.
        learning_rate: the highest; it rises to it over ``warm_up`` steps and falls along a
            cosine to a tenth of it.
        checkpoint_every: steps.
        held_out_windows: on which the loss and the norms are measured while it trains.
        device: ``cpu`` trains in float32; ``cuda`` in bfloat16, compiled.
        at_a_time: windows of a forward pass, all of a step where it is None; the gradients
            of a step's passes are added up.
    """

    name: str
    layers: int
    width: int
    vocabulary: int
    context: int
    batch: int
    steps: int
    learning_rate: float
    warm_up: int
    checkpoint_every: int
    held_out_windows: int
    device: str
    at_a_time: int | None = None

    @property
    def tokens_per_step(self) -> int:
        return self.batch * self.context

    @property
    def tokens(self) -> int:
        return self.steps * self.tokens_per_step

    @property
    def window(self) -> Phase:
        return growth_window(self.layers)


def growth_window(layers: int) -> Phase:
    """The layers over which a growth rate is fitted, fixed before anything was trained.

    GPT2-XL's published 5 to 41 of 48 in proportion, rounded inwards (2 to 10 of 12): the
    first blocks, which write much onto a small embedding, and the last, which write what
    is predicted, are left out.
    """
    first = math.ceil(_PUBLISHED_FIRST * layers / _PUBLISHED_DEPTH)
    last = math.floor(_PUBLISHED_LAST * layers / _PUBLISHED_DEPTH)
    first = max(0, min(first, layers - 2))
    return Phase(first, max(last, first + 1), "fixed beforehand")


@cache
def read_scales() -> dict[str, Scale]:
    """All scales by their names."""
    said = tomllib.loads(files(__package__).joinpath("scales.toml").read_text("utf-8"))
    return {name: Scale(name=name, **numbers) for name, numbers in said.items()}
