"""All parts of a model in all dtypes and processings; what fails is noted, and the others go on.

Arrays are called ``DTYPE/PROCESSING/NAME``, names being TransformerLens' own.
"""

from __future__ import annotations

import hashlib
import json
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .asked import DTYPES, PROCESSINGS, padded, tokens
from .lens import Lens


class Record:
    """What was seen, in the order in which it was; an array seen before is not held twice."""

    def __init__(self) -> None:
        self.arrays: dict[str, Any] = {}
        self.aliases: dict[str, str] = {}
        self.errors: dict[str, str] = {}
        self._known: dict[str, str] = {}

    def put(self, name: str, tensor: Any) -> None:
        array = np.array(tensor.detach().cpu().numpy(), order="C")  # libraries write in place
        key = f"{array.dtype}{array.shape}" + hashlib.sha256(array.tobytes()).hexdigest()
        if key in self._known:
            self.aliases[name] = self._known[key]
        else:
            self._known[key] = name
            self.arrays[name] = array

    def attempt(self, part: str, work: Any) -> Any:
        try:
            with torch.no_grad():
                return work()
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {error}".strip()
            self.errors[part] = f"{text[:600]} ({Path(where.filename).name}:{where.lineno})"
            return None


Opener = Callable[[str, str], Iterator[tuple[str, Any]]]
"""Folder and dtype to processings and models, one after the other."""


def see(record: Record, library: str, opened: Opener, folder: str) -> dict[str, Any]:
    """All parts, in all dtypes and processings; returns what is known beside the arrays."""
    facts: dict[str, Any] = {}
    expected = PROCESSINGS[:1] if library == "transformers" else PROCESSINGS
    for dtype in DTYPES:
        states = opened(folder, dtype)
        for processing in expected:
            part = f"{dtype}/{processing}"
            state = record.attempt(part, lambda s=states: next(s))
            if state is None:  # what comes after builds on it
                break
            model = state[1]
            _see_model(record, model, part)
            if library == "transformers":
                facts.setdefault("anatomy", model.anatomy())
                gate = record.attempt(f"{part}/gate", model.gate)
                facts.setdefault("gate", {})[part] = "the gate raised" if gate is None else gate
    return facts


def _see_model(record: Record, model: Any, part: str) -> None:
    ids = tokens()
    twice = part.endswith("twice")

    def whole() -> None:
        logits, seen = model.run(ids, None, hooked=not twice)
        record.put(f"{part}/logits", logits)
        for name, tensor in seen.items():
            record.put(f"{part}/{name}", tensor)

    def with_padding(side: str) -> None:
        batch, mask = padded(side)
        logits, _ = model.run(batch, mask, hooked=False)
        record.put(f"{part}/{side}.logits", logits[mask.bool()])

    def alone() -> None:
        rows = [model.run(row[None], None, hooked=False)[0][0] for row in ids]
        record.put(f"{part}/alone.logits", torch.cat(rows))

    def weights() -> None:
        for name, tensor in model.weights().items():
            record.put(f"{part}/{name}", tensor)

    def cached() -> None:
        for name, tensor in model.cached(ids).items():
            record.put(f"{part}/cache.{name}", tensor)

    record.attempt(f"{part}/logits", whole)
    record.attempt(f"{part}/weights", weights)
    if isinstance(model, Lens) and not twice:
        record.attempt(f"{part}/cache", cached)
        record.attempt(f"{part}/loss", lambda: record.put(f"{part}/loss", model.loss(ids)))
    if not twice:
        for side in ("left", "right"):
            record.attempt(f"{part}/{side}.logits", lambda s=side: with_padding(s))
        record.attempt(f"{part}/alone.logits", alone)


def write(record: Record, facts: dict[str, Any], out: Path) -> None:
    arrays, document = out.with_suffix(".npz"), out.with_suffix(".json")
    partial = out.with_suffix(".partial.npz")
    np.savez(partial, **record.arrays)
    partial.replace(arrays)
    facts |= {"aliases": record.aliases, "errors": record.errors}
    partial = out.with_suffix(".partial.json")
    partial.write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(document)
