"""What people see in the terminal: progress, the verdict table, lists."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from residcheck.claim import Claim, Statement
from residcheck.curves import Floats, ModelInfo, Run
from residcheck.intervention import Intervention
from residcheck.models import BUILTIN, DEFAULT_MODEL
from residcheck.models.builtin import BuiltinModel, PackagedModel
from residcheck.models.cache import home
from residcheck.models.shelf import at_hand
from residcheck.planted import options
from residcheck.progress import Progress as Report
from residcheck.report.horizons import COLUMNS, TITLE, cells, half
from residcheck.report.outline import outline
from residcheck.result import ModelResult
from residcheck.stats import (
    MIN_PROMPTS,
    Estimate,
    Outcome,
    choose_decay,
    effective_horizon,
    horizons_fitted,
    over_prompts,
)
from residcheck.stats.horizon_rules import MARGIN, complete
from residcheck.verdict import Verdict

STYLES = {
    Outcome.SUPPORTED: ("✓", "green"),
    Outcome.REFUTED: ("✗", "red"),
    Outcome.INCONCLUSIVE: ("?", "yellow"),
    Outcome.NOT_APPLICABLE: ("-", "dim"),
}
_ALL_ROWS, _SPREAD_ROWS = 32, 25
"""Up to so many horizons have a row each; of more, so many are shown."""
_NUMBER = len("+9.999")


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


def terminal() -> Console:
    """Standard output; logs, which have no width of their own, get 140 columns."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=140)
    return console


