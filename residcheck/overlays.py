"""Another version of one package, laid over the environment that residcheck runs in.

An overlay is a folder with that package alone, which ``PYTHONPATH`` puts before what is
installed: seconds and megabytes in the place of an environment of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path

from filelock import FileLock
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import residcheck
from residcheck.errors import LoadError, UsageError
from residcheck.models.cache import explain_disk, home
from residcheck.progress import Progress, silent

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_QUIET = ("--disable-pip-version-check", "--no-input")


def overlay(package: str, version: str, progress: Progress = silent) -> Path:
    """The folder that holds ``package`` at ``version``, made once.

    Beside it there is what it requires and the environment lacks, nothing else: where the
    environment has another version than it asks for, that of the environment counts.

    Raises:
        UsageError: no name of a package, or no version.
        LoadError: the package index has no such version, or the disk is full.
    """
    for text in (package, version):
        if not _NAME.fullmatch(text):
            raise UsageError(f"{text!r} is no package or version")
    folders = home() / "overlays"
    folder = folders / f"{package}-{version}"
    with explain_disk(folders):
        folders.mkdir(parents=True, exist_ok=True)
        with FileLock(folders / f".{folder.name}.lock"):
            if folder.is_dir():
                return folder
            progress(f"fetching {package} {version}", 0, None)
            staging = folders / f".{folder.name}.partial"
            shutil.rmtree(staging, ignore_errors=True)
            try:
                _install(staging, [f"{package}=={version}"])
                while lacking := _lacking(staging):
                    _install(staging, lacking)
                staging.replace(folder)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    return folder


def available(package: str) -> list[str]:
    """The released versions of a package that the package index has for this Python.

    Raises:
        LoadError: the index has no such package, or cannot be reached.
    """
    said = pip("index", "versions", package)
    _, _, listed = said.partition("Available versions:")
    return [version.strip() for version in listed.partition("\n")[0].split(",") if version.strip()]


def run_residcheck(folder: Path, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """``python -m residcheck`` with the overlay in ``folder``; what it said is kept."""
    own = str(Path(residcheck.__file__).parent.parent)
    before = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    search = os.pathsep.join([str(folder), *before, own])
    return subprocess.run(
        [sys.executable, "-m", "residcheck", *arguments],
        env=os.environ | {"PYTHONPATH": search},
        capture_output=True,
        text=True,
        check=False,
    )


def _install(folder: Path, requirements: Sequence[str]) -> None:
    pip("install", "--no-deps", "--target", str(folder), *requirements)


def _lacking(folder: Path) -> list[str]:
    """What the packages in ``folder`` require that is neither there nor installed."""
    inside = list(distributions(path=[str(folder)]))
    known = {canonicalize_name(d.metadata["Name"]) for d in (*inside, *distributions())}
    wanted = [Requirement(text) for d in inside for text in d.requires or ()]
    return sorted(
        f"{r.name}{r.specifier}"
        for r in wanted
        if canonicalize_name(r.name) not in known
        and (r.marker is None or r.marker.evaluate({"extra": ""}))
    )


def pip(command: str, *arguments: str, python: str = sys.executable) -> str:
    """What a command of pip prints, of this Python or another one.

    Raises:
        LoadError: it fails; with pip's reason.
    """
    said = subprocess.run(
        [python, "-m", "pip", command, *_QUIET, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if said.returncode:
        lines = [line for line in said.stderr.splitlines() if line.startswith("ERROR:")]
        reason = lines[-1].removeprefix("ERROR:").strip() if lines else said.stderr.strip()[-300:]
        raise LoadError(
            f"pip {command} {arguments[-1]} failed: {reason}",
            "check the version and the package index",
        )
    return said.stdout
