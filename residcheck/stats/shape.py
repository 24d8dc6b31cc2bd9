"""Which shape a growth curve has over the interior of the model's depth."""

from __future__ import annotations

from enum import StrEnum

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from residcheck.stats.decision import Decision, Outcome
from residcheck.stats.fits import Floats, slopes
from residcheck.stats.intervals import over_prompts
from residcheck.stats.resampling import expanded_level, resampled

# The published window of GPT2-XL, 5-41 of 48, leaves out about a tenth at either end.
EDGE = 0.1
# A growth and a fall of 5 % over the interior are what a log plot lets one see.
VISIBLE = float(np.log(1.05))
FALL = -float(np.log(0.95))
# The log rate of one half may differ from that of the other by half of their mean.
STEADY = 0.5


class Shape(StrEnum):
    """How the norm goes with depth."""

    SUPER_EXPONENTIAL = "super-exponential"
    EXPONENTIAL = "exponential"
    SUB_EXPONENTIAL = "sub-exponential"
    HAS_DECREASE = "has-decrease"
    FLAT = "flat"


def interior(n_layers: int) -> slice:
    """The layers but for a tenth at either end."""
    edge = round(EDGE * n_layers)
    return slice(edge, n_layers - edge)


def acceleration(log_norm: Floats) -> Floats:
    """Log rate of the second half minus that of the first, over their mean: ``[...]``."""
    curve = log_norm[..., interior(log_norm.shape[-1])]
    half = (curve.shape[-1] + 1) // 2
    layers = np.arange(half, dtype=np.float64)
    early, late = slopes(curve[..., :half], layers), slopes(curve[..., -half:], layers)
    mean = np.abs(early + late) / 2
    return np.asarray((late - early) / np.maximum(mean, VISIBLE / curve.shape[-1]))


def classify(log_norm: Floats) -> Shape:
    """The shape of one curve of mean log norms.

    has-decrease: it falls by 5 % or more somewhere over at least two layers; flat: it
    grows by less than 5 %; else by how the log rate changes from one half to the other.
    """
    return Shape(str(_classes(log_norm[None])[0]))


def _classes(log_norms: Floats) -> npt.NDArray[np.str_]:
    """The names of the shapes of many curves, ``[curve, layer]``."""
    curves = log_norms[:, interior(log_norms.shape[-1])]
    # one layer's dip is no phase
    smooth = np.median(sliding_window_view(curves, 3, axis=-1), axis=-1)
    fall = (np.maximum.accumulate(smooth, axis=-1) - smooth).max(axis=-1)
    change = acceleration(log_norms)
    named = {
        Shape.HAS_DECREASE: fall >= FALL,
        Shape.FLAT: curves[:, -1] - curves[:, 0] < VISIBLE,
        Shape.EXPONENTIAL: np.abs(change) <= STEADY,
        Shape.SUPER_EXPONENTIAL: change > 0,
    }
    names = [shape.value for shape in named]
    return np.select(list(named.values()), names, Shape.SUB_EXPONENTIAL.value)


def confidence(log_norm: Floats, shape: Shape) -> float:
    """Share of resamples of the prompts in which the curve has ``shape``."""
    return float(np.mean(_classes(resampled(log_norm)) == shape.value))


def enough(n: int) -> float:
    """The confidence from which a shape of n prompts is decided.

    Either side of a border is one-sided, at 2.5 % as every interval is, and resamples of few
    prompts vary too little by as much as they do for intervals.
    """
    return (1 + expanded_level(n)) / 2


def expected_shape(log_norm: Floats, expected: Shape) -> Decision:
    """Is the curve of the expected shape, for nearly all resamples of the prompts?"""
    found = classify(log_norm.mean(axis=0))
    sure = confidence(log_norm, found)
    change = over_prompts(
        "change of the log rate between halves, over its mean", log_norm, acceleration
    )
    if sure < enough(len(log_norm)):
        outcome = Outcome.INCONCLUSIVE
    else:
        outcome = Outcome.SUPPORTED if found == expected else Outcome.REFUTED
    note = f"{found.value} (confidence {sure:.2f}); expected {expected.value}"
    return Decision(outcome, (change,), note)