def show_result(result: ModelResult) -> None:
    """The verdict table of one model, then what changed or drifted."""
    console, model = terminal(), result.run.model
    prompts = result.run.prompts
    partial = "" if result.run.complete else ", interrupted"
    title = (
        f"{escape(model.id)}: {model.n_layers} layers, d_model {model.d_model}, {model.norm}, "
        f"{model.dtype} on {model.device}, {model.backend} ({model.processing} weights)\n"
        f"{prompts.count} prompts, {prompts.tokens:,} tokens ({escape(prompts.source)}{partial})"
        + (f"\n{escape(model.remark)}" if model.remark else "")
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


def show_horizon(run: Run) -> None:
    """Loss, divergence and agreement at every horizon, and how far back a model looks."""
    console = terminal()
    if run.horizon is None or "horizon_loss" not in run.curves or not _predicting(run):
        console.print(f"the run of {escape(run.model.id)} holds no loss over horizons")
        return
    for line in _horizon_title(run):
        console.print(line)
    table = Table()
    table.add_column("k", justify="right", no_wrap=True)
    for name in ("layers\ntouched", *_measured_over_horizons(run)):
        table.add_column(name, justify="right", overflow="fold", min_width=_NUMBER)
    middle = half(run)
    longest = run["horizon_loss"].values.shape[-1]
    for k in _shown(longest):
        beyond = middle is not None and k > middle
        if beyond and not any(row.style for row in table.rows):
            table.add_section()
        table.add_row(*_horizon_row(run, k), style="dim" if beyond else None)
    console.print(table)
    for line in _horizon_remarks(run, middle is not None and longest > middle):
        console.print(line)


def _horizon_title(run: Run) -> Iterator[str]:
    assert run.horizon is not None
    model, prompts = run.model, run.horizon.prompts
    partial = "" if run.complete else ", interrupted"
    how = f"{model.dtype} on {model.device}, {model.backend} ({model.processing} weights)"
    yield f"[bold]{escape(model.id)}: layer horizon, {model.n_layers} layers, {how}[/]"
    yield str(run.horizon)
    yield f"{prompts.count} prompts, {prompts.tokens:,} tokens ({escape(prompts.source)}{partial})"
    if "loss" in run.curves:
        yield f"baseline, the loss of the model as it is: {_mean(run['loss'].prompt_mean)}"


def _measured_over_horizons(run: Run) -> list[str]:
    """The columns for what the run holds."""
    interval = " \\[95 %\nover prompts]" if _predicting(run) >= MIN_PROMPTS else ""
    columns = {
        "horizon_loss": f"loss{interval}",
        "loss": "over\nbaseline",
        "horizon_kl": "KL",
        "horizon_top1": "top-1\nagreement",
    }
    return [title for name, title in columns.items() if name in run.curves]


def _shown(longest: int) -> list[int]:
    """All horizons, or rows spread over them with the first and the last."""
    if longest <= _ALL_ROWS:
        return list(range(1, longest + 1))
    return sorted({round(k) for k in np.linspace(1, longest, _SPREAD_ROWS).tolist()})


def _horizon_row(run: Run, k: int) -> list[str]:
    def at(name: str) -> Floats:
        return run[name].prompt_mean[:, k - 1]

    row = [str(k), str(_touched(run, k)), _mean(at("horizon_loss"))]
    if "loss" in run.curves:
        row.append(f"{np.nanmean(at('horizon_loss') - run['loss'].prompt_mean):+.3f}")
    if "horizon_kl" in run.curves:
        row.append(f"{abs(np.nanmean(at('horizon_kl'))):.3f}")  # rounding may take it below zero
    if "horizon_top1" in run.curves:
        row.append(f"{np.nanmean(at('horizon_top1')):.1%}")
    return row


def _touched(run: Run, k: int) -> int:
    """How many layers read a truncated stream."""
    from residcheck.horizon import Variant, schedule

    fields = {name: value for name, value in vars(run.horizon).items() if name != "prompts"}
    cuts = schedule(Variant(**fields), k, run.n_layers, run.model.parallel).layers
    return sum(cut is not None for cut in cuts)


def _mean(means: Floats) -> str:
    """The mean over prompts, with its interval where there are enough for one."""
    means = means[np.isfinite(means)]  # a prompt of one token predicts nothing
    if len(means) < MIN_PROMPTS:
        return f"{means.mean():.3f}"
    found = over_prompts("mean", means)
    return f"{found.value:.3f} \\[{found.low:.3f}, {found.high:.3f}]"


def _predicting(run: Run) -> int:
    """How many prompts there are to resample: those with a token that is predicted."""
    return int(np.isfinite(run["horizon_loss"].prompt_mean).any(axis=1).sum())


def _horizon_remarks(run: Run, marked: bool) -> Iterator[str]:
    if marked:
        yield "[dim]below the line: above half the depth, where few layers are touched[/]"
    prompts = _predicting(run)
    if prompts < MIN_PROMPTS:
        yield f"no intervals: {prompts} prompt(s) say too little, {MIN_PROMPTS} are needed"
    elif "loss" in run.curves:
        yield from _how_far_back(run)


def _how_far_back(run: Run) -> Iterator[str]:
    """The effective horizons, and the shapes of the decay in the order of their fit."""
    unit = "" if run.horizon is None else f" {run.horizon.unit}"
    means = [run[name].prompt_mean for name in ("horizon_loss", "loss")]
    (loss, baseline), _ = complete(*means)
    excess = loss - baseline[:, None]
    by_loss = effective_horizon(excess, "effective horizon by loss")
    yield f"{_of(by_loss)}{unit}"
    if "horizon_kl" in run.curves:
        (divergence,), _ = complete(run["horizon_kl"].prompt_mean)
        yield f"{_of(effective_horizon(divergence, 'effective horizon by KL'))}{unit}"
    yield f"  from there on within {MARGIN} nats of the model as it is"
    if by_loss.value == excess.shape[1]:
        yield "  the loss is not within them at any horizon below the depth"
    decay = choose_decay(excess[:, : len(horizons_fitted(excess.shape[1]))])
    if decay is None:
        yield "decay of the loss with k: no shape could be fitted"
        return
    yield f"decay of the loss with k: {decay.best.shape.value} fits best by AIC"
    for fit in decay.fits:
        found = "; ".join(_of(estimate) for estimate in decay.parameters[fit.shape])
        share = f"best on {decay.frequency[fit.shape]:.0%} of resampled prompts"
        yield f"  {found}; R² {fit.r_squared:.3f}, {share}"


def _of(estimate: Estimate) -> str:
    return escape(str(estimate))


def show_horizons(results: Sequence[ModelResult]) -> None:
    """Several models' horizons beside their growth and depth; nothing if there is one."""
    found = outline(results).horizons
    if found is None:
        return
    table = Table(title=TITLE, title_justify="left", title_style="bold")
    for column in COLUMNS:
        table.add_column(column)
    for model in found.models:
        table.add_row(*map(escape, cells(model)))
    console = terminal()
    console.print(table)
    console.print(escape(found.summary))


def show_claims(
    claims: Sequence[Claim], interventions: Sequence[Intervention], models: Sequence[ModelInfo]
) -> None:
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
        table.add_row(*_said(claim), *applies)
    for one in interventions:
        table.add_row(*_said(one), *("answered from trained controls" for _ in models))
    terminal().print(table)
    terminal().print("family H is put to no model: residcheck controls answers it")


def _said(claim: Statement) -> tuple[str, str, str, str]:
    source = f"{claim.source.authors} ({claim.source.year})"
    name = f"{claim.id}\n[dim]family {claim.family}[/]"
    return name, claim.statement, claim.published, source


def _planted_options() -> Table:
    title = "planted:OPTION=VALUE,... is a small model whose answers are known"
    table = Table(title=title, title_justify="left", title_style="")
    for name in ("option", "default", "what is planted"):
        table.add_column(name, no_wrap=name == "option")
    for option in options():
        table.add_row(*map(escape, option))
    return table


def _download(model: BuiltinModel) -> str:
    return "none" if isinstance(model, PackagedModel) else f"{model.download_bytes / 1e6:.0f} MB"


def show_models() -> None:
    """The built-in models and the state of the cache."""
    table = Table()
    for name in ("model", "what it is", "licence", "download", "on disk", "at hand"):
        table.add_column(name, no_wrap=name == "model")
    for model in BUILTIN.values():
        entry = at_hand(model)
        default = " [dim](default)[/]" if model.name == DEFAULT_MODEL else ""
        size = entry.bytes if entry else model.disk_bytes
        table.add_row(
            model.name + default,
            model.title,
            model.licence,
            _download(model),
            f"{size / 1e6:.0f} MB",
            "[green]yes[/]" if entry else "no",
        )
    console = terminal()
    console.print(table)
    console.print(f"cache: {escape(str(home()))}", soft_wrap=True)
    console.print("any hub id, model folder (save_pretrained) or .gguf file works too")
    console.print(_planted_options())
