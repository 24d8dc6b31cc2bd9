"""Synthetic runs with curves over horizons: a loss that decays to the baseline."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from report_runs import a_result, a_run

from residcheck.curves import Curve, Floats, HorizonInfo, PromptInfo, Run
from residcheck.names import HORIZON
from residcheck.result import ModelResult
from residcheck.stats import Estimate, Outcome
from residcheck.verdict import Verdict

LAYERS, TOKENS = 30, 6
BASELINE, EXCESS, SCALE = 3.0, 6.0, 4.0
"""The loss at horizon k is ``BASELINE + EXCESS exp(-(k - 1) / SCALE)``, and some noise."""


def decay(size: int = LAYERS) -> Floats:
    return BASELINE + EXCESS * np.exp(-np.arange(size) / SCALE)


def per_token(means: Floats, prompts: int, noise: float = 0.05) -> Floats:
    """Prompt x position (x horizon) around ``means``, without a value at BOS."""
    spread = np.random.default_rng(3).normal(0.0, noise, (prompts, TOKENS))
    values = means + spread.reshape(prompts, TOKENS, *[1] * means.ndim)
    values[:, 0] = np.nan
    return np.asarray(values)


def horizon_info(prompts: int, **fields: object) -> HorizonInfo:
    sample = PromptInfo("a.txt", "cd", prompts, prompts * TOKENS, TOKENS, "<s>")
    info = HorizonInfo("zero", "recomputed", "everywhere", None, "full", "layers", sample)
    return replace(info, **fields)  # type: ignore[arg-type]


def horizon_curves(prompts: int, size: int = LAYERS) -> dict[str, Curve]:
    excess = decay(size) - BASELINE
    tables = {
        "loss": per_token(np.float64(BASELINE) + np.zeros(()), prompts),
        "horizon_loss": per_token(decay(size), prompts),
        "horizon_kl": per_token(excess, prompts, noise=0.0),
        "horizon_top1": per_token(1 - excess / (EXCESS + 1), prompts, noise=0.0),
        "horizon_loss_from_middle": per_token(decay(size)[: size // 2], prompts),
    }
    return {
        name: Curve(name, HORIZON[name].dims, table, HORIZON[name].unit)
        for name, table in tables.items()
    }


def horizon_run(
    id: str = "org/tiny", prompts: int = 12, layers: int = LAYERS, **fields: object
) -> Run:
    """A model of so many layers; ``fields`` are of its :class:`HorizonInfo`."""
    info = horizon_info(prompts, **fields)
    size = 2 * layers if info.unit == "sublayers" else layers
    run = a_run(id=id)
    return replace(
        run,
        model=replace(run.model, n_layers=layers, dtype="float32"),
        curves=horizon_curves(prompts, size),
        horizon=info,
    )


def beside_growth(id: str, layers: int, rate: float, horizon: float) -> ModelResult:
    """A result with the claim that sets horizons beside growth."""
    run = horizon_run(id=id, layers=layers)
    estimates = tuple(
        Estimate(name, value, value - 0.001, value + 0.001, 12, "other prompts")
        for name, value in (
            ("effective horizon over the depth", horizon / layers),
            ("effective horizon", horizon),
            ("rate per layer", rate),
        )
    )
    verdict = Verdict("horizon-vs-growth", id, Outcome.INCONCLUSIVE, estimates)
    result = a_result(run, None)
    (judged,) = result.judged
    claim = replace(judged.claim, id=verdict.claim)
    return replace(result, judged=(replace(judged, claim=claim, verdict=verdict),))
