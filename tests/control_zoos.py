"""Zoos of made-up trained controls, in the files that the trainer writes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from residcheck.controls.reading import PROVENANCE
from residcheck.train.arms import ORDER, read_arms
from residcheck.train.history import Record
from residcheck.train.measured import NORMS, WEIGHTS, Measured, write
from residcheck.train.scales import Scale, read_scales

SCALE = replace(read_scales()["tiny"], name="made", layers=12, width=64)
RATES = {"baseline": 0.03, "rescale-residual": 0.001, "rescale-residual-learned": 0.01}
"""Log rates of the stream; of the other arms that of the baseline."""
WINDOWS = 8


def write_run(
    folder: Path,
    arm: str,
    seed: int,
    *,
    log_rate: float = 0.03,
    loss: float = 4.0,
    gains: float = 0.0,
    scale: Scale = SCALE,
) -> Path:
    """A finished run whose stream grows by ``log_rate`` and whose gains grow by ``gains``."""
    path = folder / f"{arm}-seed{seed}"
    path.mkdir(parents=True)
    layers, windows = np.arange(scale.layers), np.linspace(-0.1, 0.1, WINDOWS)
    # Windows differ in their level and a little in their rate, by the same in all runs.
    stream = 2 + windows[:, None] + np.outer(log_rate + 0.01 * windows, layers)
    weights = {name: np.full(scale.layers, 3.0) for name in WEIGHTS}
    weights |= {name: np.exp(gains * layers) for name in WEIGHTS if "gain" in name}
    changes = read_arms()[arm].changes
    divisors = np.full(scale.layers, changes.rescale or 1.0)
    if changes.rescale_learned:
        divisors = np.linspace(0.9, 1.1, scale.layers)
    measured = Measured(loss + windows, dict.fromkeys(NORMS, stream), weights, divisors)
    write(path / "measured.json", measured)
    rate = math.exp(float(np.polyfit(layers, stream.mean(axis=0), 1)[0]))
    norms = tuple(np.exp(stream.mean(axis=0)).tolist())
    records = [
        Record(step, step * scale.tokens_per_step, None, loss, 1e-3, None, norms, norms, r, r, r)
        for step, r in ((0, 1.01), (1, 1.2), (4, 1.1), (scale.steps, rate))
    ]
    lines = [json.dumps(asdict(record)) for record in records]
    (path / "history.jsonl").write_text("\n".join(lines) + "\n")
    said = {
        "schema": PROVENANCE,
        "scale": asdict(scale),
        "arm": asdict(read_arms()[arm]),
        "seed": seed,
        "tokens": scale.tokens,
        "held_out_loss": loss,
        "rate": rate,
        "corpus": {"sha256": "a" * 64, "python": "3.11.7", "training_tokens": 1000},
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "device": "cpu (x86_64)",
        "threads": 1,
        "seconds": 90.0,
    }
    (path / "provenance.json").write_text(json.dumps(said))
    return path


def write_zoo(
    folder: Path,
    rates: Mapping[str, float] = RATES,
    *,
    gains: Mapping[str, float] | None = None,
    arms: tuple[str, ...] = ORDER,
    seeds: tuple[int, ...] = (0, 1),
    noise: float = 2e-4,
) -> Path:
    """All arms and seeds; a seed moves all of its arms, ``noise`` each for itself."""
    numbers = np.random.default_rng(1)
    for seed in seeds:
        for arm in arms:
            own = numbers.normal(scale=noise, size=3)
            write_run(
                folder,
                arm,
                seed,
                log_rate=rates.get(arm, rates["baseline"]) + 2e-4 * seed + own[0],
                loss=4.0 + 0.02 * seed + own[1],
                gains=(gains or {}).get(arm, 0.0) + own[2],
            )
    return folder
