"""The two inputs of one norm and different numbers of features, worked out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import expit, ndtr

from residcheck.stats.decision import Decision, Region, decide, exactly
from residcheck.stats.fits import Floats
from residcheck.stats.shape import VISIBLE

X = np.array([-1.0, 1.0, -1.0, 1.0]) / 2
Y = np.array([-1.0, 1.0, 1.0, 1.0]) / 2
W_IN = 100 * np.array([[-1.0, 1.0, -1.0, 1.0], [-1.0, 0.0, 1.0, 0.0]])
PUBLISHED = (np.array([200.0, 0.0]), np.array([100.0, 100.0]))
_ALL = "every number"

ACTIVATIONS: dict[str, Callable[[Floats], Floats]] = {
    "sigmoid": lambda x: np.asarray(expit(x)),
    "ReLU": lambda x: np.maximum(x, 0.0),
    "GELU": lambda x: np.asarray(x * ndtr(x)),
}


def toy_example() -> Decision:
    """Equal norms in, the published pre-activations, and other norms out.

    The second output is held against the first for every activation; they differ where
    their norms are apart by more than the visible 5 %.
    """
    hidden = (W_IN @ X, W_IN @ Y)
    off = max(float(np.abs(h - p).max()) for h, p in zip(hidden, PUBLISHED, strict=True))
    norms_in = float(np.linalg.norm(X) - np.linalg.norm(Y))
    estimates = [
        exactly("difference of the norms in", norms_in, 2, Region(0.0, 0.0), _ALL),
        exactly("largest distance from W_in x, W_in y as published", off, 4, Region(0, 0), _ALL),
    ]
    outputs = []
    for name, activate in ACTIVATIONS.items():
        out = [activate(h) for h in hidden]
        ratio = float(np.linalg.norm(out[1]) / np.linalg.norm(out[0]))
        apart = abs(float(np.log(ratio)))
        estimates.append(
            exactly(f"log ratio of the norms out, {name}", apart, 2, Region(VISIBLE), _ALL)
        )
        outputs.append(f"{name} gives {_vector(out[0])} and {_vector(out[1])}")
    note = "; ".join(outputs) + "; published for the sigmoid: about (1, 0), which at 0 gives 1/2"
    return decide(*estimates, note=note)


def _vector(values: Floats) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
