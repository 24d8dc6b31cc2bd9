"""The command ``residcheck controls``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from residcheck.cli_options import FILE
from residcheck.errors import ExitStatus, UsageError

_EPILOG = (
    "Exit status: 0 nothing refuted that is not on record, 1 something was, 2 wrong usage, "
    "3 a file cannot be read."
)


@click.command(epilog=_EPILOG)
@click.argument("zoo", required=False, type=click.Path(path_type=Path))
@click.option("--json", "json_file", metavar="FILE", type=FILE, help="Write all numbers as JSON.")
@click.option("--markdown", metavar="FILE.md", type=FILE,
              help="Write a page; its plots go into a folder beside it.")  # fmt: skip
@click.option("--snapshots", metavar="DIR", type=click.Path(file_okay=False, path_type=Path),
              help="Folder of snapshots (default: ./snapshots, then those shipped).")  # fmt: skip
def controls(
    zoo: Path | None, json_file: Path | None, markdown: Path | None, snapshots: Path | None
) -> None:
    """Compare trained controls, and answer the claims about training (family H).

    ZOO is a folder that python -m residcheck.train has written, or is writing: runs that are
    not finished are left out. Without ZOO, the runs that come with residcheck.
    """
    from residcheck.controls import Comparison, read_zoo
    from residcheck.controls.page import write_page
    from residcheck.controls.show import document, show
    from residcheck.files import write_text
    from residcheck.intervention import all_interventions
    from residcheck.judging import DEFAULT_SNAPSHOTS, judge_controls
    from residcheck.output import prepare

    prepare(json_file, markdown)
    found = Comparison.of(read_zoo(zoo or _shipped()))
    folder = snapshots or DEFAULT_SNAPSHOTS
    judged = [judge_controls(one, found, folder) for one in all_interventions()]
    show(found, judged)
    if json_file is not None:
        write_text(json_file, document(found, judged))
        click.echo(f"written: {json_file}")
    if markdown is not None:
        for path in write_page(found, judged, markdown):
            click.echo(f"written: {path}")
    failed = any(one.fails for one in judged)
    sys.exit(ExitStatus.REFUTED_OR_DRIFTED if failed else ExitStatus.OK)


def _shipped() -> Path:
    from residcheck.controls import shipped

    found = shipped()
    if not found:
        raise UsageError(
            "no trained controls come with this version",
            "name a folder of your own: python -m residcheck.train --out ZOO",
        )
    return found[0]
