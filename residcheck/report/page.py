"""The HTML page: what the template is given, and the words that it uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from residcheck.curves import SCHEMA, Run, summary
from residcheck.report import horizons, plots
from residcheck.report.chart import Chart
from residcheck.report.describe import Key, in_words, legend
from residcheck.report.outline import SYMBOLS, Section, count, outline
from residcheck.report.overlay import beyond, overlay
from residcheck.report.scatter import Scatter, across_models, keys
from residcheck.report.series import chart
from residcheck.report.style import LEVEL_OPACITY, LEVELS
from residcheck.result import Drift, Failure, ModelResult
from residcheck.stats import LEVEL, Estimate, Outcome
from residcheck.stats.decision import outcome_of

_WITHIN = {
    Outcome.SUPPORTED: "the interval is inside",
    Outcome.REFUTED: "the interval is outside",
    Outcome.INCONCLUSIVE: "the interval is not inside and not outside",
}


@dataclass(frozen=True)
class Plot:
    """A drawn chart of one model; ``svg`` is empty where there was nothing to draw."""

    model: str
    svg: Markup
    text: str
    keys: tuple[Key, ...]


def render(
    results: Sequence[ModelResult], failures: Sequence[Failure] = (), pages: Sequence[str] = ()
) -> str:
    """The page about ``results``, with the models that could not be measured.

    Args:
        pages: where each result has a page of its own, with its plots; they are left out here.
    """
    page = outline(results)
    environment = templates()
    environment.globals |= {
        "facts": facts,
        "css_class": css_class,
        "symbols": SYMBOLS,
        "outcomes": tuple(Outcome),
        "within": within,
        "digits": digits,
        "count": count,
        "level": f"{LEVEL:.0%}",
        "provenance": provenance,
        "horizon_title": horizons.TITLE,
        "horizon_columns": horizons.COLUMNS,
        "horizon_cells": horizons.cells,
    }
    drawn = [
        (section, () if pages else plots_of(section, n)) for n, section in enumerate(page.sections)
    ]
    drifted = [
        (label, drift, [] if pages else drift_plots(result.run, drift, f"drift-{number}-{i}"))
        for number, (label, result) in enumerate(page.models)
        for i, drift in enumerate(result.drifts)
    ]
    template = environment.get_template("page.html.j2")
    return template.render(
        page=page,
        sections=drawn,
        drifted=drifted,
        failures=failures,
        pages=dict(zip((label for label, _ in page.models), pages, strict=bool(pages))),
        beside=scatters(across_models(page)),
    )


def scatters(shown: Sequence[Scatter]) -> list[Plot]:
    """A plot of each, with the models by their numbers."""
    return [
        Plot("", Markup(plots.draw_models(one, f"models-{n}")), "", tuple(keys(one)))
        for n, one in enumerate(shown)
    ]


def drift_plots(run: Run, drift: Drift, key: str) -> list[Plot]:
    """Stored and new in one plot, and how far beyond its bound in another."""
    if drift.stored is None or drift.comparison is None:
        return []
    labels = ("stored", "new")
    both = overlay(drift.stored, summary(run[drift.curve]), labels, drift.comparison)
    charts = [chart for chart in (both, beyond(drift.comparison)) if chart is not None]
    return [plot("", c, f"{key}-{i}", plots.frames([c])[0]) for i, c in enumerate(charts)]


def templates() -> Environment:
    """The templates of the report's pages, which escape whatever they are given."""
    environment = Environment(
        loader=PackageLoader("residcheck.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    opacities = [1 - (1 - LEVEL_OPACITY) ** n for n in range(len(LEVELS), 0, -1)]
    environment.globals["token_opacities"] = opacities
    return environment


def plots_of(section: Section, number: int) -> tuple[Plot, ...]:
    """The plots of a claim, one per model, on one scale where that is logarithmic or colours."""
    asked = [(a, a.judged.verdict.figure) for a in section.answers]
    charts = [(answer, chart(answer.run, figure)) for answer, figure in asked if figure]
    frames = plots.frames([drawn for _, drawn in charts])
    return tuple(
        plot(answer.model, drawn, f"plot-{number}-{i}", frame)
        for i, ((answer, drawn), frame) in enumerate(zip(charts, frames, strict=True))
    )


def plot(model: str, drawn: Chart, key: str, frame: plots.Frame) -> Plot:
    """A chart of ``model``; ``key`` must be unique on its page."""
    if drawn.empty:
        return Plot(model, Markup(), "Nothing to draw: no finite value.", ())
    svg = plots.draw(drawn, key, frame)
    # Markup: an element tree wrote it, which escapes whatever text is in it.
    return Plot(model, Markup(svg), in_words(drawn), tuple(legend(drawn)))


def facts(run: Run) -> list[str]:
    """What was measured, in a few words each."""
    model, prompts = run.model, run.prompts
    kind, _, digest = model.weights.partition(":")
    said = [
        count(model.n_layers, "layer"),
        f"d_model {model.d_model:,}",
        model.norm if model.norm != "none" else "no norm",
        model.dtype,
        f"on {model.device}",
        f"through {model.backend}",
        f"{model.processing} weights",
        f"{count(prompts.count, 'prompt')}, {count(prompts.tokens, 'token')}",
        f"weights {kind} {digest[:12]}" if digest else f"weights {kind[:24]}",
    ]
    horizon = run.horizon
    if horizon is not None and horizon.prompts.sha256 != prompts.sha256:
        said.append(f"horizons on {count(horizon.prompts.count, 'prompt')}")
    said += [model.remark] if model.remark else []
    return said if run.complete else [*said, "incomplete run"]


def css_class(outcome: Outcome) -> str:
    return outcome.value.replace(" ", "-")


def within(estimate: Estimate) -> tuple[Outcome, str] | None:
    """Where the interval lies with respect to the claim's region; None without a region."""
    if estimate.region is None:
        return None
    outcome = outcome_of(estimate)
    return outcome, _WITHIN[outcome]


def digits(value: float) -> str:
    """Four significant digits, as the terminal prints them."""
    return f"{value:.4g}"


def provenance(run: Run) -> list[tuple[str, str]]:
    """All that identifies a run: weights, prompts, and where it was made."""
    model, prompts = run.model, run.prompts
    said = {
        "weights": model.weights,
        "architecture": f"{model.model_type}, {model.activation}",
        "attention": model.attention,
        "prompts": f"{prompts.source}, at most {count(prompts.max_tokens, 'token')} each",
        "prompts sha256": prompts.sha256,
        "position 0": prompts.bos,
        "run schema": SCHEMA,
    }
    if run.horizon is not None:
        sample = run.horizon.prompts
        taken = f"{count(sample.count, 'prompt')}, {count(sample.tokens, 'token')}"
        said |= {
            "horizon": str(run.horizon),
            "horizon's prompts": f"{taken}, sha256 {sample.sha256}",
        }
    return [*said.items(), *sorted(run.environment.items())]
