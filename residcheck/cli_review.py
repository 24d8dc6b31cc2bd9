"""The command ``residcheck review``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from residcheck.cli_options import FILE, interruptible, is_run_file, measured, measuring, specs
from residcheck.errors import ExitStatus, UsageError

if TYPE_CHECKING:
    from residcheck.curves import Run
    from residcheck.reviewing import Answer, Proposal

_EPILOG = (
    "Exit status: 0 nothing is left that differs, 1 something was rejected, left open or "
    "listed as drifted, 2 wrong usage, 3 could not measure."
)


@click.command(epilog=_EPILOG)
@click.argument("target", metavar="RUN.json|MODEL")
@click.option("--list", "only_list", is_flag=True, help="Say what changed; ask and write nothing.")
@click.option("--report", metavar="FILE.html", type=FILE,
              help="Write a page with stored and new curves overlaid.")  # fmt: skip
@click.option("--snapshots", metavar="DIR", type=click.Path(file_okay=False, path_type=Path),
              help="Folder of snapshots to write (default: ./snapshots).")  # fmt: skip
@measuring
@interruptible
def review(
    target: str, only_list: bool, report: Path | None, snapshots: Path | None, **options: Any
) -> None:
    """Look at each curve that left its snapshot; accept or reject the change.

    What is accepted is written into the folder of snapshots at once, with its provenance;
    nothing else is. A skipped change is asked of once more at the end. Where the variable
    CI is set, and without a terminal, only --list works.
    """
    from residcheck.console import terminal
    from residcheck.console_changes import show_proposal
    from residcheck.judging import DEFAULT_SNAPSHOTS
    from residcheck.output import prepare
    from residcheck.reviewing import Kind, proposals, refuse_to_write
    from residcheck.reviewing import review as review_all

    if not only_list:
        refuse_to_write()
        if not interactive():
            raise UsageError(
                "a review asks questions, and there is no terminal to answer them",
                "--list shows what changed without asking",
            )
    prepare(report)
    run = _run(target, options)
    folder = snapshots or DEFAULT_SNAPSHOTS
    changes = proposals(run, folder)
    if report is not None:
        _write_page(run, changes, report)
    if not changes:
        click.echo(f"{run.model.id}: every curve is as stored")
        return
    console = terminal()
    if only_list:
        for change in changes:
            show_proposal(console, change)
        left = [change for change in changes if change.kind in (Kind.DRIFTED, Kind.LOST)]
        click.echo(f"{len(left)} left their snapshots, {len(changes)} to review")
        sys.exit(ExitStatus.REFUTED_OR_DRIFTED if left else ExitStatus.OK)

    def asked(change: Proposal) -> Answer:
        show_proposal(console, change)
        return _answer()

    outcome = review_all(run, changes, folder, asked, lambda path: click.echo(f"written: {path}"))
    click.echo(
        f"{len(outcome.accepted)} accepted, {len(outcome.rejected)} rejected, "
        f"{len(outcome.left)} left open"
    )
    sys.exit(ExitStatus.OK if outcome.done else ExitStatus.REFUTED_OR_DRIFTED)


def interactive() -> bool:
    """Whether a person can answer."""
    return sys.stdin.isatty()


def _answer() -> Answer:
    from residcheck.reviewing import Answer

    letters = {answer.value[0]: answer for answer in Answer}
    try:
        said = click.prompt("  [a]ccept, [r]eject, [s]kip or [q]uit",
                            type=click.Choice(list(letters)), show_choices=False)  # fmt: skip
    except click.Abort:
        raise KeyboardInterrupt from None
    return letters[str(said)]


def _run(target: str, options: dict[str, Any]) -> Run:
    from residcheck.corpus import read_prompts
    from residcheck.curves import load_run
    from residcheck.measure import HorizonOptions

    if is_run_file(target):
        return load_run(Path(target))
    spec = specs((target,), options)[0]
    sample = HorizonOptions(sample=options["prompts"] is None)
    return measured(spec, read_prompts(options["prompts"]), options, sample)


def _write_page(run: Run, changes: list[Proposal], path: Path) -> None:
    from residcheck.report import write_page
    from residcheck.report.changes import render
    from residcheck.report.reviewed import page_of

    write_page(render(page_of(run, changes)), path)
    click.echo(f"written: {path}")
