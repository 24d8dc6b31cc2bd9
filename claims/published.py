"""Sources, and the published facts about particular models: data, never parameters.

Layer windows are inclusive and refer to ``resid_post``.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from residcheck.claim import Source
from residcheck.curves import Floats, Run
from residcheck.stats import Phase, Shape, choose_phase

NORM_GROWTH = Source(
    title="Residual stream norms grow exponentially over the forward pass",
    authors="Heimersheim and Turner",
    year=2023,
    place="AI Alignment Forum",
)
BASIC_FACTS = Source(
    title="Basic facts about language model internals",
    authors="Millidge and Winsor",
    year=2023,
    place="AI Alignment Forum; quoted in the norm-growth post",
)
COMMENTS = Source(
    title="Comments on the rescaling of residual streams",
    authors="readers of the norm-growth post",
    year=2023,
    place="AI Alignment Forum",
)
STREAM_NOTES = Source(
    title="Residual Stream",
    authors="Cho",
    year=2024,
    place="notes after Elhage et al. (2021)",
)
LAYER_HORIZON = Source(
    title="Can transformers act on information beyond an effective layer horizon?",
    authors="Turner, with an experiment by Miller",
    year=2024,
    place="turntrout.com",
)


@dataclass(frozen=True)
class HorizonFacts:
    """The published curve of one model: its loss at horizon 1, its baseline, and between
    which horizons it falls most steeply."""

    first_loss: float
    baseline: float
    steepest: tuple[int, int]

    def __str__(self) -> str:
        return (
            f"published: near {self.first_loss:g} at k = 1, baseline {self.baseline:g}, "
            f"steepest between {self.steepest[0]} and {self.steepest[1]}, mean-ablated"
        )


@dataclass(frozen=True)
class Facts:
    """What was published about one model, with its number of layers.

    ``window`` is of the stream's growth; the others are of single experiments.
    ``too_small`` is whether it was called too small to have an effective horizon.
    """

    shape: Shape
    n_layers: int | None = None
    rate: float | None = None
    window: tuple[int, int] | None = None
    mlp_window: tuple[int, int] | None = None
    activation_window: tuple[int, int] | None = None
    ov_random_factor: float | None = None
    activation_random_factor: float | None = None
    horizon: HorizonFacts | None = None
    too_small: bool = False


# Growth rate and window of GPT2-XL, and the shapes of the smallest GPT-2s: the post's
# comparison of models. Horizons: the figure on GPT2-XL, over about 100 samples, and the
# sentence on GPT-2 small of the post about them.
FACTS = {
    "gpt2-xl": Facts(
        Shape.EXPONENTIAL,
        n_layers=48,
        rate=1.045,
        window=(5, 41),
        mlp_window=(30, 43),
        activation_window=(5, 20),
        ov_random_factor=5.0,
        activation_random_factor=4.0,
        horizon=HorizonFacts(first_loss=9.0, baseline=3.1418, steepest=(10, 25)),
    ),
    "gpt2": Facts(Shape.SUPER_EXPONENTIAL, n_layers=12, too_small=True),
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
    return _phase_of(run["resid_post_norm"].prompt_log, facts_about(run).window)


def activation_phase(run: Run) -> tuple[Phase, slice]:
    """The same for the activation rate, which has a window of its own."""
    return _phase_of(activation_log(run), facts_about(run).activation_window)


def activation_log(run: Run) -> Floats:
    """Mean log activation rate per prompt; half a neuron stands for none at a token."""
    rate = run["activation_rate"].ordinary
    log_rate = np.log(np.maximum(rate, 0.5 / (run.model.d_mlp or 1)))  # NaN at padding stays
    with warnings.catch_warnings():  # a prompt of one token has no ordinary position
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(np.nanmean(log_rate, axis=1))


def mlp_phase(run: Run) -> tuple[Phase, slice]:
    """The published window of the MLPs' growth; else the blocks of the stream's phase."""
    window = facts_about(run).mlp_window
    if window is not None:
        return Phase(*window, origin="published"), slice(None)
    phase, unseen = growth_phase(run)
    return phase.inside, unseen


def _phase_of(prompt_log: Floats, window: tuple[int, int] | None) -> tuple[Phase, slice]:
    if window is not None:
        return Phase(*window, origin="published"), slice(None)
    return choose_phase(prompt_log[::2].mean(axis=0)), slice(1, None, 2)
