"""How often each decision rule errs, on simulated measurements whose truth is planted.

``python tests/proof/calibrate.py`` writes its section of claims/PROOF.md; with ``--rule``
only some rules are measured, with the same numbers, and the table is printed.
"""

from __future__ import annotations

import csv
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from itertools import chain
from multiprocessing import get_context
from pathlib import Path

import click
from proof.page import PAGE, write_section
from proof.rules_cases import BOUNDARY, CASES, TRUE, USUAL, Case
from proof.rules_cells import Cell, applies, quickly, simulate
from proof.rules_page import Row, every_cell, section
from rich.progress import Progress

from residcheck.stats import Outcome

REPETITIONS = 100
SLOWER = 3
FOUND = 0.8


@click.command()
@click.option("--repetitions", default=REPETITIONS, show_default=True, help="Of every cell.")
@click.option("--seed", default=0, show_default=True)
@click.option("--rule", "rules", multiple=True, help="Only rules of this name; may be repeated.")
@click.option("--jobs", default=os.cpu_count() or 1, show_default=True, help="Processes.")
@click.option("--full", type=click.Path(path_type=Path), help="A CSV file for all cells.")
@click.option("--page", type=click.Path(path_type=Path), help="Another page than PROOF.md.")
def main(
    repetitions: int,
    seed: int,
    rules: tuple[str, ...],
    jobs: int,
    full: Path | None,
    page: Path | None,
) -> None:
    """Measure the error rates of the decision rules."""
    cases = [case for case in CASES if not rules or case.claim in rules or case.name in rules]
    if not cases:
        raise click.BadParameter("no such rule", param_hint="--rule")
    rows = measure(cases, repetitions, seed, jobs)
    text = section(rows, repetitions, seed, covered_of(repetitions))
    if full is not None:
        with full.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(every_cell(rows))
    if rules and page is None:
        click.echo(text)
    else:
        write_section("rules", text, page or PAGE)


def measure(cases: list[Case], repetitions: int, seed: int, jobs: int) -> list[Row]:
    """The rows of these cases, with a bar that shows how far it is."""
    with ProcessPoolExecutor(jobs, get_context("spawn"), _begin) as pool, Progress() as progress:
        power, cells = {}, {}
        for case in cases:
            times = repetitions // SLOWER if case.slow else repetitions
            power[case.name] = pool.submit(smallest, case, times, seed)
            for truth in case.planted:
                cells[case.name, truth] = [
                    pool.submit(simulate, cell, times, seed, covered_of(times))
                    for cell in cells_of(case, truth)
                ]
        every = [*power.values(), *chain.from_iterable(cells.values())]
        for done in progress.track(as_completed(every), total=len(every), description="cells"):
            done.result()  # an error ends it at once
    return [
        Row(
            case,
            truth,
            tuple(cell.result() for cell in cells[case.name, truth]),
            power[case.name].result() if truth == TRUE else "",
        )
        for case in cases
        for truth in case.planted
    ]


def _begin() -> None:
    """Of a worker process: for as long as it lives."""
    ExitStack().enter_context(quickly())


def covered_of(repetitions: int) -> int:
    """Repetitions of which intervals are held against the population: that takes a second
    judgement, so half of them."""
    return max(1, repetitions // 2)


def cells_of(case: Case, truth: str) -> list[Cell]:
    """The cells of one truth, of the sizes that the claim is decided on."""
    effect = case.planted[truth]
    sizes = [size for size in case.sizes if applies(case, *size)]
    return [Cell(case, truth, effect, *size) for size in sizes]


def smallest(case: Case, repetitions: int, seed: int) -> str:
    """The effect closest to the boundary that is found in four of five, in words."""
    size = USUAL if USUAL in case.sizes else next(s for s in case.sizes if applies(case, *s))
    for effect in case.grid:
        cell = Cell(case, BOUNDARY, effect, *size)
        simulate(cell, max(repetitions // 3, 1), seed, covered=0)
        if cell.share(Outcome.SUPPORTED) >= FOUND:
            return f"{effect:g}"
    return f"none up to {case.grid[-1]:g}" if case.grid else ""


if __name__ == "__main__":
    main()
