"""The page of a review: stored and new curves overlaid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from residcheck.curves import Run
from residcheck.report.changes import Change, Changes
from residcheck.report.chart import Chart
from residcheck.report.outline import count
from residcheck.report.overlay import beyond, overlay
from residcheck.reviewing import Kind, Proposal

LABELS = ("stored", "new")
_TONES = {
    Kind.DRIFTED: "refuted",
    Kind.LOST: "refuted",
    Kind.OTHERWISE: "inconclusive",
    Kind.NEW: "not-applicable",
}


def page_of(run: Run, proposals: Sequence[Proposal]) -> Changes:
    """The page of what a run would change."""
    said = f"{count(len(proposals), 'curve')} to look at. Nothing is accepted by this page."
    changes = tuple(
        Change(p.name, p.kind.value, _TONES[p.kind], p.message, charts(p)) for p in proposals
    )
    return Changes(f"Snapshots of {run.model.id}", said, (("measured", run),), changes)


def charts(proposal: Proposal) -> tuple[Chart, ...]:
    """Stored and new in one plot, and what is beyond its bound in another."""
    both = overlaid(proposal)
    far = beyond(proposal.comparison) if proposal.comparison else None
    return tuple(chart for chart in (both, far) if chart is not None)


def overlaid(proposal: Proposal) -> Chart | None:
    """Both versions of the curve, or the only one that there is."""
    stored, new = _curve(proposal.stored), _curve(proposal.measured)
    if new is None:
        return None if stored is None else overlay(None, stored, (LABELS[1], LABELS[0]), None)
    return overlay(stored, new, LABELS, proposal.comparison)


def _curve(document: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if document is None else dict(document["curve"])
