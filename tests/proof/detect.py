"""Every fault in every tiny model that has what it is about: which channel sees it.

``PYTHONPATH=tests python tests/proof/detect.py``, or ``nox -s detect``, writes the section
on faults of ``claims/PROOF.md``. With ``--family`` or ``--fault`` it prints it instead.
"""

from __future__ import annotations

import csv
import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import torch
from proof.cells import BACKENDS, SETTINGS, Cell, agreeing, cell, false_alarm, refused, sound
from proof.page import table, write_section
from rich.progress import Progress

from residcheck.errors import ResidcheckError
from residcheck.faults import EQUIVALENT, FAULTS, Fault

CHANNELS = ("gate", "snapshot", "claim", "backends")
# Where the tapping libraries are given a changed model, too: every kind of norm and block.
BRIDGED = (
    "gpt2", "neox", "opt", "bloom", "llama", "qwen2", "gemma2", "gemma3", "olmo2", "granite",
    "stablelm", "mixtral",
)  # fmt: skip
Planned = tuple[Fault, str, str, str]


def plan(models: Iterable[str], faults: Iterable[Fault]) -> Iterator[Planned]:
    """Fault, model, backend, and whose fault it is."""
    for model in models:
        for backend in BACKENDS:
            if refused(model, backend):
                continue
            subject = sound(model, backend).subject
            for fault in faults:
                if not fault.applies(subject):
                    continue
                if fault.where == "model":
                    if backend == "transformers":
                        yield fault, model, backend, "model"
                    if model in BRIDGED:
                        yield fault, model, backend, "library"
                else:
                    yield fault, model, backend, fault.where


def run_all(planned: list[Planned], progress: Progress) -> list[Cell]:
    task = progress.add_task("faults", total=len(planned))
    found = []
    for fault, model, backend, by in planned:
        progress.update(task, description=f"{model}: {fault.name}")
        try:
            found.append(cell(fault, model, backend, by))
        except Exception as error:  # the fault itself is broken there, or what it does to a library
            found.append(Cell(fault.name, model, backend, by, error=repr(error)))
        progress.advance(task)
    return found


def section(cells: list[Cell], quiet: list[tuple[str, ...]], models: list[str]) -> str:
    versions = ", ".join(f"{n} {version(n)}" for n in ("torch", "transformers", "transformer-lens"))
    lines = [
        "## Planted faults",
        f"`nox -s detect`, with {versions}: {len({c.fault for c in cells})} faults in "
        f"{len(models)} tiny models of {len({SETTINGS[m][0] for m in models})} families, "
        f"{len(cells)} cells. {_summary(cells)}",
        "A fault is seen by a **gate** (nothing is measured), by a **snapshot** (a curve of the "
        "sound run left its bound), by an exact **claim** (supported before, not now), or by the "
        "other **backend** (a curve left its bound against the sound run there). `signal` is the "
        "largest difference over its bound, of all curves; the smallest over the models is "
        "shown, and where.",
    ]
    for by, heading in _HEADINGS.items():
        rows = list(_rows([c for c in cells if c.by == by]))
        if rows:
            lines += [f"### {heading}", table(_HEADER, rows)]
    return "\n\n".join([*lines, *_unseen(cells), *_alarms(quiet), *_disagreements(models)])


_HEADER = ("fault", "what", "cells", *CHANNELS, "unseen", "smallest signal", "in")
_HEADINGS = {
    "model": "Of the model library (the reference has them, too)",
    "library": "Of the library that taps (after the reference was taken)",
    "taps": "Of taps",
}


def _summary(cells: list[Cell]) -> str:
    counts = Counter(channel for c in cells for channel in c.channels)
    seen = sum(bool(c.channels) for c in cells)
    still = sum(not c.channels and not c.changes_something for c in cells)
    by_channel = ", ".join(f"{channel} {counts[channel]}" for channel in CHANNELS)
    return (
        f"Seen: {seen} ({by_channel}; several may see the same). Not seen, and moving no output "
        f"by more than the float32 rounding of that model: {still}. "
        f"**Missed: {len(cells) - seen - still}.**"
    )


def _rows(cells: list[Cell]) -> Iterator[tuple[object, ...]]:
    for name in dict.fromkeys(c.fault for c in cells):
        own = [c for c in cells if c.fault == name]
        counts = Counter(channel for c in own for channel in c.channels)
        unseen = sum(not c.channels for c in own)
        measured = [c for c in own if not math.isnan(c.signal) and c.channels]
        weakest = min(measured, key=lambda c: c.signal, default=None)
        where = "" if weakest is None else f"{weakest.model}: {weakest.curve}"
        signal = "" if weakest is None else _times(weakest.signal)
        numbers = (counts[channel] or "" for channel in CHANNELS)
        yield (name, FAULTS[name].what, len(own), *numbers, unseen or "", signal, where)


def _times(ratio: float) -> str:
    return "∞" if math.isinf(ratio) else f"{ratio:.3g}"


