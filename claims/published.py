"""Sources, and the published facts about particular models: data, never parameters.

Layer windows are inclusive and refer to ``resid_post``.
"""

from __future__ import annotations

from dataclasses import dataclass

from residcheck.claim import Source
from residcheck.curves import Run
from residcheck.stats import Phase, Shape, choose_phase

NORM_GROWTH = Source(
    title="Residual stream norms grow exponentially over the forward pass",
    authors="Heimersheim and Turner",
    year=2023,
    place="AI Alignment Forum",
)


@dataclass(frozen=True)
class Facts:
    """What was published about the growth of one model, with its number of layers."""

    shape: Shape
    n_layers: int | None = None
    rate: float | None = None
    window: tuple[int, int] | None = None


# Growth rate and window of GPT2-XL, and the shapes of the smallest GPT-2s: the post's
# comparison of models.
FACTS = {
    "gpt2-xl": Facts(Shape.EXPONENTIAL, n_layers=48, rate=1.045, window=(5, 41)),
    "gpt2": Facts(Shape.SUPER_EXPONENTIAL, n_layers=12),
    "distilgpt2": Facts(Shape.SUPER_EXPONENTIAL, n_layers=6),
}
MOST_MODELS = Facts(Shape.EXPONENTIAL)


def facts_about(run: Run) -> Facts:
    """The published facts about a run's model; what was said of most models otherwise."""
    facts = FACTS.get(run.model.id.rpartition("/")[2].lower(), MOST_MODELS)
    return facts if facts.n_layers == run.n_layers else MOST_MODELS


def growth_phase(run: Run) -> tuple[Phase, slice]:
    """The window to judge a model on, and the prompts that did not choose it.

    A published window is judged on all prompts. Otherwise the even prompts choose the
    window and the odd ones are left for testing.
    """
    window = facts_about(run).window
    if window is not None:
        return Phase(*window, origin="published"), slice(None)
    return choose_phase(run["resid_post_norm"].prompt_log[::2].mean(axis=0)), slice(1, None, 2)
