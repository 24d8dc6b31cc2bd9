"""What one trained control says: how fast its stream grows, and where that is stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from residcheck.stats import Estimate, growth_rate, over_prompts, slopes
from residcheck.stats.fits import Floats

if TYPE_CHECKING:
    from residcheck.controls.reading import Control

WINDOWS = "other windows"
"""Of held-out text, of this very model: they say nothing of another seed."""
LOG_RATE, LOSS, GAINS, GAIN_SIZE = "log rate", "loss", "gains", "log size of gains"
STORED: Mapping[str, str] = {
    "attn_out": "attn_out_norm",
    "mlp_out": "mlp_out_norm",
    "ln1 gain": "ln1_gain_rms",
    "ln2 gain": "ln2_gain_rms",
    "W_OV": "W_OV_frobenius",
    "W_in": "W_in_frobenius",
    "W_out": "W_out_frobenius",
    "W_OV folded": "W_OV_folded",
    "W_in folded": "W_in_folded",
}
"""Where growth may be stored, by what it is called here and in ``measured.json``."""


def rate(control: Control) -> Estimate:
    """Factor per layer of the trained stream over the scale's window, as the trainer fits it."""
    found = growth_rate(control.measured.log_norms["resid_post_norm"], control.scale.window)
    return Estimate(found.name, found.value, found.low, found.high, found.n, WINDOWS)


def log_rate(control: Control, name: str) -> float:
    """Least-squares slope of a log norm over the window's layers, mean over windows."""
    return float(_slopes(control, name).mean())


def _slopes(control: Control, name: str) -> Floats:
    """Per held-out window; of weights, which have none, once."""
    phase, measured = control.scale.window, control.measured
    if name in measured.log_norms:
        return slopes(measured.log_norms[name][:, phase.window], phase.layers)
    return slopes(np.log(measured.weights[name][None, phase.window]), phase.layers)


def values(control: Control) -> dict[str, float]:
    """All quantities that arms are compared by.

    Rates are logs per layer, the loss is in nats, the size of the gains is the mean log of their
    root mean squares over the window's layers and both norms.
    """
    stored = {name: log_rate(control, key) for name, key in STORED.items()}
    gains = [control.measured.weights[STORED[name]] for name in ("ln1 gain", "ln2 gain")]
    return {
        LOG_RATE: log_rate(control, "resid_post_norm"),
        LOSS: control.loss,
        **stored,
        GAINS: (stored["ln1 gain"] + stored["ln2 gain"]) / 2,
        GAIN_SIZE: float(np.log(gains)[:, control.scale.window.window].mean()),
    }


def over_windows(control: Control, reference: Control) -> Estimate:
    """Difference of two log rates on the same windows of the held-out text."""
    one, other = (_slopes(c, "resid_post_norm") for c in (control, reference))
    return over_prompts("difference of log rates", one - other, population=WINDOWS)
