"""What people see in the terminal: progress, the verdict table, lists."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from residcheck.claim import Claim
from residcheck.curves import ModelInfo
from residcheck.models import BUILTIN, DEFAULT_MODEL
from residcheck.models.cache import find, home
from residcheck.models.gguf import builtin_key
from residcheck.progress import Progress as Report
from residcheck.result import ModelResult
from residcheck.stats import Outcome
from residcheck.verdict import Verdict

STYLES = {
    Outcome.SUPPORTED: ("✓", "green"),
    Outcome.REFUTED: ("✗", "red"),
    Outcome.INCONCLUSIVE: ("?", "yellow"),
    Outcome.NOT_APPLICABLE: ("-", "dim"),
}


@contextmanager
def progress_bars() -> Iterator[Report]:
    """A :class:`residcheck.progress.Progress` drawn on standard error."""
    # The stream is bound now: loaders may put another one in its place for a while.
    console = Console(file=sys.stderr)
    bars = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    current: dict[str, int] = {}

    def report(task: str, done: float, total: float | None) -> None:
        if task not in current:
            for finished in list(current):
                bars.remove_task(current.pop(finished))  # type: ignore[arg-type]
            current[task] = bars.add_task(escape(task), total=total)
            if not console.is_terminal:
                console.print(escape(task), highlight=False, soft_wrap=True)
        bars.update(current[task], completed=done, total=total)  # type: ignore[arg-type]

    if not console.is_terminal:
        yield report
        return
    with bars:
        yield report


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal:  # logs have no width of their own
        console = Console(highlight=False, width=140)
    return console


def show_result(result: ModelResult) -> None:
    """The verdict table of one model, then what changed or drifted."""
    console, model = _console(), result.run.model
    prompts = result.run.prompts
    partial = "" if result.run.complete else ", interrupted"
    title = (
        f"{escape(model.id)}: {model.n_layers} layers, d_model {model.d_model}, {model.norm}, "
        f"{model.dtype} on {model.device}, {model.backend} ({model.processing} weights)\n"
        f"{prompts.count} prompts, {prompts.tokens:,} tokens ({escape(prompts.source)}{partial})"
    )
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("claim", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("measured (95 % interval)")
    table.add_column("remarks", ratio=1)
    for judged in result.judged:
        verdict = judged.verdict
        symbol, style = STYLES[verdict.outcome]
        label = f"[{style}]{symbol} {judged.label}[/]"
        table.add_row(judged.claim.id, label, escape(_measured(verdict)), escape(verdict.note))
    console.print(table)
    for drift in result.drifts:
        console.print(f"[red]drift:[/] {escape(drift.message)}")
    console.print(_summary(result))


def _measured(verdict: Verdict) -> str:
    """The effect size, and the part that decided where that is another."""
    parts = dict.fromkeys(e for e in (verdict.effect, verdict.deciding) if e is not None)
    return "\n".join(f"{estimate} (n = {estimate.n:,})" for estimate in parts)


def _summary(result: ModelResult) -> str:
    counts = [(sum(j.verdict.outcome is o for j in result.judged), o.value) for o in Outcome]
    said = ", ".join(f"{count} {name}" for count, name in counts if count)
    failing = sum(j.fails for j in result.judged)
    if failing or result.drifts:
        news = f"{failing} new refutation(s) or change(s), {len(result.drifts)} drift(s)"
        return f"{said}; [red]{news}[/]"
    return f"{said}; nothing new against the record"


def show_claims(claims: Sequence[Claim], models: Sequence[ModelInfo]) -> None:
    """What is checked; with models, whether each claim applies to them."""
    table = Table(show_lines=True)
    for name in ("claim", "statement", "published", "source"):
        table.add_column(name, no_wrap=name == "claim")
    for model in models:
        table.add_column(escape(model.id))
    for claim in claims:
        applies = [
            escape(claim.not_applicable(dict(model.missing), model.n_layers)) or "[green]applies[/]"
            for model in models
        ]
        source = f"{claim.source.authors} ({claim.source.year})"
        row = (
            f"{claim.id}\n[dim]family {claim.family}[/]",
            claim.statement,
            claim.published,
            source,
        )
        table.add_row(*row, *applies)
    _console().print(table)


def show_models() -> None:
    """The built-in models and the state of the cache."""
    table = Table()
    for name in ("model", "what it is", "licence", "download", "on disk", "cached"):
        table.add_column(name, no_wrap=name == "model")
    for model in BUILTIN.values():
        entry = find(builtin_key(model))
        default = " [dim](default)[/]" if model.name == DEFAULT_MODEL else ""
        size = entry.bytes if entry else model.disk_bytes
        table.add_row(
            model.name + default,
            model.title,
            model.licence,
            f"{model.download_bytes / 1e6:.0f} MB",
            f"{size / 1e6:.0f} MB",
            "[green]yes[/]" if entry else "no",
        )
    console = _console()
    console.print(table)
    console.print(f"cache: {escape(str(home()))}", soft_wrap=True)
    console.print("any hub id, model folder (save_pretrained) or .gguf file works too")
