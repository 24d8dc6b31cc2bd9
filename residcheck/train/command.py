"""The command: which runs, where, and how many at a time."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from residcheck.cli_options import stop
from residcheck.errors import ExitStatus, ResidcheckError, UsageError

if TYPE_CHECKING:
    from residcheck.train.runs import Run
    from residcheck.train.scales import Scale


@click.command(context_settings={"max_content_width": 100})
@click.option("--scale", "scale_name", default="small", show_default=True, metavar="NAME",
              help="How large and how long: small for two cores, full for a GPU.")  # fmt: skip
@click.option("--arms", default="", metavar="ARM,...", help="Which ones.  [default: all]")
@click.option(
    "--seeds", metavar="N,...", help="One run of each arm for each.  [default: 0,1; 0,1,2 on a GPU]"
)
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True,
              help="Runs side by side, which share out the cores.")  # fmt: skip
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
              help="Folder of corpus and runs; what is finished there is kept.")  # fmt: skip
@click.option("--list", "listing", is_flag=True, help="Show arms and scales, and end.")
def main(
    scale_name: str, arms: str, seeds: str | None, jobs: int, out: Path | None, listing: bool
) -> None:
    """Train small matched GPT-2s that differ in one thing each.

    The text is the standard library of this Python. Runs of one seed start from the same
    weights and see the same batches. DIR gets a folder for each run: its history, with the
    growth of the stream as it trains, its provenance, and the trained model.

    Stopped with ctrl-C or killed, the same command goes on where it was, bit for bit. Exit
    status: 0 all trained, 2 wrong usage, 3 some could not be trained, 130 interrupted.
    """
    try:
        sys.exit(_list() if listing else _train(scale_name, arms, seeds, jobs, out))
    except ResidcheckError as error:
        stop(error)
    except KeyboardInterrupt:
        click.echo("interrupted: the same command goes on from the last step", err=True)
        sys.exit(ExitStatus.INTERRUPTED)


def _list() -> ExitStatus:
    from residcheck.train.arms import read_arms
    from residcheck.train.scales import read_scales
    from residcheck.train.show import show_arms

    show_arms([*read_arms().values()], [*read_scales().values()])
    return ExitStatus.OK


def _train(
    scale_name: str, arms: str, seeds: str | None, jobs: int, out: Path | None
) -> ExitStatus:
    from residcheck.train.arms import chosen
    from residcheck.train.corpus import prepare
    from residcheck.train.jobs import train_all
    from residcheck.train.runs import CORPUS, ordered, write_run
    from residcheck.train.show import Course

    if out is None:
        raise UsageError("no folder for the runs", "give one with --out DIR")
    scale = _scale(scale_name)
    wanted = chosen([name for name in arms.split(",") if name])
    runs = ordered(out.absolute(), scale, wanted, _seeds(seeds, scale), _threads(jobs))
    corpus = prepare(out.absolute() / CORPUS, scale.vocabulary).facts
    click.echo(f"{corpus.training_tokens:,} tokens of Python {corpus.python}'s library, "
               f"{corpus.held_out_tokens:,} held out", err=True)  # fmt: skip
    # A run goes on with the threads that it began with.
    begun: list[Run] = [write_run(run) for run in runs]
    todo = [run for run in begun if not run.finished]
    click.echo(f"{len(runs)} runs, {len(runs) - len(todo)} finished before", err=True)
    with Course(len(runs), len(runs) - len(todo)) as course:
        failed = train_all(todo, jobs, course)
    return ExitStatus.COULD_NOT_MEASURE if failed else ExitStatus.OK


def _scale(name: str) -> Scale:
    from residcheck.models import check_device
    from residcheck.train.scales import read_scales

    scales = read_scales()
    if name not in scales:
        raise UsageError(f"there is no scale {name!r}", f"scales: {', '.join(scales)}")
    check_device(scales[name].device)
    return scales[name]


def _seeds(given: str | None, scale: Scale) -> list[int]:
    """Numbers without repetition, in their order."""
    try:
        usual = "0,1,2" if scale.device == "cuda" else "0,1"
        seeds = [int(number) for number in (given or usual).split(",")]
    except ValueError:
        raise UsageError(f"--seeds {given!r} is not a list of numbers", "such as 0,1") from None
    if min(seeds) < 0:
        raise UsageError(f"--seeds {given!r}: seeds are not negative")
    return list(dict.fromkeys(seeds))


def _threads(jobs: int) -> int:
    """The cores shared out: processes that each take all of them slow each other down."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // jobs)
