"""What is left of a run that is trained: its losses, its provenance and its model folder."""

from __future__ import annotations

import copy
import json
import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch
from tokenizers import Tokenizer

from residcheck.files import write_text
from residcheck.train import history, measured
from residcheck.train.architecture import centred
from residcheck.train.batches import spread
from residcheck.train.card import card
from residcheck.train.corpus import Corpus
from residcheck.train.export import exported, is_gpt2, shift, write_model
from residcheck.train.growth import measure
from residcheck.train.runs import Run
from residcheck.train.stored import measured_of
from residcheck.train.tokens import wrapped

SCHEMA = "residcheck.train.provenance/1"
_SHIFT_WINDOWS = 2


def finish(run: Run, corpus: Corpus, model: Any, seconds: float) -> None:
    """Measure what is kept of the model, export it, and write ``provenance.json`` last."""
    scale, changes = run.scale, run.arm.changes
    everything = spread(corpus.held_out, corpus.mark, scale.context, len(corpus.held_out))
    windows = torch.from_numpy(everything).to(scale.device)
    whole = measure(model, windows, centred=centred(changes))
    same = spread(corpus.held_out, corpus.mark, scale.context, scale.held_out_windows)
    fixed = measure(model, torch.from_numpy(same).to(scale.device), centred=centred(changes))
    last = history.read(run.history)[-1]
    trained = copy.deepcopy(model).cpu()
    measured.write(run.measured, measured_of(fixed, trained))
    written = exported(copy.deepcopy(trained))
    said: dict[str, Any] = {
        "schema": SCHEMA,
        "scale": asdict(scale),
        "arm": asdict(run.arm),
        "seed": run.seed,
        "tokens": last.tokens,
        "train_loss": last.train_loss,
        "held_out_loss": whole.loss,
        "rate": last.rate,
        "rate_window": [scale.window.first, scale.window.last],
        "seconds": round(seconds, 1),
        "threads": run.threads,
        "device": _device(scale.device),
        "corpus": asdict(corpus.facts),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "tokenizers")},
        },
    }
    if is_gpt2(changes):
        few = windows[:_SHIFT_WINDOWS, :-1].cpu()
        said["export_log_probability_shift"] = float(shift(trained, copy.deepcopy(written), few))
    tokenizer = wrapped(Tokenizer.from_file(str(corpus.tokenizer)))
    write_model(written, tokenizer, card(said, plain=is_gpt2(changes)), run.model)
    write_text(run.provenance, json.dumps(said, indent=1) + "\n")


def _device(name: str) -> str:
    return torch.cuda.get_device_name() if name == "cuda" else f"{name} ({platform.machine()})"
