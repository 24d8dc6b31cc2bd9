"""Measure and judge one model: ``python -m residcheck.sweep.worker [--tied] FOLDER``.

The folder has the job; what comes of it is left there, the status last. A tied worker ends as
soon as its standard input does.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

from residcheck.errors import ResidcheckError, first_line
from residcheck.locking import BUSY, Taken
from residcheck.sweep.process import TIED
from residcheck.sweep.store import Entry, Job, Status, read_job


def work(folder: Path) -> int:
    """Do the job in ``folder``, unless it is done or another process does it.

    Returns the exit status: 0 once the folder has a status, whatever it says.
    """
    entry, job = read_job(folder)
    try:
        with entry.locked():
            if not entry.finished:
                entry.clear()
                entry.end(_attempt(entry, job))
    except Taken:
        return BUSY
    return 0


def _attempt(entry: Entry, job: Job) -> Status:
    started = time.monotonic()

    def status(error: BaseException | None, hint: str = "") -> Status:
        seconds = round(time.monotonic() - started, 1)
        if error is None:
            return Status("finished", seconds)
        message = error.message if isinstance(error, ResidcheckError) else _in_words(error)
        return Status("failed", seconds, message, hint)

    try:
        _measure_and_judge(entry, job)
    except ResidcheckError as error:
        print(f"error: {error}", flush=True)
        return status(error, error.hint)
    except Exception as error:  # whatever a library raises is this model's trouble alone
        traceback.print_exc()
        return status(error, f"see {entry.log}")
    return status(None)


def _in_words(error: BaseException) -> str:
    kind = type(error).__name__
    said = first_line(error)
    return kind if said == kind else f"{kind}: {said}"


def _measure_and_judge(entry: Entry, job: Job) -> None:
    from residcheck.cli_options import measured
    from residcheck.curves import save_run
    from residcheck.judging import DEFAULT_SNAPSHOTS, answerable, judge_run
    from residcheck.measure import HorizonOptions
    from residcheck.output import write_files

    options = {"max_tokens": job.max_tokens, "batch_size": job.batch_size}
    run = measured(job.spec, job.prompts, options, HorizonOptions(sample=True))
    save_run(run, entry.run)
    result = judge_run(run, answerable(run), job.snapshots or DEFAULT_SNAPSHOTS)
    write_files([result], None, entry.verdicts, None)


def _end_with_parent() -> None:
    """Once nobody holds the other end of standard input, end this process and its children."""

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    *options, folder = sys.argv[1:]
    if TIED in options:
        _end_with_parent()
    sys.exit(work(Path(folder)))


if __name__ == "__main__":
    main()
