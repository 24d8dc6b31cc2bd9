"""One environment per version of a library: a base, and an overlay of a few megabytes.

An overlay is what ``pip install --no-deps --target`` leaves; ``PYTHONPATH`` puts it before what
the base has. The base of transformer-lens 3 and later, and of transformers, is the environment
that residcheck runs in. transformer-lens 2 needs older packages throughout: its base is a
virtual environment of its own, which finds torch in the running one.
"""

from __future__ import annotations

import os
import shutil
import sys
import venv
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from residcheck.overlays import pip
from residcheck.progress import Progress, silent

LENS, TRANSFORMERS = "transformer-lens", "transformers"
OLD_LENS = (
    "transformer-lens==2.18.0",
    "transformers==4.57.6",
    "datasets<4",
    "pyarrow<21",
    "numpy<2",
    "pandas<2.1",
    "typeguard<5",
)
"""What transformer-lens 2 imports with: of later versions of these, something was removed."""
_ROOT = str(Path(__file__).parents[2])


@dataclass(frozen=True)
class Environment:
    """A Python, what to put before its own packages, and the version that this selects."""

    package: str
    version: str
    python: str
    path: tuple[str, ...]

    @property
    def variables(self) -> dict[str, str]:
        """The process environment: offline, one thread, quiet."""
        fixed = {
            "PYTHONPATH": os.pathsep.join(self.path),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "TRANSFORMERS_VERBOSITY": "error",
            "WANDB_MODE": "disabled",
        }
        return os.environ | fixed


def prepare(package: str, wanted: str, cache: Path, progress: Progress = silent) -> Environment:
    """The environment of one version, made where it is not there yet.

    Raises:
        LoadError: pip could not install it.
    """
    old = package == LENS and Version(wanted) < Version("3")
    python = _old_base(cache, progress) if old else sys.executable
    path: tuple[str, ...] = ()
    if old or wanted != version(package):
        path = (str(_overlay(package, wanted, cache, python, progress)),)
    if package == TRANSFORMERS:  # its witness is residcheck's own plain backend
        path = (*path, _ROOT)
    return Environment(package, wanted, python, path)


def newest_patches(versions: Iterable[str]) -> list[str]:
    """Of every minor release the newest patch, oldest first."""
    newest: dict[tuple[int, int], Version] = {}
    for parsed in map(Version, versions):
        key = (parsed.major, parsed.minor)
        newest[key] = max(parsed, newest.get(key, parsed))
    return [str(found) for found in sorted(newest.values())]


def _overlay(package: str, wanted: str, cache: Path, python: str, progress: Progress) -> Path:
    folder = cache / "overlays" / f"{package}-{wanted}"
    if (folder / _COMPLETE).exists():
        return folder
    progress(f"installing {package} {wanted}", 0, None)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    _into(python, partial, f"{package}=={wanted}")
    if python == sys.executable:
        for requirement in _unmet(partial):
            _into(python, partial, requirement)
    (partial / _COMPLETE).touch()
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
    return folder


_COMPLETE = ".complete"


def _into(python: str, folder: Path, requirement: str) -> None:
    pip("install", "--no-deps", "--target", str(folder), requirement, python=python)


_WITH_TORCH = ("torch", "torchvision", "torchaudio")
"""Compiled against one version of torch: another one of these breaks what is there."""


def _unmet(folder: Path) -> list[str]:
    """What the packages in an overlay need and do not find in the running environment."""
    there = {canonicalize_name(d.name): d.version for d in reversed(list(distributions()))}
    wanted: list[str] = []
    for line in [
        line for d in Distribution.discover(path=[str(folder)]) for line in d.requires or ()
    ]:
        need = Requirement(line)
        if need.name in _WITH_TORCH or (need.marker and not need.marker.evaluate({"extra": ""})):
            continue
        have = there.get(canonicalize_name(need.name))
        if have is None or not need.specifier.contains(have, prereleases=True):
            wanted.append(f"{need.name}{need.specifier}")
    return wanted


def _old_base(cache: Path, progress: Progress) -> str:
    folder = cache / "bases" / "transformer-lens-2"
    python = folder / "bin" / "python"
    if (folder / _COMPLETE).exists():
        return str(python)
    progress("making the base for transformer-lens 2", 0, None)
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    packages = next((folder / "lib").glob("python*/site-packages"))
    # After its own packages: whatever was installed there wins.
    shared = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    (packages / "zz_shared.pth").write_text("\n".join(shared) + "\n", encoding="utf-8")
    pip("install", *OLD_LENS, python=str(python))
    (folder / _COMPLETE).touch()
    return str(python)
