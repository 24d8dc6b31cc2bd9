"""A zoo of trained controls, from what its runs left on the disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from math import isfinite, log
from pathlib import Path
from typing import Any

from residcheck.controls.rates import log_rate
from residcheck.errors import ResidcheckError, RunFileError, UsageError
from residcheck.stats import MIN_PROMPTS
from residcheck.train import history
from residcheck.train.arms import ORDER, Arm, Changes
from residcheck.train.history import Record
from residcheck.train.measured import Measured
from residcheck.train.measured import read as read_measured
from residcheck.train.scales import Scale, read_scales

BASELINE = ORDER[0]
PROVENANCE = "residcheck.train.provenance/1"
_RATE_TOLERANCE = 1e-4
"""Of the log rate in ``measured.json`` against that of the provenance, which are of one pass in
float32 and of seven digits: ten times what these may differ by, and a fiftieth of what counts."""


@dataclass(frozen=True, eq=False)
class Control:
    """One trained model.

    Args:
        loss: nats on the whole held-out text.
        corpus: facts about the text: ``sha256``, ``python``, numbers of tokens.
        versions: of Python and the libraries.
        device: that it was trained on, in words.
        threads: that it had there.
        seconds: of training, with whatever else the machine did meanwhile.
        sha256: of the files that were read.
    """

    arm: Arm
    seed: int
    scale: Scale
    loss: float
    corpus: Mapping[str, Any]
    versions: Mapping[str, str]
    device: str
    threads: int
    seconds: float
    history: tuple[Record, ...]
    measured: Measured
    sha256: str

    @property
    def name(self) -> str:
        return f"{self.arm.name}-seed{self.seed}"


@dataclass(frozen=True, eq=False)
class Zoo:
    """The finished runs of one scale and one text, arms in their order, then seeds."""

    folder: Path
    runs: tuple[Control, ...]
    unfinished: tuple[str, ...]

    @property
    def scale(self) -> Scale:
        return self.runs[0].scale

    @property
    def name(self) -> str:
        """What takes the place of a model's id in verdicts and snapshots."""
        return f"controls-{self.scale.name}"

    @property
    def sha256(self) -> str:
        """Hex, over what was read of every run."""
        return sha256("".join(sorted(run.sha256 for run in self.runs)).encode()).hexdigest()


def shipped() -> list[Path]:
    """The zoos that come with residcheck, one for each scale of which runs were stored."""
    root = Path(str(files("residcheck.controls"))) / "runs"
    return [root / scale for scale in read_scales() if _run_folders(root / scale)]


def read_zoo(folder: Path) -> Zoo:
    """The runs in ``folder``.

    Raises:
        UsageError: there is no folder, no finished run, no baseline, or runs do not belong
            together: they are of several scales or texts.
        ResidcheckError: a file of a finished run is missing, damaged or of another schema.
    """
    folders = _run_folders(folder)
    if not folders:
        what = "holds no trained controls" if folder.is_dir() else "is no folder"
        raise UsageError(f"{folder} {what}", "train some: python -m residcheck.train --out DIR")
    finished = [path for path in folders if (path / "provenance.json").is_file()]
    unfinished = tuple(path.name for path in folders if path not in finished)
    if not finished:
        raise UsageError(
            f"no run in {folder} is finished: {', '.join(unfinished)}",
            "the command that began them goes on where they were",
        )
    zoo = Zoo(folder, tuple(sorted(map(read_control, finished), key=_place)), unfinished)
    _belong_together(zoo.runs)
    if all(run.arm.name != BASELINE for run in zoo.runs):
        raise UsageError(
            f"{folder} has no finished {BASELINE}, which all others are compared with",
            f"python -m residcheck.train --arms {BASELINE} --out {folder}",
        )
    return zoo


def _run_folders(folder: Path) -> list[Path]:
    marks = ("run.json", "provenance.json")
    found = folder.iterdir() if folder.is_dir() else iter(())
    return sorted(p for p in found if any((p / mark).is_file() for mark in marks))


