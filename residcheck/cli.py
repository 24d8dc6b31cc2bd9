"""The ``residcheck`` command: thin, and quick to answer; work is imported when it is done."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from residcheck import __version__
from residcheck.cli_compare import compare
from residcheck.cli_controls import controls
from residcheck.cli_horizon import horizon
from residcheck.cli_options import (
    FILE,
    interruptible,
    is_run_file,
    measured,
    measuring,
    specs,
    stop,
)
from residcheck.cli_review import review
from residcheck.cli_sweep import sweep
from residcheck.errors import ExitStatus, ResidcheckError, UsageError
from residcheck.view.command import view

if TYPE_CHECKING:
    from residcheck.curves import Run

_EXIT_STATUS = (
    "Exit status: 0 nothing refuted or drifted, 1 something was, 2 wrong usage, "
    "3 could not measure."
)


class _Group(click.Group):
    """Turns every expected error into one message and the right exit status."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ResidcheckError as error:
            stop(error)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(ExitStatus.INTERRUPTED)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            close = difflib.get_close_matches(args[0], self.commands, n=1)
            if close:
                raise click.UsageError(
                    f"{error.message} Did you mean {close[0]!r}?", ctx
                ) from error
            raise


@click.group(cls=_Group, epilog=_EXIT_STATUS, context_settings={"max_content_width": 100})
@click.version_option(__version__, prog_name="residcheck")
def main() -> None:
    """Is this finding about transformers true, here, now, on this model and library?

    Documented claims about residual streams, tested on any causal language model. Each
    claim is supported, refuted, inconclusive or not applicable, with an effect size and
    an interval.

    \b
    Start with:  residcheck verify            (fetches a small real model)
                 residcheck verify gpt2 --report gpt2.html
    """


@main.command(epilog=_EXIT_STATUS)
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@measuring
@click.option("--report", metavar="FILE.html", type=FILE, help="Write an HTML report.")
@click.option("--json", "json_file", metavar="FILE", type=FILE, help="Write verdicts as JSON.")
@click.option("--markdown", metavar="FILE", type=FILE, help="Write a job summary in Markdown.")
@click.option("--snapshots", metavar="DIR", type=click.Path(file_okay=False, path_type=Path),
              help="Folder of snapshots (default: ./snapshots, then those shipped).")  # fmt: skip
@interruptible
def verify(
    models: tuple[str, ...],
    report: Path | None,
    json_file: Path | None,
    markdown: Path | None,
    snapshots: Path | None,
    **options: Any,
) -> None:
    """Check the claims on each MODEL: a built-in name, hub id, folder or .gguf file.

    Without MODEL, the default built-in model. Options may follow a model's name:
    gpt2-xl@REVISION,dtype=bf16,backend=transformers.
    """
    from residcheck.corpus import read_prompts
    from residcheck.measure import HorizonOptions
    from residcheck.models import DEFAULT_MODEL

    chosen = specs(models or (DEFAULT_MODEL,), options)
    prompts = read_prompts(options["prompts"])
    outputs = _Outputs(report, json_file, markdown)
    failure: ResidcheckError | None = None
    for spec in chosen:
        try:
            run = measured(spec, prompts, options, HorizonOptions(sample=True))
        except UsageError:
            raise
        except ResidcheckError as error:  # the other models still have their turn
            if len(chosen) == 1:
                raise
            failure = error
            click.echo(f"error: {spec}: {error}", err=True)
            continue
        outputs.add(run, snapshots)
    if failure is not None:
        sys.exit(ExitStatus.COULD_NOT_MEASURE)
    outputs.exit()


class _Outputs:
    """Judges runs as they come, shows each, and keeps the asked-for files up to date."""

    def __init__(
        self, report: Path | None, json_file: Path | None = None, markdown: Path | None = None
    ) -> None:
        from residcheck.output import prepare

        self._report, self._json, self._markdown = report, json_file, markdown
        prepare(report, json_file, markdown)
        self._results: list[Any] = []

    def add(self, run: Run, snapshots: Path | None) -> None:
        from residcheck.claim import all_claims
        from residcheck.console import show_result
        from residcheck.judging import DEFAULT_SNAPSHOTS, answerable, judge_run
        from residcheck.output import write_files
        from residcheck.report.outline import count

        claims = answerable(run)
        result = judge_run(run, claims, snapshots or DEFAULT_SNAPSHOTS)
        self._results.append(result)
        show_result(result)
        if left_out := len(all_claims()) - len(claims):
            click.echo(f"left out: {count(left_out, 'claim')}, for want of curves in the run")
        written = write_files(self._results, self._report, self._json, self._markdown)
        for path in written:
            click.echo(f"written: {path}")

    def exit(self) -> NoReturn:
        from residcheck.console import show_horizons

        show_horizons(self._results)
        sys.exit(max((result.status for result in self._results), default=ExitStatus.OK))


