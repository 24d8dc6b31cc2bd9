"""Planted defects: what TransformerLens' own verification says of each, and what the judge says.

``python -m residcheck.regress.planted``
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from residcheck.regress import plants
from residcheck.regress.cells import Seen, read
from residcheck.regress.environments import LENS, Environment
from residcheck.regress.findings import roots
from residcheck.regress.judge import judge
from residcheck.regress.matrix import LIMIT, Matrix
from residcheck.regress.runner import Server
from residcheck.regress.table import in_words

MODEL = "gpt2"
TEXT = "float32/raw/text"
_BENCHMARK = 900.0


@dataclass(frozen=True)
class Row:
    """One defect: how many of the library's own checks passed, and what the judge found."""

    plant: str
    what: str
    passed: int
    checks: int
    found: tuple[str, ...]


def side_by_side(version: str, cache: Path, names: tuple[str, ...] = ()) -> list[Row]:
    """A row per defect, the sound library (``none``) first.

    Raises:
        ResidcheckError: an environment or a reference cannot be made.
    """
    matrix = Matrix({"bridge": [version], "transformers": []}, (MODEL,), cache)
    matrix.run()
    environment = matrix.environment("bridge", version)
    folder, _ = matrix.model(MODEL)
    sound = _witnessed("none", environment, folder, cache)
    reference = matrix.reference(MODEL)
    rows = []
    for name in names or tuple(plants.PLANTS):
        seen = sound if name == "none" else _witnessed(name, environment, folder, cache)
        passed, checks = _benchmark(name, environment, folder)
        found = tuple(_found(seen, sound, reference))
        rows.append(Row(name, plants.PLANTS[name][0], passed, checks, found))
    return rows


def _witnessed(name: str, environment: Environment, folder: Path, cache: Path) -> Seen:
    out = cache / "planted" / name
    out.parent.mkdir(parents=True, exist_ok=True)
    log = out.parent / "witness.log"
    server = Server(environment, log, Path(plants.__file__), (name, "witness"))
    try:
        job = {"library": "bridge", "folder": str(folder), "out": str(out), "limit": LIMIT}
        status = server.ask(job)
    finally:
        server.close()
    return read(out) if status == "ok" else Seen(status)


def _found(seen: Seen, sound: Seen, reference: Seen) -> list[str]:
    found = []
    for processing in ("raw", "processed"):
        for one in roots(judge(seen, reference, "bridge", processing)):
            found.append(f"{in_words(one)} ({processing})")
    if not _same_text(seen, sound):
        found.append("different: the tokens of a text, against the neighbouring version")
    return found


def _same_text(seen: Seen, sound: Seen) -> bool:
    one: Any = seen.get(TEXT)
    return one is not None and np.array_equal(one, sound.get(TEXT))


def _benchmark(name: str, environment: Environment, folder: Path) -> tuple[int, int]:
    """Checks of ``transformer_lens.benchmarks`` that passed, and all of them; 0 of 0 where it
    came to no end."""
    command = [environment.python, "-P", plants.__file__, name, "benchmark", str(folder)]
    try:
        done = subprocess.run(
            command,
            env=environment.variables,
            capture_output=True,
            text=True,
            timeout=_BENCHMARK,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 0, 0
    found = re.search(r"Overall:\s+Total: (\d+) tests\s+Passed: (\d+)/", done.stdout)
    return (int(found[2]), int(found[1])) if found else (0, 0)


def section(rows: list[Row], version: str) -> str:
    """The table in Markdown."""
    from residcheck.report.markdown import plain

    sound = next((row for row in rows if row.plant == "none"), None)
    lines = [
        "## Planted defects",
        f"Planted in transformer-lens {version}, model {MODEL}: "
        "`python -m residcheck.regress.planted`. A defect is caught by the library's own "
        "verification where fewer of its checks pass than without it.",
        "| defect | own verification | caught | residcheck | caught |\n"
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        own = row.passed < sound.passed if sound is not None and row.plant != "none" else False
        found = "; ".join(row.found[:3]) + (f"; {len(row.found) - 3} more" * (len(row.found) > 3))
        cells = [
            row.what,
            f"{row.passed} of {row.checks} pass",
            "yes" if own else "no",
            found or "same",
            "yes" if row.found else "no",
        ]
        lines[-1] += "\n| " + " | ".join(plain(cell) for cell in cells) + " |"
    return "\n\n".join(lines) + "\n"


@click.command()
@click.argument("plants", nargs=-1)
@click.option("--append", type=click.Path(path_type=Path), help="A page to put the table under.")
def main(plants: tuple[str, ...], append: Path | None) -> None:
    """What is found of each of PLANTS, by default all, in the installed transformer-lens."""
    from importlib.metadata import version

    from residcheck.files import write_text
    from residcheck.models.cache import home

    installed = version(LENS)
    table = section(side_by_side(installed, home() / "regress", plants), installed)
    if append is None:
        click.echo(table)
    else:
        write_text(append, append.read_text(encoding="utf-8") + "\n" + table)


if __name__ == "__main__":
    main()
