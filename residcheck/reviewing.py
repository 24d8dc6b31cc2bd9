"""Changes of snapshots to be looked at one by one: what changed, and writing what was accepted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from residcheck.compare import Comparison
from residcheck.curves import Run
from residcheck.errors import UsageError
from residcheck.files import write_text
from residcheck.judging import drift
from residcheck.names import EVERYTHING
from residcheck.snapshot import (
    comparable,
    compare_documents,
    curve_document,
    dumps,
    key,
    read,
    writing_forbidden,
)


class Kind(Enum):
    """Why a curve is up for review."""

    DRIFTED = "drifted"
    LOST = "lost"
    OTHERWISE = "not comparable"
    NEW = "new"


class Answer(Enum):
    """What a person says of one change."""

    ACCEPT = "accept"
    REJECT = "reject"
    SKIP = "skip"
    QUIT = "quit"


@dataclass(frozen=True)
class Proposal:
    """A change of one snapshot that may be accepted.

    Args:
        message: what changed, where, and by how much.
        stored: the snapshot; None where there is none yet.
        measured: what would take its place; None where it would go.
        comparison: of the two, where they can be compared.
    """

    name: str
    kind: Kind
    message: str
    stored: dict[str, Any] | None = None
    measured: dict[str, Any] | None = None
    comparison: Comparison | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of a review: names by what was done."""

    accepted: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        return not self.rejected and not self.left


def proposals(run: Run, snapshots: Path) -> list[Proposal]:
    """Every curve whose snapshot a run would change: drifted ones first, the worst at the top.

    Raises:
        RunFileError: a snapshot cannot be read.
    """
    found = [p for name in EVERYTHING if (p := _proposal(run, name, snapshots)) is not None]
    kinds = list(Kind)

    def urgency(proposal: Proposal) -> tuple[int, float]:
        margin = proposal.comparison.margin if proposal.comparison else 0.0
        return kinds.index(proposal.kind), -margin

    return sorted(found, key=urgency)


def _proposal(run: Run, name: str, snapshots: Path) -> Proposal | None:
    stored = read(snapshots, run.model.id, name)
    if name not in run.curves:
        lost = drift(run, name, snapshots)
        if lost is None or not _path(run, name, snapshots).is_file():
            return None
        return Proposal(name, Kind.LOST, lost.message.partition("\n")[0], stored)
    measured = curve_document(run, name)
    if stored is None:
        return Proposal(name, Kind.NEW, f"{name} has no snapshot yet", None, measured)
    if reason := comparable(stored, run):
        return Proposal(name, Kind.OTHERWISE, f"{name}: {reason}", stored, measured)
    comparison = compare_documents(stored, measured)
    if comparison.same:
        return None
    message = comparison.message("").partition("\n  if the change")[0]
    return Proposal(name, Kind.DRIFTED, message, stored, measured, comparison)


def refuse_to_write() -> None:
    """Raises :class:`UsageError` where snapshots are never written."""
    if reason := writing_forbidden():
        raise UsageError(reason, "--list shows what changed without writing anything")


def review(
    run: Run,
    changes: Sequence[Proposal],
    snapshots: Path,
    ask: Callable[[Proposal], Answer],
    wrote: Callable[[Path], None] = lambda path: None,
) -> Outcome:
    """Ask of each change and write those accepted at once, so that none is lost on the way.

    What is skipped is asked once more after all others; what is rejected is not. Only
    files in ``snapshots`` are written or removed.

    Raises:
        UsageError: the variable CI is set.
        ResidcheckError: a file cannot be written.
    """
    refuse_to_write()
    accepted: list[str] = []
    rejected: list[str] = []
    queue, again = list(changes), set[str]()
    while queue:
        proposal = queue.pop(0)
        answer = ask(proposal)
        if answer is Answer.QUIT:
            queue.insert(0, proposal)
            break
        if answer is Answer.ACCEPT:
            wrote(_accept(run, proposal, snapshots))
            accepted.append(proposal.name)
        elif answer is Answer.REJECT:
            rejected.append(proposal.name)
        elif proposal.name not in again:
            again.add(proposal.name)
            queue.append(proposal)
    decided = {*accepted, *rejected}
    left = tuple(p.name for p in changes if p.name not in decided)
    return Outcome(tuple(accepted), tuple(rejected), left)


def _accept(run: Run, proposal: Proposal, snapshots: Path) -> Path:
    path = _path(run, proposal.name, snapshots)
    if proposal.measured is None:
        path.unlink(missing_ok=True)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, dumps(proposal.measured))
    return path


def _path(run: Run, name: str, snapshots: Path) -> Path:
    return snapshots / f"{key(run.model.id, name)}.json"
