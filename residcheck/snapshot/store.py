"""Snapshots on disk: JSON documents, one per model and curve or verdict.

A document says what was stored, of which weights and prompts, and where it was made.
Without that provenance it is no snapshot. They are looked for in the user's folder
first and then among those shipped with residcheck; only the user's folder is written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from residcheck.compare import Comparison, compare_curves
from residcheck.curves import Run, read_json, summary
from residcheck.errors import RunFileError
from residcheck.names import HORIZON, OF_LIBRARY
from residcheck.stats import Outcome
from residcheck.tolerances import tolerance
from residcheck.verdict import Verdict

SCHEMA = "residcheck.snapshot/1"
Document = dict[str, Any]


def shipped_folder() -> Path:
    """The snapshots that come with residcheck."""
    return Path(str(files("residcheck.snapshots")))


def key(model_id: str, name: str) -> str:
    """Relative path of a snapshot, without its ending.

    The model's id is percent-encoded, so that ``org/model`` is one folder and no id can
    leave the snapshots' folder.
    """
    folder = quote(model_id, safe="")
    return f"{folder.replace('.', '%2E', 1) if folder.startswith('.') else folder}/{name}"


def verdict_name(claim_id: str) -> str:
    return f"verdict.{claim_id}"


def curve_document(run: Run, name: str) -> Document:
    """What is stored of a curve."""
    document = _document(run, "curve", name, over_horizons=name in HORIZON)
    return document | {"curve": summary(run[name])}


def verdict_document(run: Run, verdict: Verdict, curves: Collection[str]) -> Document:
    """What is stored of a verdict of a claim that reads ``curves``."""
    body = verdict.to_json()
    del body["model"]
    over_horizons = not HORIZON.keys().isdisjoint(curves)
    return _document(run, "verdict", verdict.claim, over_horizons) | {"verdict": body}


def verdict_of_controls(provenance: Document, verdict: Verdict) -> Document:
    """The same of a verdict on trained controls, which has another provenance."""
    body = verdict.to_json()
    del body["model"]
    return _labelled("verdict", verdict.claim, provenance) | {"verdict": body}


def _document(run: Run, kind: str, name: str, over_horizons: bool) -> Document:
    return _labelled(kind, name, _provenance(run, over_horizons))


def _labelled(kind: str, name: str, provenance: Document) -> Document:
    return {"schema": SCHEMA, "kind": kind, "name": name, "provenance": provenance}


def _provenance(run: Run, over_horizons: bool) -> dict[str, Any]:
    """Where numbers are from; those over horizons have a variant and prompts of their own."""
    said: dict[str, Any] = {
        "model": asdict(run.model),
        "prompts": asdict(run.prompts),
        "environment": dict(run.environment),
    }
    if over_horizons:
        said["horizon"] = None if run.horizon is None else asdict(run.horizon)
    return said


def dumps(document: Document) -> str:
    return json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n"


def loads(text: str, where: str) -> Document:
    """A snapshot document; raises :class:`RunFileError` for anything else."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise RunFileError(f"the snapshot {where} is damaged: {error}") from error
    _check(document, where)
    assert isinstance(document, dict)
    return document


def find(folder: Path, snapshot_key: str) -> Path | None:
    """The file of a snapshot, the user's before the shipped one; None if there is none."""
    candidates = (root / f"{snapshot_key}.json" for root in (folder, shipped_folder()))
    return next((path for path in candidates if path.is_file()), None)


def read(folder: Path, model_id: str, name: str) -> Document | None:
    """A stored document or None; raises :class:`RunFileError` if it cannot be understood."""
    path = find(folder, key(model_id, name))
    if path is None:
        return None
    document = read_json(path, SCHEMA)
    _check(document, str(path))
    return document


def _check(document: Any, where: str) -> None:
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise RunFileError(
            f"the snapshot {where} has schema {schema!r}; this version reads {SCHEMA!r}",
            "make it again with --snapshot-update",
        )
    provenance = document.get("provenance", {})
    if not {"model", "prompts", "environment"} <= set(provenance):
        raise RunFileError(f"the snapshot {where} does not say where it is from")


def comparable(document: Document, run: Run) -> str:
    """Why a document cannot be held against ``run``; empty if it can."""
    then = document["provenance"]
    if document["name"] in OF_LIBRARY and then["model"]["backend"] != run.model.backend:
        return f"the snapshot was taken through {then['model']['backend']}, which pads its own way"
    return otherwise(then, _provenance(run, over_horizons="horizon" in then))


def otherwise(then: Document, now: Document) -> str:
    """Of two provenances: what was another when the snapshot was taken; empty if nothing."""
    if then["model"]["weights"] != now["model"]["weights"]:
        return "the snapshot is of other weights"
    if then["prompts"]["sha256"] != now["prompts"]["sha256"]:
        return "the snapshot was taken on other prompts"
    old, new = (provenance.get("horizon") or {} for provenance in (then, now))
    if _variant(old) != _variant(new):
        return "the snapshot was taken with another horizon variant"
    if old and old["prompts"]["sha256"] != new["prompts"]["sha256"]:
        return "the snapshot was taken on other prompts for the horizon"
    return ""


def _variant(horizon: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in horizon.items() if name != "prompts"}


def compare_documents(stored: Document, measured: Document) -> Comparison:
    """Two documents of one curve, within the tolerance of the wider dtype."""
    now, then = measured["provenance"]["model"], stored["provenance"]["model"]
    return compare_curves(
        stored["name"],
        stored["curve"],
        measured["curve"],
        tolerance(then["dtype"], now["dtype"]),
        step=_step(stored["curve"], measured["provenance"]),
        constants=_constants(stored["name"], then, now),
        sampled=_sampled(stored["curve"], measured["provenance"]["prompts"]),
    )


def _sampled(curve: Document, prompts: Document) -> int:
    """The tokens that the mean of a curve is over: all but BOS, where it has a mean of tokens."""
    return max(1, prompts["tokens"] - prompts["count"]) if "mean" in curve else 1


def _constants(name: str, then: Document, now: Document) -> dict[str, tuple[float, float]]:
    """The norms' epsilon, of which a curve shows little where streams are large.

    Some norms do not say theirs, and it is measured as well as their dtype allows.
    """
    if name not in ("ln1_normalized_norm", "ln2_normalized_norm") or then["dtype"] != now["dtype"]:
        return {}
    return {"norm_eps": (then["norm_eps"], now["norm_eps"])}


def _step(curve: Document, provenance: Document) -> float:
    """By how much rounding may move a fraction: two neurons, or the top of two predictions.

    Two neurons may fall on the other side of zero at BOS, which no average smooths; two
    tokens, of all that are predicted, may have another likeliest successor.
    """
    if curve["unit"] != "fraction":
        return 0.0
    if "horizon" not in curve:
        neurons: int = provenance["model"]["d_mlp"] or 0
        return 2 / neurons if neurons else 0.0
    prompts = (provenance.get("horizon") or provenance)["prompts"]
    predicted: int = prompts["tokens"] - prompts["count"]
    return 2 / max(predicted, 1)


def recorded_outcome(document: Document) -> Outcome:
    return Outcome(document["verdict"]["verdict"])


def writing_forbidden() -> str:
    """Why snapshots may not be written now; empty if they may."""
    if os.environ.get("CI", "").lower() in ("", "0", "false"):
        return ""
    return (
        "snapshots are never written on CI (the variable CI is set): "
        "update them on your machine, review the change, and commit it"
    )