@main.command()
@click.argument("model")
@click.option("--out", metavar="RUN.json", type=FILE, required=True,
              help="Run file to write; per-token arrays go beside it.")  # fmt: skip
@measuring
@interruptible
def measure(model: str, out: Path, **options: Any) -> None:
    """Measure every curve of MODEL and write a run file.

    The file holds, under curves.NAME, 'mean' and 'gmean' per layer over prompts and
    non-BOS positions, and 'bos' at position 0. Layer horizons are measured on all of
    FILE, and on a sample of residcheck's own passages.
    """
    from residcheck.corpus import read_prompts
    from residcheck.curves import save_run
    from residcheck.measure import HorizonOptions
    from residcheck.output import prepare

    spec = specs((model,), options)[0]
    prepare(out)
    horizon = HorizonOptions(sample=options["prompts"] is None)
    run = measured(spec, read_prompts(options["prompts"]), options, horizon)
    save_run(run, out)
    click.echo(
        f"{run.model.id}: {len(run.curves)} curves over {run.prompts.count} prompt(s), "
        f"{run.prompts.tokens:,} tokens, {run.n_layers} layers\nwritten: {out}"
    )


@main.command(epilog=_EXIT_STATUS)
@click.argument("runs", nargs=-1, required=True, type=FILE, metavar="RUN.json...")
@click.option("--report", "-o", metavar="FILE.html", type=FILE, help="HTML file to write.")
@click.option("--json", "json_file", metavar="FILE", type=FILE, help="Write verdicts as JSON.")
@click.option("--markdown", metavar="FILE", type=FILE, help="Write a job summary in Markdown.")
@click.option("--snapshots", metavar="DIR", type=click.Path(file_okay=False, path_type=Path),
              help="Folder of snapshots (default: ./snapshots, then those shipped).")  # fmt: skip
def report(
    runs: tuple[Path, ...],
    report: Path | None,
    json_file: Path | None,
    markdown: Path | None,
    snapshots: Path | None,
) -> None:
    """Judge saved runs again, without their models, and write a report.

    Without -o, the report is written beside the first run file.
    """
    from residcheck.curves import load_run

    outputs = _Outputs(report or runs[0].with_suffix(".html"), json_file, markdown)
    for run in [load_run(path) for path in runs]:
        outputs.add(run, snapshots)
    outputs.exit()


@main.command()
@click.argument("models", nargs=-1, metavar="[MODEL|RUN.json]...")
@click.option("--markdown", metavar="FILE", type=FILE, help="Write the claims as a page.")
def claims(models: tuple[str, ...], markdown: Path | None) -> None:
    """List what is checked: source, published numbers, and what applies to each MODEL.

    MODEL may be a run file; otherwise the model is loaded to see how it is built.
    """
    from residcheck.claim import all_claims
    from residcheck.console import progress_bars, show_claims
    from residcheck.curves import ModelInfo, load_run
    from residcheck.intervention import all_interventions
    from residcheck.models import parse_spec

    if markdown is not None:
        from residcheck.files import write_text
        from residcheck.report.markdown import claims_page

        write_text(markdown, claims_page(all_claims(), all_interventions()))
        return
    infos: list[ModelInfo] = []
    for text in models:
        if is_run_file(text):
            infos.append(load_run(Path(text)).model)
            continue
        from residcheck.measure import describe

        with progress_bars() as progress:
            infos.append(describe(parse_spec(text), progress))
    show_claims(all_claims(), all_interventions(), infos)


@main.command()
def models() -> None:
    """List the built-in models: what is cached, where, and how big."""
    from residcheck.console import show_models

    show_models()


main.add_command(compare)
main.add_command(controls)
main.add_command(horizon)
main.add_command(review)
main.add_command(sweep)
main.add_command(view)