def _unseen(cells: list[Cell]) -> Iterator[str]:
    unseen = [c for c in cells if not c.channels]
    yield "### Not seen"
    yield (
        "Largest changes of the log-probabilities (of their spread) and of any site (of its norm), "
        "left-padded prompts included; rounding is the distance of the sound model's outputs "
        "from its own in float64 (of experts: with rows run one by one)."
    )
    header = ("fault", "by", "backend", "models", "logits", "sites", "rounding", "signal", "why")
    yield table(header, [_together(group) for group in _alike(unseen)])


def _why(c: Cell) -> str:
    if c.effect is None:
        return f"**error**: {c.error}"
    if not c.effect.largest:
        return "nothing changed: that part is not run here"
    return "**missed**" if c.changes_something else "below rounding"


def _alike(unseen: list[Cell]) -> list[list[Cell]]:
    """Cells of one fault, planted by the same hand, that went unseen for the same reason."""
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for c in unseen:
        groups.setdefault((c.fault, c.by, c.backend, _why(c)), []).append(c)
    return list(groups.values())


def _together(group: list[Cell]) -> tuple[object, ...]:
    first, effects = group[0], [c.effect for c in group if c.effect is not None]
    sizes = (
        max((effect.logits for effect in effects), default=math.nan),
        max((effect.site for effect in effects), default=math.nan),
        min(c.noise for c in group),
    )
    models = ", ".join(c.model for c in group)
    signal = max(c.signal for c in group)
    numbers = (*(f"{size:.1e}" for size in sizes), f"{signal:.2g}")
    return (first.fault, first.by, first.backend, models, *numbers, _why(first))


def _alarms(quiet: list[tuple[str, ...]]) -> Iterator[str]:
    yield "### Changes that change nothing"
    yield table(("change", "models", "alarms", "largest difference over its bound", "in"), quiet)


def _disagreements(models: list[str]) -> Iterator[str]:
    yield "### Sound models on which the backends disagree"
    rows = []
    for model in models:
        if any(refused(model, backend) for backend in BACKENDS):
            continue
        one = sound(model, BACKENDS[0]).documents.keys() & sound(model, BACKENDS[1]).documents
        apart = sorted(one - set(agreeing(model)))
        if apart:
            rows.append((model, len(apart), ", ".join(apart[:6]) + (" …" if apart[6:] else "")))
    yield table(("model", "curves", "which"), rows)


def equivalents(models: list[str], progress: Progress) -> list[tuple[str, ...]]:
    """A row for each change that must not be noticed."""
    rows = []
    task = progress.add_task("changes that change nothing", total=len(EQUIVALENT) * len(models))
    for change in EQUIVALENT.values():
        count, alarms, worst, where = 0, 0, 0.0, ""
        for model in models:
            progress.advance(task)
            if refused(model, "transformers"):
                continue
            if not change.applies(sound(model, "transformers").subject):
                continue
            count += 1
            try:
                curve, margin = false_alarm(change, model, "transformers")
            except (ResidcheckError, AssertionError) as error:
                curve, margin = str(error), math.inf
            alarms += margin > 1
            if margin >= worst:
                worst, where = margin, f"{model}: {curve}"
        rows.append(
            (f"{change.name}: {change.what}", str(count), str(alarms), _times(worst), where)
        )
    return rows


def write_cells(cells: list[Cell], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("fault", "model", "backend", "by", "gate", "curve", "signal", "vanished",
                         "claims", "across", "logits", "sites", "noise"))  # fmt: skip
        for c in cells:
            sizes: tuple[Any, ...] = (c.effect.logits, c.effect.site) if c.effect else ("", "")
            lists = (" ".join(c.vanished), " ".join(c.claims))
            head = (c.fault, c.model, c.backend, c.by, c.gate, c.curve, c.signal)
            writer.writerow((*head, *lists, c.across, *sizes, c.noise))


@click.command()
@click.option("--family", "families", multiple=True, type=click.Choice(sorted(SETTINGS)))
@click.option("--fault", "faults", multiple=True, type=click.Choice(sorted(FAULTS)))
@click.option("--full", type=click.Path(path_type=Path), help="Write every cell to this CSV file.")
def main(families: tuple[str, ...], faults: tuple[str, ...], full: Path | None) -> None:
    """Plant every fault in every tiny model, and say who sees it."""
    torch.set_num_threads(1)
    models = [m for m in families or SETTINGS if not all(refused(m, b) for b in BACKENDS)]
    chosen = [FAULTS[name] for name in faults or FAULTS]
    with Progress() as progress:
        cells = run_all(list(plan(models, chosen)), progress)
        quiet = equivalents(models, progress)
    text = section(cells, quiet, models)
    if full:
        write_cells(cells, full)
    if families or faults:
        click.echo(text)
    else:
        write_section("faults", text)
        click.echo(_summary(cells))
    sys.exit(any(not c.channels and c.changes_something for c in cells))


if __name__ == "__main__":
    main()
