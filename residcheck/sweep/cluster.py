"""Models as jobs of a cluster, through submitit: each runs the worker that is run here, too."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from residcheck.errors import ResidcheckError, UsageError
from residcheck.sweep.process import WORKER, Process, settle
from residcheck.sweep.store import Entry, read_job

Cluster = Literal["slurm", "local"]
CLUSTERS: tuple[Cluster, ...] = ("slurm", "local")
_SHARED = ("name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node")
"""Options that submitit has for every cluster; others are called after theirs."""
SECONDS_TO_APPEAR = 15.0
_SECONDS_BETWEEN, _SECONDS_TO_CANCEL = 1.0, 10.0
_SPARE_MINUTES = 5
"""A job outlives its model's time limit, to say so."""


def supervise(folder: str, limit: float, command: Sequence[str] = WORKER) -> bool:
    """The work of one job: run the worker, and see to it that the model has a status.

    Returns whether it has; False if another process measures it.
    """
    entry, _ = read_job(Path(folder))
    task = Process(entry, limit, command=command)
    try:
        while not task.done():
            time.sleep(0.2)
    finally:
        task.end()
    return settle(entry, task.busy, task.trouble, task.seconds)


@contextmanager
def _hearing_interrupts() -> Iterator[None]:
    """What is started within hears SIGINT, by which submitit cancels jobs of this machine: a
    shell has what it runs in the background ignore that, and children inherit it."""
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if ignored:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


class Submitted:
    """A job under way."""

    def __init__(self, job: Any, cluster: str) -> None:
        self._job, self._cluster = job, cluster
        self._started = self._asked = time.monotonic()
        self._over: float | None = None

    @property
    def seconds(self) -> float:
        """Since it was submitted."""
        return time.monotonic() - self._started

    def done(self) -> bool:
        """What a shared disk and the cluster say; they are not asked all the time."""
        now = time.monotonic()
        if self._over is None and now > self._asked + _SECONDS_BETWEEN:
            self._asked = now
            self._over = now if self._job.done() else None
        if self._over is None:
            return False
        # A disk that nodes share may show a result some time after the job's end.
        return self._left_result or now > self._over + SECONDS_TO_APPEAR

    @property
    def _left_result(self) -> bool:
        return bool(self._job.paths.result_pickle.exists())

    def end(self) -> None:
        """Cancel the job; one of this machine is gone then."""
        with suppress(Exception):  # the others are to be cancelled, too
            self._job.cancel(check=False)
        given_up = time.monotonic() + _SECONDS_TO_CANCEL
        while self._cluster == "local" and not self._job.done() and time.monotonic() < given_up:
            time.sleep(0.05)

    @cached_property
    def busy(self) -> bool:
        return self._left_result and self._job.exception() is None and not self._job.result()

    @property
    def trouble(self) -> str:
        job = f"{self._cluster} job {self._job.job_id}"
        return f"{job} ended as {self._job.state}; see {self._job.paths.stderr}"


class Jobs:
    """Jobs of a cluster, submitted as an array.

    Args:
        folder: of submitit's own files; every node must see it.
        limit: seconds for one model, once its job runs.
        options: of the cluster's jobs.
        at_once: how many may run at a time; a cluster decides itself unless given.

    Raises:
        UsageError: no submitit, no cluster, or an option that it has not.
    """

    def __init__(
        self,
        cluster: Cluster,
        folder: Path,
        limit: float,
        options: Mapping[str, Any],
        at_once: int | None = None,
        command: Sequence[str] = WORKER,
    ) -> None:
        self._cluster, self._limit, self._command = cluster, limit, command
        self._tasks: list[Submitted] = []
        # Jobs of the local machine all start when they are submitted.
        self._most = None if cluster == "slurm" else at_once or 1
        parameters = {"timeout_min": int(limit // 60) + _SPARE_MINUTES, "name": "residcheck"}
        if at_once is not None:
            parameters["slurm_array_parallelism"] = at_once
        self._executor = _executor(cluster, folder, parameters | named(options))

    @property
    def room(self) -> int:
        if self._most is None:
            return 1 << 30
        return self._most - sum(not task.done() for task in self._tasks)

    def start(self, entries: Sequence[Entry]) -> list[Submitted]:
        """Raises :class:`ResidcheckError` where the cluster does not take them."""
        folders = [str(entry.folder) for entry in entries]
        limits, commands = [self._limit] * len(folders), [tuple(self._command)] * len(folders)
        try:
            with _hearing_interrupts():
                jobs = self._executor.map_array(supervise, folders, limits, commands)
        except Exception as error:  # of many kinds, as sbatch fails
            said = " ".join(str(error).split()) or type(error).__name__
            raise ResidcheckError(f"{self._cluster} does not take the jobs: {said}") from error
        started = [Submitted(job, self._cluster) for job in jobs]
        self._tasks += started
        return started


def _executor(cluster: str, folder: Path, parameters: Mapping[str, Any]) -> Any:
    if find_spec("submitit") is None:
        raise UsageError(
            f"--cluster {cluster} needs submitit, which is not installed",
            "pip install 'residcheck[cluster]'",
        )
    import submitit

    try:
        executor = submitit.AutoExecutor(folder, cluster=cluster)
        executor.update_parameters(**parameters)
    except (RuntimeError, NameError, AssertionError, ValueError, TypeError) as error:
        raise UsageError(f"--cluster {cluster}: {error}") from error
    return executor


def read_options(given: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` texts as a mapping; numbers and true or false as what they are.

    Raises:
        UsageError: a text without a key or a value, or a time that is not in minutes.
    """
    found: dict[str, Any] = {}
    for text in given:
        key, _, value = text.partition("=")
        if not key or not value:
            raise UsageError(f"--slurm-option {text!r} is not KEY=VALUE", "such as partition=gpu")
        found[key] = _value(value)
        if key == "time" and not isinstance(found[key], int):
            raise UsageError(f"--slurm-option {text!r}: the time is a whole number of minutes")
    return found


def _value(text: str) -> Any:
    truth = {"true": True, "false": False}.get(text.lower())
    if truth is not None:
        return truth
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def named(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as submitit calls them."""
    return {key if key in _SHARED else f"slurm_{key}": value for key, value in options.items()}
