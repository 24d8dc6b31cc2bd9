"""What came of a sweep: results and failures of the list's models, and the files about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from filelock import FileLock

from residcheck.curves import load_run
from residcheck.errors import ExitStatus, RunFileError
from residcheck.judging import DEFAULT_SNAPSHOTS, answerable, judge_run
from residcheck.locking import Taken
from residcheck.output import write_files
from residcheck.progress import Progress, silent
from residcheck.report import write_html
from residcheck.result import Failure, ModelResult
from residcheck.sweep.store import Entry, Status

REPORT, RESULTS, SUMMARY = "report.html", "results.json", "summary.md"
TOGETHER = 12
"""As many models are plotted side by side on one page; of more, each has a page of its own."""


@dataclass(frozen=True)
class Outcome:
    """All that is known of the models of a list; ``open`` are without a status yet.

    ``folders`` are those of the results.
    """

    results: tuple[ModelResult, ...]
    failures: tuple[Failure, ...]
    open: int = 0
    folders: tuple[Path, ...] = ()

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
    folders: list[Path] = []
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
                folders.append(entry.folder)
    return Outcome(tuple(results), tuple(failures), open_, tuple(folders))


def _forget(entry: Entry, error: RunFileError) -> None:
    try:
        with entry.locked():
            entry.end(Status("failed", 0.0, error.message, error.hint))
    except Taken:  # it is being measured again already
        return


def write(outcome: Outcome, out: Path, progress: Progress = silent) -> list[Path]:
    """Write report, summary and verdicts of all models into ``out``; returns their paths.

    Of many models the report has the tables, and links to a page for each, with its plots.

    Raises:
        ResidcheckError: a file cannot be written.
    """
    files = (out / REPORT, out / RESULTS, out / SUMMARY)
    with FileLock(out / ".lock"):  # two sweeps that end together
        pages = _write_pages(outcome, progress) if len(outcome.results) > TOGETHER else []
        links = [quote(path.relative_to(out).as_posix()) for path in pages]
        return write_files(outcome.results, *files, outcome.failures, links)


def _write_pages(outcome: Outcome, progress: Progress) -> list[Path]:
    pages = [folder / REPORT for folder in outcome.folders]
    for done, (result, page) in enumerate(zip(outcome.results, pages, strict=True)):
        progress("drawing the plots", done, len(pages))
        write_html([result], page)
    return pages
