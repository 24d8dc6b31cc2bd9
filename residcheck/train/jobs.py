"""Runs side by side, each in a process of its own."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from residcheck.locking import BUSY
from residcheck.sweep.process import last_line
from residcheck.train.runs import Run
from residcheck.train.worker import TIED

_COMMAND = (sys.executable, "-m", "residcheck.train.worker", TIED)
_PATIENCE = 120.0  # seconds for a last step and its checkpoint


class Watcher(Protocol):
    """Told what runs do; ``said`` is the JSON object of a worker."""

    def began(self, run: Run) -> None: ...

    def told(self, run: Run, said: dict[str, Any]) -> None: ...

    def ended(self, run: Run, trouble: str) -> None:
        """``trouble`` is empty where the run is finished."""


@dataclass(frozen=True)
class _Message:
    run: Run
    said: dict[str, Any] | None  # None: its output has ended


def train_all(runs: Sequence[Run], jobs: int, watcher: Watcher) -> list[Run]:
    """Train runs, ``jobs`` at a time, in their order; returns those that failed.

    Whatever ends this, ctrl-C among it, lets each worker write a checkpoint first.
    """
    waiting, failed = list(runs), list[Run]()
    heard: queue.SimpleQueue[_Message] = queue.SimpleQueue()
    running: dict[Run, subprocess.Popen[str]] = {}
    troubles: dict[Run, str] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                running[run] = _start(run, heard.put)
                watcher.began(run)
            message = heard.get()
            run, said = message.run, message.said
            if said is None:
                status = _close(running.pop(run))
                trouble = "" if run.finished else troubles.get(run) or _trouble(run, status)
                if trouble:
                    failed.append(run)
                watcher.ended(run, trouble)
            elif said["kind"] == "failed":
                troubles[run] = f"{said['message']}. {said['hint']}".rstrip(". ")
            else:
                watcher.told(run, said)
    finally:
        _end(running.values())
    return failed


def _start(run: Run, tell: Callable[[_Message], None]) -> subprocess.Popen[str]:
    # A session of its own: ctrl-C is for this process, which asks its workers to stop.
    with run.log.open("ab") as log:
        process = subprocess.Popen(
            [*_COMMAND, str(run.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(run.threads)},
            start_new_session=True,
        )
    threading.Thread(target=_listen, args=(run, process, tell), daemon=True).start()
    return process


def _listen(run: Run, process: subprocess.Popen[str], tell: Callable[[_Message], None]) -> None:
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            try:
                said = json.loads(line)
            except ValueError:  # what a library prints
                continue
            if isinstance(said, dict) and "kind" in said:
                tell(_Message(run, said))
    tell(_Message(run, None))


def _trouble(run: Run, status: int) -> str:
    if status == BUSY:
        return "another process trains it"
    return f"its process ended with exit status {status}; see {last_line(run.log)}"


def _close(process: subprocess.Popen[str]) -> int:
    """The exit status of a process that said its last."""
    status = process.wait()
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.close()
    return status


def _end(processes: Iterable[subprocess.Popen[str]]) -> None:
    """Let workers write their checkpoints; end those that take too long."""
    alive = list(processes)
    for process in alive:
        process.terminate()
    for process in alive:
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
        _close(process)
