"""Simulated curves as a run, which the claims themselves are then put to."""

from __future__ import annotations

import numpy as np
from proof.simulate import Drawn, Rows

from residcheck.curves import Curve, Floats, ModelInfo, PromptInfo, Run
from residcheck.names import STATISTICS

D_MLP = 1000


def run_of(curves: Rows, prompts: int, layers: int, model: str = "simulated") -> Run:
    """A run with these curves and nothing else."""
    text = dict.fromkeys(
        ("weights", "model_type", "norm", "activation", "dtype", "device", "backend"), "none"
    )
    info = ModelInfo(
        id=model,
        n_layers=layers,
        d_model=64,
        n_heads=4,
        d_mlp=D_MLP,
        norm_eps=0.0,
        parallel=False,
        gated=False,
        processing="",
        attention="",
        **text,
    )
    text_info = PromptInfo("simulated", "", prompts, prompts, 1, "")
    labelled = {name: Curve(name, dims_of(name), v, "") for name, v in curves.items()}
    return Run(info, {}, text_info, labelled)


def dims_of(name: str) -> tuple[str, ...]:
    """The axes of a curve: those of a statistic, else those of a curve per token."""
    if name in STATISTICS:
        return STATISTICS[name].dims
    return ("prompt", "position", "layer")


def population_of(drawn: Drawn, halved: bool) -> tuple[Rows, int]:
    """Curves that hold all prompts, and how many rows stand for them.

    Where half of the prompts choose a window, these are the drawn ones, so that the window
    is the one of the sample; the other half is the population.
    """
    population = drawn.population()
    rows = max(len(v) for k, v in population.items() if dims_of(k)[0] == "prompt")
    choosers = max((len(drawn.sample[k][::2]) for k in population if k in drawn.sample), default=0)
    rows = max(rows, choosers, 16)  # all that choose, or they would choose another window
    found: Rows = {}
    for name, values in population.items():
        if dims_of(name)[0] != "prompt":
            found[name] = values
            continue
        everyone = repeated(values, rows)
        if halved:
            chose = repeated(drawn.sample[name][::2], rows)
            everyone = np.stack([chose, everyone], axis=1).reshape(-1, *everyone.shape[1:])
        found[name] = everyone
    return found, 2 * rows if halved else rows


def repeated(rows: Floats, times: int) -> Floats:
    """As many rows, the same ones over and over."""
    return np.asarray(np.resize(rows, (times, *rows.shape[1:])))
