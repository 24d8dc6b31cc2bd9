"""The command ``residcheck horizon``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from residcheck.cli_options import FILE, interruptible, measured, measuring, specs


@click.command()
@click.argument("model", required=False)
@click.option(
    "--ablation",
    type=click.Choice(["zero", "mean"]),
    default="zero",
    help="What stays of the layers further back: nothing (default) or their mean.",
)
@click.option(
    "--outputs",
    type=click.Choice(["recomputed", "original"]),
    default="recomputed",
    help="Layers read outputs made under the horizon (default), or the model's own.",
)
@click.option(
    "--enforced",
    type=click.Choice(["everywhere", "from", "at", "unembedding"]),
    default="everywhere",
    help="On all layers (default), from --layer on, at --layer alone, or only on "
    "what the unembedding reads.",
)
@click.option("--layer", metavar="N", type=click.IntRange(min=0), help="For 'from' and 'at'.")
@click.option(
    "--unembedding",
    type=click.Choice(["full", "truncated"]),
    default="full",
    help="What the unembedding reads: the whole stream (default), or a truncated one.",
)
@click.option(
    "--unit",
    type=click.Choice(["layers", "sublayers"]),
    default="layers",
    help="What a horizon counts (default: layers).",
)
@click.option(
    "--memory",
    metavar="GIB",
    type=click.FloatRange(min=0, min_open=True),
    help="Memory to take beside the model; sets the batching (default 2; on a GPU, half of "
    "what is free).",
)
@measuring
@click.option(
    "--json",
    "out",
    metavar="FILE",
    type=FILE,
    help="Write a run file: horizon_loss and others, 'mean' at k = 1, 2, ...",
)
@click.option("--report", metavar="FILE.html", type=FILE, help="Write an HTML report.")
@interruptible
def horizon(model: str | None, out: Path | None, report: Path | None, **options: Any) -> None:
    """How far back do the layers of MODEL look? Loss where they read only the last k.

    With horizon k, layer n reads resid_pre[n] - resid_pre[n-k] in the place of
    resid_pre[n]: what the last k layers wrote. All k from 1 to the number of layers are
    measured, at the cost of about half as many forward passes: on all of FILE, or without
    one on a sample of residcheck's own passages.
    """
    from residcheck.console import show_horizon
    from residcheck.corpus import read_prompts
    from residcheck.curves import save_run
    from residcheck.horizon import Variant
    from residcheck.judging import answerable, judge_run
    from residcheck.measure import HorizonOptions, curves_of
    from residcheck.models import DEFAULT_MODEL
    from residcheck.names import HORIZON
    from residcheck.output import prepare
    from residcheck.report import write_html

    choices = ("ablation", "outputs", "enforced", "layer", "unembedding", "unit")
    variant = Variant(**{name: options[name] for name in choices})
    spec = specs((model or DEFAULT_MODEL,), options)[0]
    prepare(out, report)
    sample = options["prompts"] is None
    memory = None if options["memory"] is None else int(options["memory"] * 2**30)
    how = HorizonOptions(variant, sample, memory)
    run = measured(spec, read_prompts(options["prompts"]), options, how, curves_of(variant))
    show_horizon(run)
    if out is not None:
        save_run(run, out)
        click.echo(f"written: {out}")
    if report is not None:
        of_horizons = [claim for claim in answerable(run) if set(claim.needs) & set(HORIZON)]
        write_html([judge_run(run, of_horizons)], report)
        click.echo(f"written: {report}")
