"""Which shape a growth curve has over the interior of the model's depth."""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import stats

from residcheck.stats.decision import LEVEL, Decision, Outcome
from residcheck.stats.fits import Floats, slopes
from residcheck.stats.intervals import RESAMPLES, over_prompts

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
    curve = log_norm[interior(len(log_norm))]
    smooth = np.median(sliding_window_view(curve, 3), axis=-1)  # one layer's dip is no phase
    if np.max(np.maximum.accumulate(smooth) - smooth) >= FALL:
        return Shape.HAS_DECREASE
    if curve[-1] - curve[0] < VISIBLE:
        return Shape.FLAT
    change = float(acceleration(log_norm))
    if abs(change) <= STEADY:
        return Shape.EXPONENTIAL
    return Shape.SUPER_EXPONENTIAL if change > 0 else Shape.SUB_EXPONENTIAL


def confidence(log_norm: Floats, shape: Shape) -> float:
    """Share of resamples of the prompts in which the curve has ``shape``."""
    rng = np.random.default_rng(0)
    n = len(log_norm)
    counts = stats.multinomial.rvs(n, np.full(n, 1 / n), size=RESAMPLES // 4, random_state=rng)
    return float(np.mean([classify(row) == shape for row in counts @ log_norm / n]))


def expected_shape(log_norm: Floats, expected: Shape) -> Decision:
    """Is the curve of the expected shape, for nearly all resamples of the prompts?"""
    found = classify(log_norm.mean(axis=0))
    sure = confidence(log_norm, found)
    change = over_prompts(
        "change of the log rate between halves, over its mean", log_norm, acceleration
    )
    if sure < LEVEL:
        outcome = Outcome.INCONCLUSIVE
    else:
        outcome = Outcome.SUPPORTED if found == expected else Outcome.REFUTED
    note = f"{found.value} (confidence {sure:.2f}); expected {expected.value}"
    return Decision(outcome, (change,), note)
