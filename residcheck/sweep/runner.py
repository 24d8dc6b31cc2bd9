"""Have models measured, some at a time, until each has a status."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Protocol

from residcheck.sweep.gpus import Slot
from residcheck.sweep.process import WORKER, Process, settle
from residcheck.sweep.store import Entry

_POLL = 0.1  # seconds between two looks at what runs


class Task(Protocol):
    """A model under way."""

    def done(self) -> bool: ...

    def end(self) -> None:
        """End it, whatever it does."""

    @property
    def busy(self) -> bool:
        """Of one that is done: whether it left the model to another process."""

    @property
    def trouble(self) -> str:
        """Of one that is done and left no status: what became of it."""

    @property
    def seconds(self) -> float: ...


class Place(Protocol):
    """Where models are measured."""

    @property
    def room(self) -> int:
        """How many more can be started now."""

    def start(self, entries: Sequence[Entry]) -> Sequence[Task]:
        """Start the work on them, a task for each, in their order."""


class Watcher(Protocol):
    """Told how a sweep goes on."""

    def began(self, entry: Entry) -> None: ...

    def ended(self, entry: Entry) -> None:
        """It has a status now."""

    def waits(self, entries: Sequence[Entry]) -> None:
        """Nothing is left to start: the models that other sweeps measure are waited for."""


class Here:
    """Processes on this machine, one in each slot.

    Args:
        limit: seconds for one model.
        command: what is run, before the model's folder.
    """

    def __init__(
        self, slots: Sequence[Slot], limit: float, command: Sequence[str] = WORKER
    ) -> None:
        self._slots, self._limit, self._command = slots, limit, command
        self._tasks: dict[int, Process] = {}

    @property
    def room(self) -> int:
        return len(self._free())

    def _free(self) -> list[int]:
        tasks = self._tasks
        return [i for i in range(len(self._slots)) if i not in tasks or tasks[i].done()]

    def start(self, entries: Sequence[Entry]) -> list[Process]:
        started = []
        for entry, place in zip(entries, self._free(), strict=False):
            variables = self._slots[place].variables(entry.spec.device) | self._threads()
            task = Process(entry, self._limit, variables, self._command)
            self._tasks[place] = task
            started.append(task)
        return started

    def _threads(self) -> dict[str, str]:
        """The cores shared out: processes that each take all of them slow each other down."""
        if len(self._slots) == 1 or "OMP_NUM_THREADS" in os.environ:
            return {}
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return {"OMP_NUM_THREADS": str(max(1, (cores or 1) // len(self._slots)))}


def run(entries: Sequence[Entry], place: Place, watcher: Watcher) -> None:
    """Start what is free, wait for what is not, until every model has a status.

    Each is tried once here; one that another sweep measures is waited for, and measured here
    if that sweep gives it up. Whatever ends this ends what it started.
    """
    waiting, running = list(entries), dict[Entry, Task]()
    told = False
    try:
        while waiting or running:
            for entry, task in [*running.items()]:
                if task.done():
                    del running[entry]
                    if settle(entry, task.busy, task.trouble, task.seconds):
                        watcher.ended(entry)
                    else:
                        waiting.append(entry)
            ready: list[Entry] = []
            room = place.room
            for entry in [*waiting]:
                if len(ready) == room:
                    break
                seen = entry.look()
                if seen == "taken":
                    continue
                waiting.remove(entry)
                if seen == "finished":
                    watcher.ended(entry)
                else:
                    ready.append(entry)
            for entry, task in zip(ready, place.start(ready) if ready else (), strict=True):
                running[entry] = task
                watcher.began(entry)
            if waiting and not running and not told:
                watcher.waits(waiting)
                told = True
            if waiting or running:
                time.sleep(_POLL)
    finally:
        for task in running.values():
            task.end()
