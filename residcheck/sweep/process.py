"""One model in a process of its own, which can harm nobody but itself.

The process ends with this one, however this one ends: it holds the other end of its standard
input. It is a session of its own, so that ctrl-C is for the sweep, which ends its group.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from residcheck.locking import BUSY, Taken
from residcheck.sweep.store import Entry, Status

TIED = "--tied"
WORKER = (sys.executable, "-m", "residcheck.sweep.worker", TIED)


class Process:
    """A worker that runs.

    Args:
        limit: seconds after which it is ended.
        variables: of its environment, beside those of this process.
    """

    def __init__(
        self,
        entry: Entry,
        limit: float,
        variables: Mapping[str, str] | None = None,
        command: Sequence[str] = WORKER,
    ) -> None:
        self._limit, self._late = limit, False
        self._started = time.monotonic()
        with entry.log.open("ab") as log:
            self._popen = subprocess.Popen(
                [*command, str(entry.folder)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(variables or {})},
                start_new_session=True,
            )

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def done(self) -> bool:
        """Whether it ended; one that takes too long is ended now."""
        if self._popen.poll() is not None:
            self._close()
            return True
        if self.seconds > self._limit:
            self._late = True
            self.end()
            return True
        return False

    def end(self) -> None:
        """End the process and all that it started."""
        if self._popen.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._popen.pid, signal.SIGKILL)
            self._popen.wait()
        self._close()

    def _close(self) -> None:
        assert self._popen.stdin is not None
        with suppress(BrokenPipeError):
            self._popen.stdin.close()

    @property
    def busy(self) -> bool:
        """Whether it left the model to another process."""
        return self._popen.returncode == BUSY

    @property
    def trouble(self) -> str:
        """What became of a process that said nothing itself."""
        code = self._popen.returncode
        if self._late:
            return f"not done after {self._limit / 60:g} minutes, and ended"
        if code is None or code >= 0:
            return f"the process ended with exit status {code}"
        name = signal.Signals(-code).name
        out_of_memory = name == "SIGKILL"
        return f"the process was ended by {name}" + (
            ", as the system does where memory runs out" if out_of_memory else ""
        )


def settle(entry: Entry, busy: bool, trouble: str, seconds: float) -> bool:
    """See to it that a model whose turn ended has a status; False if another process has it."""
    if busy:
        return False
    try:
        with entry.locked():
            if entry.status is None:
                hint = f"see {last_line(entry.log)}"
                entry.end(Status("failed", round(seconds, 1), trouble, hint))
    except Taken:
        return False
    return True


def last_line(log: Path) -> str:
    """A log, and the last that was said in it."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return str(log)
    said = [line.strip() for line in lines if line.strip()]
    return f"{log}, which ends in: {said[-1][:200]}" if said else f"{log}, which is empty"
