"""The arms: what each trained control does otherwise than the baseline.

Adding one is adding a file to ``arms/`` and its name to :data:`ORDER`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from residcheck.errors import UsageError
from residcheck.train.scales import Scale

Norm = Literal["LayerNorm", "RMSNorm"]
Decay = Literal["matrices", "all", "none"]
MODEL_TYPE = "residcheck-control"
"""What transformers calls the architecture of arms that are no plain GPT-2."""
ORDER = (
    "baseline",
    "rescale-residual",
    "rescale-residual-learned",
    "heads-8",
    "heads-16",
    "decay-all",
    "decay-none",
    "depth-scaled",
    "rmsnorm",
    "post-norm",
)
"""In which they are trained, the baseline first."""


@dataclass(frozen=True)
class Changes:
    """What an arm changes of GPT-2's architecture.

    Args:
        norm: the kind of every norm.
        post_norm: norms after each addition in the place of those before each sublayer.
        depth_scaled: what the norms of block l (from 1) hand on is divided by the root of l.
        rescale: what the stream is divided by before each block; None leaves it as it is.
        rescale_learned: the inverse of ``rescale`` is a parameter of each block.
    """

    norm: Norm = "LayerNorm"
    post_norm: bool = False
    depth_scaled: bool = False
    rescale: float | None = None
    rescale_learned: bool = False


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Args:
        question: the id in family H that it answers, or ``reference``.
        description: one sentence.
        heads: attention heads, which share out the same width.
        decay: what weight decay acts on; ``matrices`` are all weights but gains and biases,
            embeddings among them.
        learning_rate: of the scale's, the share that it is trained with.
        warm_up: how many times as long as the scale's its warm-up is.
    """

    name: str
    question: str
    description: str
    heads: int = 4
    decay: Decay = "matrices"
    learning_rate: float = 1.0
    warm_up: float = 1.0
    changes: Changes = field(default_factory=Changes)

    def schedule(self, scale: Scale) -> Scale:
        """The scale, with the learning rate and the warm-up of this arm."""
        warm_up = round(scale.warm_up * self.warm_up)
        rate = scale.learning_rate * self.learning_rate
        return replace(scale, learning_rate=rate, warm_up=warm_up)


@cache
def read_arms() -> dict[str, Arm]:
    """All arms by their names, in :data:`ORDER`."""
    folder = files(__package__).joinpath("arms")
    return {name: _arm(name, folder.joinpath(f"{name}.toml").read_text("utf-8")) for name in ORDER}


def chosen(names: Sequence[str]) -> list[Arm]:
    """The arms of these names, in :data:`ORDER`; without names all.

    Raises:
        UsageError: there is no arm of a name.
    """
    arms = read_arms()
    for name in names:
        if name not in arms:
            raise UsageError(f"there is no arm {name!r}", f"arms: {', '.join(arms)}")
    return [arm for name, arm in arms.items() if not names or name in names]


def _arm(name: str, text: str) -> Arm:
    said: dict[str, Any] = tomllib.loads(text)
    return Arm(name=name, **said | {"changes": Changes(**said.get("changes", {}))})
