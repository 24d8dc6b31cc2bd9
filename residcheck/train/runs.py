"""What a run keeps: a folder of its own, named for its arm and seed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

from residcheck.errors import ResidcheckError, UsageError
from residcheck.files import write_text
from residcheck.locking import locked
from residcheck.train.arms import Arm, Changes
from residcheck.train.scales import Scale

SCHEMA = "residcheck.train.run/1"
CORPUS = "corpus"


@dataclass(frozen=True)
class Run:
    """One model to be trained.

    Args:
        out: the folder that has the corpus and all runs on it.
        threads: of torch, fixed with the run: other numbers of threads add up in another order.
    """

    out: Path
    arm: Arm
    scale: Scale
    seed: int
    threads: int

    @property
    def name(self) -> str:
        return f"{self.arm.name}-seed{self.seed}"

    @property
    def folder(self) -> Path:
        return self.out / self.name

    @property
    def corpus(self) -> Path:
        return self.out / CORPUS

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    @property
    def history(self) -> Path:
        return self.folder / "history.jsonl"

    @property
    def measured(self) -> Path:
        return self.folder / "measured.json"

    @property
    def provenance(self) -> Path:
        return self.folder / "provenance.json"

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def finished(self) -> bool:
        """Whether it is trained and exported: its provenance is written last."""
        return self.provenance.is_file()

    def locked(self) -> AbstractContextManager[None]:
        """Within, the run is this process's own; raises ``Taken`` if another has it."""
        return locked(self.folder)


def ordered(
    out: Path, scale: Scale, arms: Sequence[Arm], seeds: Sequence[int], threads: int
) -> list[Run]:
    """Every arm with the first seed, then every arm with the next."""
    return [Run(out, arm, scale, seed, threads) for seed in seeds for arm in arms]


def write_run(run: Run) -> Run:
    """Leave the settings in the run's folder; returns the run as it was begun.

    Raises:
        UsageError: it was begun there with another arm or scale of the same name.
        ResidcheckError: the folder cannot be written.
    """
    path = run.folder / "run.json"
    if path.is_file():
        begun = read_run(run.folder)
        if (begun.arm, begun.scale, begun.seed) != (run.arm, run.scale, run.seed):
            raise UsageError(
                f"{run.folder} was begun with other settings",
                "give another --out, or delete that folder",
            )
        return begun
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResidcheckError(f"cannot write {run.folder}: {error.strerror or error}") from error
    said = {"schema": SCHEMA, "arm": asdict(run.arm), "scale": asdict(run.scale),
            "seed": run.seed, "threads": run.threads}  # fmt: skip
    write_text(path, json.dumps(said, indent=1) + "\n")
    return run


def read_run(folder: Path) -> Run:
    """The run whose settings are in ``folder``.

    Raises:
        ResidcheckError: there are none, or they cannot be read.
    """
    try:
        said = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        if said["schema"] != SCHEMA:
            raise ValueError("another version wrote it")
        arm = Arm(**said["arm"] | {"changes": Changes(**said["arm"]["changes"])})
        return Run(folder.parent, arm, Scale(**said["scale"]), said["seed"], said["threads"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResidcheckError(f"{folder / 'run.json'} cannot be read: {error}") from error