def _place(run: Control) -> tuple[int, str, int]:
    known = run.arm.name in ORDER
    return (ORDER.index(run.arm.name) if known else len(ORDER), run.arm.name, run.seed)


def _belong_together(runs: Sequence[Control]) -> None:
    first = runs[0]
    for run in runs:
        for what, one, other in (
            ("scales", first.scale, run.scale),
            ("texts", first.corpus["sha256"], run.corpus["sha256"]),
            ("numbers of windows", len(first.measured.loss), len(run.measured.loss)),
        ):
            if one != other:
                raise UsageError(
                    f"{first.name} and {run.name} are of different {what}: they are no pair",
                    "give each scale and text a folder of its own",
                )


def read_control(folder: Path) -> Control:
    """A finished run.

    Raises:
        ResidcheckError: a file is missing, damaged or of another schema, or the files are not
            of one run.
    """
    said, path = _provenance(folder / "provenance.json"), folder / "measured.json"
    if not path.is_file():
        raise ResidcheckError(
            f"{path} is missing",
            "delete provenance.json beside it and start the training again, which finishes the "
            "run anew from its checkpoint",
        )
    measured = read_measured(path)
    try:
        arm = Arm(**said["arm"] | {"changes": Changes(**said["arm"]["changes"])})
        scale, loss, rate = Scale(**said["scale"]), said["held_out_loss"], said["rate"]
        corpus, versions = dict(said["corpus"]), dict(said["versions"])
        control = Control(
            arm,
            int(said["seed"]),
            scale,
            float(loss),
            corpus | {"sha256": str(corpus["sha256"])},
            versions,
            str(said["device"]),
            int(said["threads"]),
            float(said["seconds"]),
            _history(folder / "history.jsonl", scale),
            measured,
            sha256(path.read_bytes() + (folder / "provenance.json").read_bytes()).hexdigest(),
        )
        if not (isfinite(loss) and isfinite(rate) and rate > 0):
            raise ValueError("a loss or rate is not finite")
    except (ValueError, KeyError, TypeError) as error:
        raise RunFileError(f"{folder / 'provenance.json'} cannot be read: {error}") from error
    _of_one_run(folder, control, rate)
    return control


def _provenance(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        schema = said.get("schema") if isinstance(said, dict) else None
    except (OSError, ValueError) as error:
        raise RunFileError(f"{path} cannot be read: {error}") from error
    if schema != PROVENANCE:
        raise RunFileError(f"{path} has schema {schema!r}; this version reads {PROVENANCE!r}")
    assert isinstance(said, dict)
    return said


def _history(path: Path, scale: Scale) -> tuple[Record, ...]:
    """All records up to the last step.

    Raises:
        RunFileError: it is missing or ends before.
    """
    records = tuple(history.read(path))
    if not records or records[-1].step != scale.steps:
        there = f"ends at step {records[-1].step}" if records else "holds no record"
        raise RunFileError(f"{path} {there}; the run has {scale.steps} steps")
    if not all(isfinite(record.rate) and record.rate > 0 for record in records):
        raise RunFileError(f"{path} holds rates that are not finite")
    return records


def _of_one_run(folder: Path, control: Control, rate: float) -> None:
    measured, layers = control.measured, len(control.measured.divisors)
    if folder.name != control.name:
        raise RunFileError(f"{folder} holds the files of {control.name}")
    if layers != control.scale.layers or len(measured.loss) < MIN_PROMPTS:
        raise RunFileError(
            f"{folder / 'measured.json'} has {layers} layers and {len(measured.loss)} windows; "
            f"{control.scale.layers} layers and at least {MIN_PROMPTS} windows are needed"
        )
    if min(values.min() for values in measured.weights.values()) <= 0:
        raise RunFileError(
            f"{folder / 'measured.json'} holds norms of weights that are not above 0"
        )
    if abs(log_rate(control, "resid_post_norm") - log(rate)) > _RATE_TOLERANCE:
        raise RunFileError(f"{folder}: measured.json and provenance.json are of different models")
