"""What a sweep keeps of a model: a folder of its own, named for all that its numbers depend on.

Whoever measures a model holds the lock in its folder, and writes its status last: a model
with a status is done with, however the process ended that wrote it. Other options, other
prompts or another version of residcheck are another folder.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from residcheck import __version__
from residcheck.corpus import Prompts
from residcheck.errors import RunFileError
from residcheck.files import write_text
from residcheck.locking import LOCK, Taken, locked
from residcheck.models import ModelSpec
from residcheck.models.spec import path_exists

SCHEMA = "residcheck.sweep/1"
LOG, JOB = "log.txt", "job.json"
_KEPT = {LOCK, LOG, JOB}
_LOCK_SECONDS = 1.0
"""A look at a lock takes no time; who measures holds it for longer."""

State = Literal["to do", "failed before", "finished", "under way"]


@dataclass(frozen=True)
class Status:
    """How a model's turn ended. ``message`` and ``hint`` are of the error that ended it."""

    state: Literal["finished", "failed"]
    seconds: float
    message: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Entry:
    """A model of the sweep, and the folder that is its own."""

    text: str
    spec: ModelSpec
    folder: Path

    @property
    def run(self) -> Path:
        return self.folder / "run.json"

    @property
    def verdicts(self) -> Path:
        return self.folder / "verdicts.json"

    @property
    def log(self) -> Path:
        return self.folder / LOG

    @property
    def status(self) -> Status | None:
        """How it ended; None where it has not, or where files of it are gone."""
        try:
            said = json.loads((self.folder / "status.json").read_text(encoding="utf-8"))
            if said.pop("schema") != SCHEMA:
                return None
            status = Status(**said)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        whole = self.run.is_file() and self.run.with_suffix(".npz").is_file()
        return None if status.state == "finished" and not whole else status

    @property
    def finished(self) -> bool:
        return self.status is not None and self.status.state == "finished"

    @property
    def state(self) -> State:
        """What there is to say before a sweep begins; nothing is written for it."""
        if self.finished:
            return "finished"
        if (self.folder / LOCK).exists():
            try:
                with self.locked(0):
                    pass
            except Taken:
                return "under way"
        return "to do" if self.status is None else "failed before"

    def locked(self, seconds: float = _LOCK_SECONDS) -> AbstractContextManager[None]:
        """Within, the model is this process's own; raises ``Taken`` if another has it."""
        return locked(self.folder, seconds)

    def look(self) -> Literal["free", "taken", "finished"]:
        """Whether it is to be measured now; what an earlier turn said of a failure is forgotten."""
        try:
            with self.locked(0):
                if self.finished:
                    return "finished"
                (self.folder / "status.json").unlink(missing_ok=True)
                return "free"
        except Taken:
            return "taken"

    def end(self, status: Status) -> None:
        """Say how it ended; by whoever holds the lock, and after all else is written."""
        text = json.dumps({"schema": SCHEMA, **asdict(status)}, indent=1)
        write_text(self.folder / "status.json", text + "\n")

    def clear(self) -> None:
        """Without anything of an earlier turn; by whoever holds the lock."""
        (self.folder / "status.json").unlink(missing_ok=True)
        for path in [path for path in self.folder.iterdir() if path.name not in _KEPT]:
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Job:
    """All that a worker has to know of its model."""

    text: str
    spec: ModelSpec
    prompts: Prompts
    max_tokens: int | None
    batch_size: int
    snapshots: Path | None


def write_job(entry: Entry, job: Job, prompts: Path) -> None:
    """Leave a job in the folder of its model; ``prompts`` is the file that has them."""
    said = {
        "schema": SCHEMA,
        "text": job.text,
        "spec": asdict(job.spec),
        "prompts": str(prompts),
        "max_tokens": job.max_tokens,
        "batch_size": job.batch_size,
        "snapshots": None if job.snapshots is None else str(job.snapshots),
    }
    write_text(entry.folder / JOB, json.dumps(said, indent=1) + "\n")


def read_job(folder: Path) -> tuple[Entry, Job]:
    """The job in a folder.

    Raises:
        RunFileError: there is none, or it cannot be read.
    """
    try:
        said = json.loads((folder / JOB).read_text(encoding="utf-8"))
        if said["schema"] != SCHEMA:
            raise ValueError(f"schema {said['schema']!r}")
        texts = json.loads(Path(said["prompts"]).read_text(encoding="utf-8"))
        snapshots = None if said["snapshots"] is None else Path(said["snapshots"])
        job = Job(
            said["text"],
            ModelSpec(**said["spec"]),
            Prompts(texts["source"], tuple(texts["texts"])),
            said["max_tokens"],
            said["batch_size"],
            snapshots,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFileError(f"{folder / JOB} cannot be read: {error}") from error
    return Entry(job.text, job.spec, folder), job


def write_prompts(prompts: Prompts, path: Path) -> None:
    """Keep the prompts for the workers, wherever their file was."""
    if not path.is_file():
        write_text(path, json.dumps(asdict(prompts)) + "\n")


def digest(prompts: Prompts) -> str:
    """Hex sha256 of the prompts and of where they are said to be from."""
    return hashlib.sha256(json.dumps(asdict(prompts)).encode()).hexdigest()


def folder_name(spec: ModelSpec, prompts: str, max_tokens: int | None) -> str:
    """A name to be read, and the hash of all that the numbers depend on.

    That is the spec with its options, the files where it is a path, the prompts (``prompts``
    is their :func:`digest`), the longest prompt, and residcheck's version. The batch size is
    left out: it moves nothing, and a smaller one must not cost what is finished.
    """
    depends = {
        "version": __version__,
        "spec": asdict(spec),
        "files": _files(spec),
        "prompts": prompts,
        "max_tokens": max_tokens,
    }
    hashed = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
    readable = re.sub(r"[^A-Za-z0-9._=-]+", "-", str(spec).rstrip("/"))[-60:].strip("-.")
    return f"{readable}-{hashed[:12]}"


def _files(spec: ModelSpec) -> list[tuple[str, int, int]]:
    """Where the model is a path: it, and the sizes and times of its files."""
    if not path_exists(spec.name):
        return []
    path = Path(spec.name).expanduser().resolve()
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    facts = [(file.name, stat.st_size, stat.st_mtime_ns) for file in files
             if (stat := file.stat()) and file.is_file()]  # fmt: skip
    return [(str(path), 0, 0), *facts]
