"""What came of a sweep: results and failures of the list's models, and the files about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from residcheck.curves import load_run
from residcheck.errors import ExitStatus, RunFileError
from residcheck.judging import DEFAULT_SNAPSHOTS, answerable, judge_run
from residcheck.output import write_files
from residcheck.progress import Progress, silent
from residcheck.result import Failure, ModelResult
from residcheck.sweep.store import Entry, Status, Taken

REPORT, RESULTS, SUMMARY = "report.html", "results.json", "summary.md"


@dataclass(frozen=True)
class Outcome:
    """All that is known of the models of a list; ``open`` are without a status yet."""

    results: tuple[ModelResult, ...]
    failures: tuple[Failure, ...]
    open: int = 0

    @property
    def status(self) -> ExitStatus:
        """That of ``verify``: a model that could not be measured outweighs a refutation."""
        if self.failures or self.open:
            return ExitStatus.COULD_NOT_MEASURE
        return max((result.status for result in self.results), default=ExitStatus.OK)


def gather(
    entries: Sequence[Entry], snapshots: Path | None, progress: Progress = silent
) -> Outcome:
    """Judge the finished runs, in the order of the list.

    A run whose files are damaged counts as failed, and will be measured again.
    """
    results: list[ModelResult] = []
    failures: list[Failure] = []
    open_ = 0
    for done, entry in enumerate(entries):
        progress("judging the runs", done, len(entries))
        status = entry.status
        if status is None:
            open_ += 1
        elif status.state == "failed":
            failures.append(Failure(entry.text, status.message, status.hint))
        else:
            try:
                run = load_run(entry.run)
            except RunFileError as error:
                failures.append(Failure(entry.text, error.message, error.hint))
                _forget(entry, error)
            else:
                claims = answerable(run)
                results.append(judge_run(run, claims, snapshots or DEFAULT_SNAPSHOTS))
    return Outcome(tuple(results), tuple(failures), open_)


def _forget(entry: Entry, error: RunFileError) -> None:
    try:
        with entry.locked():
            entry.end(Status("failed", 0.0, error.message, error.hint))
    except Taken:  # it is being measured again already
        return


def write(outcome: Outcome, out: Path) -> list[Path]:
    """Write report, summary and verdicts of all models into ``out``; returns their paths.

    Raises:
        ResidcheckError: a file cannot be written.
    """
    files = (out / REPORT, out / RESULTS, out / SUMMARY)
    with FileLock(out / ".lock"):  # two sweeps that end together
        return write_files(outcome.results, *files, outcome.failures)
