"""The command ``residcheck compare``."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from residcheck.cli_options import FILE, is_run_file, measuring, specs
from residcheck.errors import UsageError

if TYPE_CHECKING:
    from residcheck.comparison import Compared, How, Side
    from residcheck.curves import Run
    from residcheck.progress import Progress

_EPILOG = (
    "Exit status: 0 all same or noise, 1 something is different or missing, "
    "2 wrong usage or runs that may not be compared, 3 could not measure."
)


@click.command(epilog=_EPILOG)
@click.argument("one", metavar="A")
@click.argument("other", metavar="B")
@click.option("--json", "json_file", metavar="FILE", type=FILE, help="Write the verdicts as JSON.")
@click.option("--markdown", metavar="FILE", type=FILE, help="Write a job summary in Markdown.")
@click.option("--report", metavar="FILE.html", type=FILE,
              help="Write a report with the curves overlaid where they differ.")  # fmt: skip
@click.option("--other-weights", is_flag=True,
              help="Compare although the weights are not the same.")  # fmt: skip
@click.option("--bisect", "versions", metavar="PACKAGE=VERSIONS",
              help="Find the version of a library with which B changes: 3.5.1,3.6.0,3.7.0 or "
              "3.5.1..3.9.0 for all of the package index between two.")  # fmt: skip
@measuring
def compare(
    one: str,
    other: str,
    json_file: Path | None,
    markdown: Path | None,
    report: Path | None,
    versions: str | None,
    **options: Any,
) -> None:
    """Does B give what A gives: every curve, shape and constant, up to rounding?

    A and B are run files of 'residcheck measure' or models (smollm2-135m,backend=transformers),
    which are measured now: on the prompts of the other side where that is a run file. Each
    quantity is the same, noise, different or missing.

    What differs by more than its dtype's tolerance is measured again in float64 on both
    sides: what is within float64's tolerance there was noise, what is not is different. A run
    file's side is measured again only where its weights, prompts and library versions are
    at hand, and only believed if it comes out as it was.

    With --bisect, B is a model, and is measured with each version asked for in an environment
    of its own, where nothing but that one package is another. A version whose hooks fail
    a gate is different.
    """
    from residcheck.comparison import How, document
    from residcheck.console import progress_bars, terminal
    from residcheck.console_changes import show_compared
    from residcheck.output import prepare
    from residcheck.report.compared import markdown as in_markdown

    prepare(json_file, markdown, report)
    names = ("max_tokens", "batch_size", "other_weights")
    how = How(options["prompts"], **{name: options[name] for name in names})
    outputs = _Outputs(json_file, markdown, report)
    if versions is not None:
        sys.exit(_bisect(one, other, versions, how, options, outputs))
    with progress_bars() as progress:
        compared = _compared(one, other, how, options, progress)
    show_compared(terminal(), compared)
    outputs.write(document(compared), in_markdown(compared), compared)
    sys.exit(compared.status)


def _bisect(
    one: str, other: str, versions: str, how: How, options: dict[str, Any], outputs: _Outputs
) -> int:
    from residcheck.comparison.bisect import Versions, document, search, wanted_versions
    from residcheck.console import progress_bars, terminal
    from residcheck.console_changes import show_bisection
    from residcheck.report.compared import bisection_markdown

    package, wanted = wanted_versions(versions)
    if is_run_file(other):
        raise UsageError(
            f"--bisect measures B with each version, and {other} is a run file",
            "give a model for B",
        )
    with progress_bars() as progress:
        side = _side(one, how, options, None, progress)
        tried = Versions(side, specs((other,), options)[0], package, how, progress)
        found = search(package, wanted, tried.probe)
    show_bisection(terminal(), found)
    shown = found.different.compared if found.different is not None else None
    outputs.write(document(found), bisection_markdown(found), shown)
    return found.status


def _compared(
    one: str, other: str, how: How, options: dict[str, Any], progress: Progress
) -> Compared:
    from residcheck.comparison import compare as compare_sides
    from residcheck.comparison import refuse

    if is_run_file(other):  # the side that is a file says on what the other is measured
        second = _side(other, how, options, None, progress)
        first = _side(one, how, options, second.run, progress)
    else:
        first = _side(one, how, options, None, progress)
        second = _side(other, how, options, first.run, progress)
    refuse(first.run, second.run, other_weights=how.other_weights)
    return compare_sides(first, second, progress)


def _side(
    text: str, how: How, options: dict[str, Any], like: Run | None, progress: Progress
) -> Side:
    from residcheck.comparison import from_file, live

    if is_run_file(text):
        return from_file(Path(text), how)
    return live(text, specs((text,), options)[0], how, like, progress)


@dataclass(frozen=True)
class _Outputs:
    """The files that were asked for."""

    json_file: Path | None
    markdown: Path | None
    report: Path | None

    def write(self, said: dict[str, Any], summary: str, compared: Compared | None) -> None:
        """Write them; a report only where two runs were compared."""
        from residcheck.files import write_text
        from residcheck.report import write_page
        from residcheck.report.changes import render
        from residcheck.report.compared import page_of

        if self.json_file is not None:
            write_text(self.json_file, json.dumps(said, indent=1, allow_nan=False) + "\n")
            click.echo(f"written: {self.json_file}")
        if self.markdown is not None:
            write_text(self.markdown, summary)
            click.echo(f"written: {self.markdown}")
        if self.report is not None and compared is not None:
            write_page(render(page_of(compared)), self.report)
            click.echo(f"written: {self.report}")
        elif self.report is not None:
            click.echo(f"not written: {self.report}, for want of two runs to overlay")
