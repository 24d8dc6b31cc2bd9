"""Have every version of a library describe every model: one process per cell.

One server per environment imports the library once and forks a child for each cell, which has
its own time limit and may crash without harm. What is finished is kept: a second run, or one
after ctrl-C, goes on where the first stopped.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

from residcheck.progress import Progress, silent
from residcheck.regress import witness
from residcheck.regress.cells import PACKAGE, Cell, finished, write_failure
from residcheck.regress.environments import Environment

WITNESS = Path(witness.__file__)


class Server:
    """The witness of one environment: a process that answers job after job."""

    def __init__(
        self,
        environment: Environment,
        log: Path,
        script: Path = WITNESS,
        arguments: Sequence[str] = (),
    ) -> None:
        self._log = log.open("a", encoding="utf-8")
        self._process = subprocess.Popen(
            [environment.python, "-P", str(script), *arguments],  # this folder is no import path
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment.variables,
            text=True,
            start_new_session=True,  # ctrl-C is for the runner, which ends the group
        )

    def ask(self, job: Mapping[str, Any]) -> str:
        """The status of a job: ``ok``, or what happened."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
            return str(json.loads(answer)["status"])
        except (OSError, ValueError):
            code = self._process.wait()
            return f"cannot import: the library ended its process with exit status {code}"

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            assert stream is not None
            with suppress(BrokenPipeError):  # a job that nobody reads any more
                stream.close()


def run(
    cells: Sequence[Cell],
    prepare: Callable[[str, str], Environment],
    place: Callable[[Cell, Environment], tuple[Path, Path]],
    limit: float,
    progress: Progress = silent,
    script: Path = WITNESS,
) -> None:
    """Run the cells that are not finished yet, in their order.

    Args:
        prepare: gives the environment of a package and version.
        place: the model's folder, and where the cell's files go (without suffix).
        limit: seconds for one cell.
    """
    done = 0
    for (package, version), group in groupby(cells, key=lambda c: (PACKAGE[c.library], c.version)):
        wanted = list(group)
        environment = prepare(package, version)
        places = {cell: place(cell, environment) for cell in wanted}
        missing = [cell for cell in wanted if not finished(places[cell][1])]
        done += len(wanted) - len(missing)
        server: Server | None = None
        try:
            for cell in missing:
                progress("cells", done, len(cells))
                folder, out = places[cell]
                if server is None or not server.alive:
                    if server is not None:
                        server.close()
                    server = Server(environment, out.parent / "witness.log", script)
                job = {"library": cell.library, "folder": str(folder), "out": str(out)}
                status = server.ask(job | {"limit": limit})
                if status != "ok":
                    write_failure(out, status)
                done += 1
        finally:
            if server is not None:
                server.close()
    progress("cells", done, len(cells))
