"""The command: run the matrix, judge it, write the pages."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import click

from residcheck.cli_options import stop
from residcheck.errors import ExitStatus, ResidcheckError, UsageError
from residcheck.progress import Progress

if TYPE_CHECKING:
    from residcheck.regress.cells import Library
    from residcheck.regress.matrix import Matrix
    from residcheck.regress.page import Shown
    from residcheck.regress.table import Table


@click.command(context_settings={"max_content_width": 100})
@click.option("--only", multiple=True, metavar="MODEL", help="A model of the zoo; repeatable.")
@click.option(
    "--versions",
    multiple=True,
    metavar="LIBRARY=V,V",
    help="Versions of bridge, hooked or transformers, in the place of the default ones; "
    "libraries that are not named are left out then.",
)
@click.option("--cache", type=click.Path(path_type=Path), help="Where environments and cells are.")
@click.option("--limit", default=120.0, show_default=True, help="Seconds for a cell.")
@click.option("--jobs", type=click.IntRange(1), help="Versions at a time.  [default: the cores]")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the page as Markdown.")
@click.option("--html", type=click.Path(path_type=Path), help="Write the page as HTML.")
@click.option("--scripts", type=click.Path(path_type=Path), help="Write reproductions there.")
@click.option("--run-scripts/--no-run-scripts", default=True, help="Run those of the newest.")
def main(
    only: tuple[str, ...],
    versions: tuple[str, ...],
    cache: Path | None,
    limit: float,
    jobs: int | None,
    markdown: Path | None,
    html: Path | None,
    scripts: Path | None,
    run_scripts: bool,
) -> None:
    """Find what released model libraries get wrong: models of the zoo x versions.

    What is finished is kept in the cache: stop with ctrl-C and go on later. Exit status:
    0 nothing found in the newest versions, 1 something was, 2 wrong usage, 3 could not run.
    """
    from residcheck.console import progress_bars
    from residcheck.output import prepare

    try:
        prepare(markdown, html)
        with progress_bars() as progress:
            found = _run(only, versions, cache, limit, jobs, progress)
            files = (markdown, html, scripts)
            written = _write(*found, files, run_scripts, progress)
    except ResidcheckError as error:
        stop(error)
    except KeyboardInterrupt:
        click.echo("interrupted; what was finished is kept", err=True)
        sys.exit(ExitStatus.INTERRUPTED)
    sys.exit(ExitStatus.REFUTED_OR_DRIFTED if written else ExitStatus.OK)


def _run(
    only: Sequence[str],
    versions: Sequence[str],
    cache: Path | None,
    limit: float,
    jobs: int | None,
    progress: Progress,
) -> tuple[Matrix, Table, float]:
    from residcheck.models.cache import home
    from residcheck.regress.matrix import Matrix, chosen_models, default_versions
    from residcheck.regress.table import tabulate

    chosen = parse_versions(versions) if versions else default_versions()
    matrix = Matrix(chosen, chosen_models(only), cache or home() / "regress")
    matrix.run(limit, progress, jobs or len(os.sched_getaffinity(0)))
    return matrix, tabulate(matrix, progress), matrix.seconds()


def parse_versions(given: Sequence[str]) -> dict[Library, list[str]]:
    """``bridge=4.2.0,4.3.0`` as a mapping.

    Raises:
        UsageError: another library, or no version.
    """
    from packaging.version import InvalidVersion, Version

    from residcheck.regress.cells import LIBRARIES

    found: dict[Library, list[str]] = {}
    for text in given:
        name, _, listed = text.partition("=")
        library = next((known for known in LIBRARIES if known == name), None)
        if library is None or not listed:
            raise UsageError(
                f"--versions {text!r} is not LIBRARY=VERSION,...",
                f"libraries: {', '.join(LIBRARIES)}",
            )
        try:
            found[library] = [str(v) for v in sorted(map(Version, listed.split(",")))]
        except InvalidVersion as error:
            raise UsageError(f"--versions {text!r}: {error}") from error
    return found


def _write(
    matrix: Matrix,
    table: Table,
    seconds: float,
    files: tuple[Path | None, Path | None, Path | None],
    run_scripts: bool,
    progress: Progress,
) -> int:
    """Write what was asked for; returns the number of findings in the newest versions."""
    markdown, html, scripts = files
    from residcheck.files import write_text
    from residcheck.regress.page import render_html, render_markdown

    shown = reproduced(matrix, table, run_scripts, progress)
    names = ("torch", "transformers", "transformer-lens", "numpy")
    beside = {name: version(name) for name in names}
    if markdown is not None:
        write_text(markdown, render_markdown(table, shown, beside, seconds))
    if html is not None:
        write_text(html, render_html(table, shown, beside, seconds))
    if scripts is not None:
        scripts.mkdir(parents=True, exist_ok=True)
        for one in shown:
            if one.script:
                name = "".join(c if c.isalnum() or c in ".-" else "_" for c in one.finding.key)
                write_text(scripts / f"{name[:120]}.py", one.script)
    _summary(table, seconds)
    return sum(one.finding.newest for one in shown)


def reproduced(matrix: Matrix, table: Table, run_scripts: bool, progress: Progress) -> list[Shown]:
    """Findings with their scripts; those of the newest versions are run."""
    from residcheck.regress.page import Shown
    from residcheck.regress.reproduce import script, show

    shown: list[Shown] = []
    for done, finding in enumerate(table.findings):
        progress("reproductions", done, len(table.findings))
        environment = matrix.environment(finding.library, finding.span.last)
        source = script(finding, matrix.transformers_of(finding.library, finding.span.last))
        printed = show(source, environment) if run_scripts and finding.newest else ""
        shown.append(Shown(finding, source, printed))
    return shown


def _summary(table: Table, seconds: float) -> None:
    from rich.console import Console
    from rich.markup import escape

    from residcheck.regress.page import cells_of

    console = Console(highlight=False)
    counts = ", ".join(f"{n} {name}" for name, n in table.counts().items())
    console.print(f"{len(table.cells)} cells, {seconds:,.0f} s of one core: {counts}")
    newest = [finding for finding in table.findings if finding.newest]
    console.print(f"{len(table.findings)} findings, {len(newest)} of them in the newest versions")
    for finding in newest:
        library, quantity, _, _, _, models, *_ = cells_of(finding)
        console.print(escape(f"  {library} {finding.span.last}: {quantity}, {models}"))
