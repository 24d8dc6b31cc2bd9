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
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from threading import Lock
from typing import Any

from residcheck.progress import Progress, silent
from residcheck.regress.cells import PACKAGE, STAND, Cell, finished, write_failure
from residcheck.regress.environments import Environment


class Server:
    """The witness of one environment: a process that answers job after job."""

    def __init__(
        self,
        environment: Environment,
        log: Path,
        script: Path = STAND,
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

    def kill(self) -> None:
        """End the process and its children; who waits for an answer gets a status."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        self.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            assert stream is not None
            with suppress(BrokenPipeError):  # a job that nobody reads any more
                stream.close()


class _Stopped(Exception):
    """The run is being given up: what the servers say from here on means nothing."""


@dataclass
class _Crew:
    """What the groups of a run share: how far they are, and the servers that live."""

    progress: Progress
    done: int
    total: int
    stopped: bool = False
    servers: set[Server] = field(default_factory=set)
    lock: Lock = field(default_factory=Lock)

    def hire(self, server: Server) -> Server:
        with self.lock:
            self.servers.add(server)
            stopped = self.stopped
        if stopped:
            self.dismiss(server)
            raise _Stopped
        return server

    def dismiss(self, server: Server) -> None:
        with self.lock:
            self.servers.discard(server)
        server.close()

    def note(self) -> None:
        with self.lock:
            self.done += 1
            self.progress("cells", self.done, self.total)

    def stop(self) -> None:
        with self.lock:
            self.stopped, servers = True, [*self.servers]
        for server in servers:
            server.kill()


def run(
    cells: Sequence[Cell],
    prepare: Callable[[str, str], Environment],
    place: Callable[[Cell, Environment], tuple[Path, Path]],
    limit: float,
    progress: Progress = silent,
    script: Path = STAND,
    jobs: int = 1,
) -> None:
    """Run the cells that are not finished yet, version by version in their order.

    Args:
        prepare: gives the environment of a package and version.
        place: the model's folder, and where the cell's files go (without suffix).
        limit: seconds for one cell.
        jobs: versions at a time.
    """
    groups: list[tuple[Environment, list[_Job]]] = []
    for (package, version), group in groupby(cells, key=lambda c: (PACKAGE[c.library], c.version)):
        environment = prepare(package, version)
        placed = [(cell.library, *place(cell, environment)) for cell in group]
        groups.append((environment, [job for job in placed if not finished(job[2])]))
    missing = sum(len(group) for _, group in groups)
    crew = _Crew(progress, len(cells) - missing, len(cells))
    progress("cells", crew.done, crew.total)
    with ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(_serve, *group, crew, limit, script) for group in groups]
        try:
            for one in as_completed(running):
                one.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            crew.stop()
            raise


_Job = tuple[str, Path, Path]
"""A library, a model's folder, and where the cell's files go."""


def _serve(
    environment: Environment, jobs: Sequence[_Job], crew: _Crew, limit: float, script: Path
) -> None:
    """The cells of one environment, by one server as long as it lives."""
    server: Server | None = None
    try:
        for library, folder, out in jobs:
            if server is None or not server.alive:
                if server is not None:
                    crew.dismiss(server)
                server = crew.hire(Server(environment, out.parent / "witness.log", script))
            job = {"library": library, "folder": str(folder), "out": str(out), "limit": limit}
            status = server.ask(job)
            if crew.stopped:
                return
            if status != "ok":
                write_failure(out, status)
            crew.note()
    except _Stopped:
        return
    finally:
        if server is not None:
            crew.dismiss(server)
