"""What the commands that measure have in common: options, models, ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from residcheck.errors import ResidcheckError

if TYPE_CHECKING:
    from residcheck.corpus import Prompts
    from residcheck.curves import Run
    from residcheck.measure import HorizonOptions
    from residcheck.models import ModelSpec

Command = Callable[..., Any]
FILE = click.Path(dir_okay=False, path_type=Path)


def measuring(command: Command) -> Command:
    """The options that every measuring command has."""
    options: Sequence[Callable[[Command], Command]] = (
        click.option("--device", metavar="DEVICE",
                     help="cpu (default), cuda, cuda:N, auto (over all GPUs) or mps."),
        click.option("--dtype", metavar="DTYPE",
                     help="float32 (default), tf32, bf16, fp16, float64."),
        click.option("--backend", metavar="NAME",
                     help="transformer_lens (default), transformers, nnsight."),
        click.option("--processing", metavar="KIND", help="Weights: processed (default) or raw."),
        click.option("--prompts", metavar="FILE", type=FILE,
                     help="Text, one prompt a line, or JSON lines with 'text'."),
        click.option("--max-tokens", metavar="N", type=int,
                     help="Longest prompt, counting BOS (default 128)."),
        click.option("--batch-size", metavar="N", type=click.IntRange(min=1),
                     help="Prompts per forward pass (default 8; on a GPU, as many as fit)."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def is_run_file(text: str) -> bool:
    """Whether an argument names a run file and not a model."""
    return text.endswith(".json")


def specs(models: Sequence[str], options: dict[str, Any]) -> list[ModelSpec]:
    from residcheck.models import parse_spec

    flags = {key: options[key] for key in ("device", "dtype", "backend", "processing")}
    return [parse_spec(model).with_options(**flags) for model in models]


def stop(error: ResidcheckError) -> NoReturn:
    """Say what was wrong and what to do, and end with the error's exit status."""
    click.echo(click.style("error: ", fg="red", bold=True) + error.message, err=True)
    if error.hint:
        click.echo(f"  {error.hint}", err=True)
    sys.exit(error.exit_status)


def interruptible(command: Command) -> Command:
    """Ctrl-C during a pass keeps what was measured, where the user can find it."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        from residcheck.measure import MeasurementInterrupted

        try:
            return command(*args, **kwargs)
        except MeasurementInterrupted as stop:
            if stop.run is not None:
                from residcheck.curves import save_run

                path = kwargs.get("out") or Path("residcheck-interrupted.json")
                save_run(stop.run, path)
                click.echo(
                    f"interrupted: {stop.run.prompts.count} prompts were finished and are saved "
                    f"in {path}\n  judge them with: residcheck report {path}",
                    err=True,
                )
            raise KeyboardInterrupt from None

    return run


def measured(
    spec: ModelSpec,
    prompts: Prompts,
    options: dict[str, Any],
    horizon: HorizonOptions,
    names: Iterable[str] | None = None,
) -> Run:
    from residcheck.console import progress_bars
    from residcheck.measure import EVERYTHING, measure

    with progress_bars() as progress:
        return measure(
            spec,
            prompts,
            max_tokens=options["max_tokens"],
            names=EVERYTHING if names is None else names,
            batch_size=options["batch_size"],
            horizon=horizon,
            progress=progress,
        )
