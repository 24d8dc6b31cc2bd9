"""The command ``residcheck sweep``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from residcheck.cli_options import measuring
from residcheck.errors import ExitStatus, UsageError

if TYPE_CHECKING:
    from residcheck.sweep.listing import Listed
    from residcheck.sweep.plan import Settings
    from residcheck.sweep.runner import Place
    from residcheck.sweep.store import Entry

_EPILOG = (
    "Exit status: 0 nothing refuted or drifted, 1 something was, 2 wrong usage, "
    "3 some model could not be measured."
)


@click.command(epilog=_EPILOG)
@click.argument("models", metavar="MODELS.txt",
                type=click.Path(dir_okay=False, allow_dash=True, path_type=Path))  # fmt: skip
@click.option("--out", metavar="DIR", required=True,
              type=click.Path(file_okay=False, path_type=Path),
              help="Folder of the results; what is finished there is kept.")  # fmt: skip
@measuring
@click.option("--snapshots", metavar="DIR", type=click.Path(file_okay=False, path_type=Path),
              help="Folder of snapshots (default: ./snapshots, then those shipped).")  # fmt: skip
@click.option("--jobs", metavar="N", type=click.IntRange(min=1),
              help="Models at a time (default: 1, or on cuda the number of GPUs).")  # fmt: skip
@click.option("--time-limit", metavar="MINUTES", type=click.FloatRange(min=0, min_open=True),
              default=720.0, show_default=True,
              help="For one model; what takes longer fails.")  # fmt: skip
@click.option("--cluster", type=click.Choice(["slurm", "local"]),
              help="Measure in jobs of SLURM, or of submitit on this machine.")  # fmt: skip
@click.option("--slurm-option", "slurm", metavar="KEY=VALUE", multiple=True,
              help="Of each job: partition=gpu, time=60, mem_gb=32, ...; repeatable.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
def sweep(
    models: Path,
    out: Path,
    snapshots: Path | None,
    jobs: int | None,
    time_limit: float,
    cluster: str | None,
    slurm: tuple[str, ...],
    dry_run: bool,
    **options: Any,
) -> None:
    """Verify every model of a list, each in a process of its own.

    MODELS.txt has one model a line, as verify takes them (- is standard input); # begins a
    comment. A model that crashes, hangs or runs out of memory harms no other. Started again,
    with the same list or another one, a sweep goes on: what is finished is kept, what
    failed is tried again, and what is asked for otherwise than before (options, prompts,
    files of a model) is measured anew. Several sweeps may share a folder.

    DIR gets report.html, summary.md and results.json about all models of the list, and a
    folder for each model, with its run file, verdicts and log; of more than twelve models each
    folder also gets a page with that model's plots, which report.html links to.
    """
    from residcheck.corpus import read_prompts
    from residcheck.sweep.plan import Settings, entries

    if slurm and cluster is None:
        raise UsageError("--slurm-option needs --cluster", "add --cluster slurm")
    listed = _listed(models, options)
    settings = Settings(
        out.absolute(),
        read_prompts(options["prompts"]),
        options["max_tokens"],
        options["batch_size"],
        None if snapshots is None else snapshots.absolute(),
    )
    planned = entries(listed, settings)
    if dry_run:
        _show_plan(planned, _where(planned, cluster, slurm, jobs))
        return
    place = _place(planned, settings, cluster, slurm, jobs, time_limit * 60)
    try:
        _run(planned, settings, place)
    except KeyboardInterrupt:
        _conclude(planned, settings)
        click.echo("interrupted: what is finished is kept; the same command goes on", err=True)
        sys.exit(ExitStatus.INTERRUPTED)
    sys.exit(_conclude(planned, settings))


def _listed(models: Path, options: dict[str, Any]) -> list[Listed]:
    from residcheck.sweep.listing import read_list

    flags = {key: options[key] for key in ("device", "dtype", "backend", "processing")}
    try:
        with click.open_file(str(models), encoding="utf-8-sig") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"cannot read the list {models}: {reason}") from error
    listed = read_list(text, str(models), flags)
    for one in listed:
        for line in one.repeated:
            click.echo(f"line {line} repeats line {one.line}: {one.text}", err=True)
    return listed


def _gpus(planned: Sequence[Entry]) -> list[str]:
    """Those that may be used, where a model is to run on one."""
    if not any(entry.spec.device == "cuda" for entry in planned):
        return []
    import torch

    from residcheck.models import check_device
    from residcheck.sweep.gpus import visible

    check_device("cuda")
    return visible(os.environ, torch.cuda.device_count())


def _place(
    planned: Sequence[Entry],
    settings: Settings,
    cluster: str | None,
    slurm: Sequence[str],
    jobs: int | None,
    limit: float,
) -> Place:
    from residcheck.sweep.gpus import slots
    from residcheck.sweep.runner import Here

    devices = [entry.spec.device for entry in planned]
    if cluster is None:
        return Here(slots(jobs, devices, _gpus(planned)), limit)
    from residcheck.sweep.cluster import Jobs, read_options

    given = read_options(slurm)
    if any(device.startswith("cuda") for device in devices):
        given = {"gpus_per_node": 1, **given}
    return Jobs("slurm" if cluster == "slurm" else "local", settings.out / "cluster", limit,
                given, jobs)  # fmt: skip


def _where(
    planned: Sequence[Entry], cluster: str | None, slurm: Sequence[str], jobs: int | None
) -> str:
    """Where a sweep would measure, in words."""
    from residcheck.sweep.gpus import slots

    if cluster is not None:
        given = f" ({', '.join(slurm)})" if slurm else ""
        return f"in jobs of {cluster}{given}"
    found = slots(jobs, [entry.spec.device for entry in planned], _gpus(planned))
    gpus = dict.fromkeys(slot.gpu for slot in found if slot.gpu is not None)
    on = f", each on one of the GPUs {', '.join(gpus)}" if gpus else ""
    return f"on this machine, {len(found)} at a time{on}"


def _show_plan(planned: Sequence[Entry], where: str) -> None:
    from residcheck.sweep.estimate import estimates
    from residcheck.sweep.show import show_plan

    show_plan(planned, estimates([entry.spec for entry in planned]), where)


def _run(planned: Sequence[Entry], settings: Settings, place: Place) -> None:
    from residcheck.output import prepare
    from residcheck.report.outline import count
    from residcheck.sweep.outcome import REPORT
    from residcheck.sweep.plan import prepare as prepare_jobs
    from residcheck.sweep.runner import run
    from residcheck.sweep.show import Course

    prepare(settings.out / REPORT)
    unfinished = [entry for entry in planned if not entry.finished]
    again = sum(entry.state == "failed before" for entry in unfinished)
    finished = len(planned) - len(unfinished)
    said = [count(len(planned), "model"), f"{finished} finished before"]
    said += [f"{again} failed before and tried again"] if again else []
    click.echo(", ".join(said), err=True)
    prepare_jobs(unfinished, settings)
    with Course(planned, finished) as course:
        run(unfinished, place, course)


def _conclude(planned: Sequence[Entry], settings: Settings) -> ExitStatus:
    """Judge and write what there is."""
    from residcheck.console import progress_bars
    from residcheck.sweep.outcome import gather, write
    from residcheck.sweep.show import show_outcome

    with progress_bars() as progress:
        outcome = gather(planned, settings.snapshots, progress)
        written = write(outcome, settings.out, progress)
    show_outcome(outcome)
    for path in written:
        click.echo(f"written: {path}")
    return outcome.status
