"""Jobs from standard input, one process each.

A job is a line (JSON: ``library``, ``folder``, ``out``, ``limit``) and is answered with one line
(``status`` ``ok``, ``timeout`` or ``crash``). The library is imported once, before the first
fork. A job leaves ``OUT.npz`` and then ``OUT.json``, each by one rename: with the second there
it is finished.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch

from .bridge import bridge
from .hooked import hooked
from .plain import plain
from .record import Record, see, write

SCHEMA = "residcheck.witness/1"
LIBRARIES = {"bridge": bridge, "hooked": hooked, "transformers": plain}
# Imported before the first fork. The modeling files pull in what transformers imports late.
MODELING = ("transformers.models.gpt2.modeling_gpt2", "transformers.models.llama.modeling_llama")
MODULES = {
    "bridge": ("transformer_lens", "transformer_lens.model_bridge", *MODELING),
    "hooked": ("transformer_lens", *MODELING),
    "transformers": ("residcheck.backends.plain", "residcheck.measure.gate", *MODELING),
}


def versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": sys.version.split()[0]}
    for name in ("torch", "transformers", "transformer-lens", "numpy", "tokenizers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def child(job: dict[str, Any]) -> None:
    started, record = time.monotonic(), Record()
    facts = see(record, job["library"], LIBRARIES[job["library"]], job["folder"])
    facts |= {"status": "ok", "schema": SCHEMA, "library": job["library"], "versions": versions()}
    facts["seconds"] = round(time.monotonic() - started, 2)
    write(record, facts, Path(job["out"]))


def fork(job: dict[str, Any]) -> str:
    """Run a job in a process of its own; killed at its limit."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            child(job)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    end = time.monotonic() + float(job["limit"])
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return "ok" if code == 0 else f"crash: exit status {code}"
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return f"timeout: killed after {job['limit']} s"


def serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print
    imported: dict[str, str] = {}
    for line in sys.stdin:
        job = json.loads(line)
        library = job["library"]
        if library not in imported:
            imported[library] = _import(library)
        status = imported[library] or fork(job)
        answers.write(json.dumps({"status": status, "versions": versions()}) + "\n")
        answers.flush()


def _import(library: str) -> str:
    """Why a library cannot be imported; empty if it can."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        for module in MODULES[library]:
            importlib.import_module(module)
        if library == "hooked":
            importlib.import_module("transformer_lens").HookedTransformer  # noqa: B018
    except Exception as error:
        text = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        return f"cannot import: {text[:300]}"
    return ""
