"""Train one model: ``python -m residcheck.train.worker [--tied] FOLDER``.

Says what happens in JSON lines on standard output. SIGTERM, SIGINT, and the end of standard input
for a tied worker, end it after the step under way, with a checkpoint.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from dataclasses import asdict
from pathlib import Path

from residcheck.errors import ExitStatus, ResidcheckError
from residcheck.locking import BUSY, Taken
from residcheck.train.runs import Run, read_run

TIED = "--tied"


def main() -> None:
    *options, folder = sys.argv[1:]
    # Before torch is there: cuBLAS reads it once, and is not deterministic without.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if TIED in options:
        threading.Thread(target=_until_input_ends, args=(stop,), daemon=True).start()
    try:
        sys.exit(work(Path(folder), stop))
    except ResidcheckError as error:
        _say("failed", message=error.message, hint=error.hint)
        sys.exit(error.exit_status)


def work(folder: Path, stop: threading.Event) -> int:
    """Train and finish the run in ``folder``; returns the exit status."""
    run = read_run(folder)
    try:
        with run.locked():
            return 0 if run.finished else _train(run, stop)
    except Taken:
        return BUSY


def _train(run: Run, stop: threading.Event) -> int:
    import torch

    from residcheck.models.quiet import quiet_libraries
    from residcheck.train.corpus import read
    from residcheck.train.finish import finish
    from residcheck.train.trainer import Trainer

    torch.use_deterministic_algorithms(True)
    # Nothing here reads memory that it did not write; filling it takes 8 % of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    corpus = read(run.corpus)
    with quiet_libraries():
        trainer = Trainer(run, corpus)
        if not trainer.train(_Teller(), stop.is_set):
            return ExitStatus.INTERRUPTED
        finish(run, corpus, trainer.model, trainer.seconds)
    return 0


class _Teller:
    """Says steps and records on standard output."""

    def stepped(self, step: object) -> None:
        _say("step", **asdict(step))  # type: ignore[call-overload]

    def recorded(self, record: object) -> None:
        _say("record", **asdict(record))  # type: ignore[call-overload]


def _say(kind: str, **what: object) -> None:
    try:
        print(json.dumps({"kind": kind, **what}), flush=True)
    except BrokenPipeError:  # who listened was killed: the end of standard input says so, too
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _until_input_ends(stop: threading.Event) -> None:
    while os.read(0, 1024):
        pass
    stop.set()


if __name__ == "__main__":
    main()
