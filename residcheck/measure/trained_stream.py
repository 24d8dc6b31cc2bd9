"""Norms of the stream as it was trained, of models that are written with a larger one.

Where training divides the stream before each block, the model is written as the plain GPT-2 that
is the same function (:mod:`residcheck.train.export`). The stream of that one is larger by known
factors, the ``residual_factors`` of its configuration: ``P_l`` before block l. What is measured
in block l (the stream there, what its sublayers write, the matrices and biases that write it) is
brought back to the trained unit by ``P_(l+1)``, so that within a block things still add up.
``resid_pre`` is then the divided stream, to which the block adds: ``resid_post`` of the block
before over its factor. Ratios, cosines, losses and all that reads a normalised stream are the
same in both units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from residcheck.curves import Curve, Floats, Run
from residcheck.errors import LoadError

SCALED = frozenset(
    {
        "resid_pre_norm",
        "resid_mid_norm",
        "resid_post_norm",
        "attn_out_norm",
        "mlp_out_norm",
        "ov_frobenius",
        "ov_frobenius_raw",
        "W_O_frobenius",
        "W_O_frobenius_raw",
        "W_out_frobenius",
        "W_out_frobenius_raw",
        "W_in_W_out_frobenius",
        "b_O_norm",
        "b_in_W_out_norm",
        "b_out_norm",
        "ov_random_norm",
        "mlp_random_norm",
    }
)
"""Curves in the unit of the stream; the last axis of each is ``layer``."""


def residual_factors(config: Any, n_layers: int) -> Floats | None:
    """``P_(l+1)`` of each block, ``[layer]``; None where the stream is as it was trained.

    Raises:
        LoadError: the configuration has factors that cannot be some.
    """
    said = getattr(config, "residual_factors", None)
    if said is None:
        return None
    try:
        factors = np.array(said, dtype=np.float64)
    except (TypeError, ValueError):
        factors = np.empty(0)
    if factors.shape != (n_layers + 1,) or not (np.isfinite(factors) & (factors > 0)).all():
        raise LoadError(
            f"residual_factors of the configuration are not {n_layers + 1} positive numbers",
            "export the model again, or remove them to measure the stream of the file",
        )
    return None if (factors == 1).all() else factors[1:]


def as_trained(curves: Mapping[str, Curve], factors: Floats) -> dict[str, Curve]:
    """Curves with those of :data:`SCALED` divided by the factors of their layers."""
    return {
        name: replace(curve, values=(curve.values / factors).astype(curve.values.dtype))
        if name in SCALED
        else curve
        for name, curve in curves.items()
    }


def run_as_trained(run: Run, factors: Floats | None) -> Run:
    """The run in the trained unit, saying so."""
    if factors is None:
        return run
    model = replace(run.model, residual_factors=tuple(factors.tolist()))
    return replace(run, model=model, curves=as_trained(run.curves, factors))
