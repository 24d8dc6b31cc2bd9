"""A worker that does what the name of its model says, and a list of models for it.

Every call is noted in ``calls`` beside the models' folders, with the GPU that it was given.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from residcheck.corpus import Prompts
from residcheck.models import ModelSpec
from residcheck.sweep.listing import Listed
from residcheck.sweep.plan import Settings, entries, prepare
from residcheck.sweep.store import Entry

_WORKER = """
import os, signal, sys, time
from pathlib import Path
from residcheck.locking import BUSY, Taken
from residcheck.sweep.store import Status, read_job

entry, job = read_job(Path(sys.argv[-1]))
try:
    with entry.locked():
        if entry.finished:
            sys.exit(0)
        entry.clear()
        gpu = os.environ.get("CUDA_VISIBLE_DEVICES") or "-"
        with (entry.folder.parent / "calls").open("a") as calls:
            calls.write(f"{entry.text} {gpu} {os.getpid()}\\n")
        print("at work")
        kind = entry.text.partition("-")[0]
        if kind == "segfaults": os.kill(os.getpid(), signal.SIGSEGV)
        if kind == "killed": os.kill(os.getpid(), signal.SIGKILL)
        if kind == "exits": sys.exit(7)
        if kind == "hangs": time.sleep(60)
        if kind == "fails": entry.end(Status("failed", 0.1, "it is <bad>", "make it better"))
        else:
            time.sleep(0.2 if kind == "slow" else 0)
            entry.run.write_text("{}")
            entry.run.with_suffix(".npz").write_bytes(b"")
            entry.end(Status("finished", 0.1))
except Taken:
    sys.exit(BUSY)
"""


def worker(folder: Path) -> tuple[str, ...]:
    """The command of a worker that is kept in ``folder``."""
    script = folder / "worker.py"
    script.write_text(_WORKER)
    return (sys.executable, str(script))


def settings(out: Path) -> Settings:
    return Settings(out, Prompts("some", ("one", "two")), None, 8, None)


def planned(out: Path, *names: str, device: str = "cpu") -> list[Entry]:
    """Models of these names, with their jobs in their folders."""
    listed = [Listed(name, n, ModelSpec(name, device=device)) for n, name in enumerate(names, 1)]
    found = entries(listed, settings(out))
    prepare(found, settings(out))
    return found


def calls(out: Path) -> list[list[str]]:
    """Name, GPU and process of every call of a worker, in their order."""
    path = out / "models" / "calls"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


class Notes:
    """A watcher that remembers; ``interrupt`` is raised once so many models began."""

    def __init__(self, interrupt: int | None = None) -> None:
        self.began_: list[str] = []
        self.ended_: list[str] = []
        self.waited: list[str] = []
        self._interrupt = interrupt

    def began(self, entry: Entry) -> None:
        self.began_.append(entry.text)
        if len(self.began_) == self._interrupt:
            raise KeyboardInterrupt

    def ended(self, entry: Entry) -> None:
        self.ended_.append(entry.text)

    def waits(self, entries: Sequence[Entry]) -> None:
        self.waited += [entry.text for entry in entries]
