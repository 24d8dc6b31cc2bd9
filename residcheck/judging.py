"""From a run to a result: judge every claim, and look for drift. No model is touched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from residcheck.claim import Claim, all_claims
from residcheck.controls import Comparison
from residcheck.curves import Run
from residcheck.intervention import Intervention, provenance
from residcheck.result import Drift, Judged, ModelResult
from residcheck.snapshot import (
    comparable,
    compare_documents,
    curve_document,
    find,
    key,
    otherwise,
    read,
    recorded_outcome,
    verdict_name,
)

DEFAULT_SNAPSHOTS = Path("snapshots")


def judge(claim: Claim, run: Run, snapshots: Path = DEFAULT_SNAPSHOTS) -> Judged:
    """A claim's verdict on a run, beside the one recorded for these weights.

    Raises:
        RunFileError: the record cannot be read.
    """
    verdict = claim.evaluate(run)
    record = read(snapshots, run.model.id, verdict_name(claim.id))
    if record is None or record["provenance"]["model"]["weights"] != run.model.weights:
        return Judged(claim, verdict)
    return Judged(claim, verdict, recorded_outcome(record), not comparable(record, run))


def judge_controls(
    intervention: Intervention, found: Comparison, snapshots: Path = DEFAULT_SNAPSHOTS
) -> Judged:
    """A verdict on trained controls, beside the one recorded for these very runs.

    Raises:
        RunFileError: the record cannot be read.
    """
    verdict = intervention.evaluate(found)
    record = read(snapshots, found.zoo.name, verdict_name(intervention.id))
    if record is None or otherwise(record["provenance"], provenance(found.zoo)):
        return Judged(intervention, verdict)
    return Judged(intervention, verdict, recorded_outcome(record), comparable=True)


def drift(run: Run, name: str, snapshots: Path = DEFAULT_SNAPSHOTS) -> Drift | None:
    """How a curve left its snapshot; None if it did not, or if there is none to compare.

    One that the same library gave of the same weights, and gives no more, has left it.
    """
    stored = read(snapshots, run.model.id, name)
    if stored is None or comparable(stored, run):
        return None
    if name not in run.curves:
        lost = stored["provenance"]["model"]["backend"] == run.model.backend
        reason = dict(run.model.missing).get(name)
        return Drift(name, _vanished(run, name, reason, snapshots)) if lost and reason else None
    comparison = compare_documents(stored, curve_document(run, name))
    if comparison.same:
        return None
    accept = f"pytest --pyargs residcheck.claims --model {run.model.id} --snapshot-update"
    return Drift(name, comparison.message(accept), stored["curve"], comparison)


def _vanished(run: Run, name: str, reason: str, snapshots: Path) -> str:
    path = find(snapshots, key(run.model.id, name))
    return (
        f"{name} has a snapshot and cannot be measured any more: {reason}\n"
        f"  if the change is right, delete {path}"
    )


def judge_run(
    run: Run, claims: Sequence[Claim] | None = None, snapshots: Path = DEFAULT_SNAPSHOTS
) -> ModelResult:
    """Every claim on one run, and every curve against its snapshot."""
    chosen = all_claims() if claims is None else claims
    judged = tuple(judge(claim, run, snapshots) for claim in chosen)
    names = (*run.curves, *dict(run.model.missing))
    drifts = tuple(d for name in names if (d := drift(run, name, snapshots)) is not None)
    return ModelResult(run, judged, drifts)


def answerable(run: Run) -> list[Claim]:
    """The claims that a run holds the curves for, or that do not apply to its model."""
    known = {*run.curves, *run.model.missing}
    return [claim for claim in all_claims() if known.issuperset(claim.needs)]


def needed_curves(claims: Sequence[Claim]) -> tuple[str, ...]:
    """The union of what the claims need, each once."""
    return tuple(dict.fromkeys(name for claim in claims for name in claim.curves))
