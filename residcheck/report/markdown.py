"""The short form of a report: a job summary in GitHub's Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from itertools import groupby

from residcheck.claim import FAMILIES, Claim, Statement
from residcheck.intervention import FAMILY, Intervention
from residcheck.report.horizons import COLUMNS, TITLE, Across, cells
from residcheck.report.outline import SYMBOLS, Answer, Outline, Section, outline
from residcheck.result import Failure, Judged, ModelResult
from residcheck.stats import Outcome
from residcheck.verdict import Verdict

_CLAIMS_INTRODUCTION = (
    "Written by `residcheck claims --markdown claims/README.md` from the claims themselves. "
    "A model's numbers are in its report. An interval over prompts speaks "
    "of other prompts on the same model, and of nothing else."
)
_ANSWERED_BY_TRAINING = (
    "No model is asked these: they are answered from trained controls, small GPT-2s that differ "
    "in one thing each (`residcheck controls`). An interval over seeds speaks of other seeds of "
    "such models, and of nothing else."
)
# What GitHub reads as markup, mathematics ($) and the edges of table cells (|) included.
_MARKUP = re.compile(r"[\\`*_\[\]|~$#]")


def render(results: Sequence[ModelResult], failures: Sequence[Failure] = ()) -> str:
    """Heading, summary, the table of verdicts, then a line for each that needs a look."""
    page = outline(results)
    blocks = [f"## residcheck: {plain(page.subject)}", plain(page.summary)]
    if page.sections:
        blocks.append(_table(page))
    if lines := [*_failed(failures), *_notable(page), *_drifted(page)]:
        blocks.append("\n".join(lines))
    if page.horizons is not None:
        blocks += _horizons(page.horizons)
    return "\n\n".join(blocks) + "\n"


def claims_page(claims: Sequence[Claim], interventions: Sequence[Intervention]) -> str:
    """What is checked, family by family: statement, published numbers, source, rule."""
    blocks = ["# The claims", _CLAIMS_INTRODUCTION]
    for family, group in groupby(claims, key=lambda claim: claim.family):
        blocks.append(f"## Family {family}: {FAMILIES[family]}")
        blocks += [_section(claim, _reads(claim)) for claim in group]
    blocks += [f"## Family {FAMILY}: {FAMILIES[FAMILY]}", _ANSWERED_BY_TRAINING]
    blocks += [_section(one, _compares(one)) for one in interventions]
    return "\n\n".join(blocks) + "\n"


def _reads(claim: Claim) -> str:
    needs = f"{claim.prompts} prompts, {claim.layers} layers"
    curves = ", ".join(f"`{name}`" for name in claim.curves) or "no measurement"
    return f"Reads: {curves}; at least {needs}"


def _compares(intervention: Intervention) -> str:
    arms = ", ".join(f"`{arm}`" for arm in intervention.arms)
    return f"Compares: {arms} with `baseline`, at least 2 seeds each"


def _section(claim: Statement, needs: str) -> str:
    lines = [
        f"### `{claim.id}`",
        f"**{plain(claim.statement)}**",
        f"- Published: {plain(claim.published)}\n- Source: {plain(str(claim.source))}\n- {needs}",
        plain(claim.how),
    ]
    return "\n\n".join(lines)


def plain(text: str) -> str:
    """``text`` on one line, none of it read as HTML or Markdown."""
    one_line = " ".join(text.split())
    return _MARKUP.sub(lambda match: "\\" + match[0], html.escape(one_line, quote=False))


def _table(page: Outline) -> str:
    head = ["claim", *(plain(label) for label, _ in page.models)]
    return pipe_table([head, *map(_cells, page.sections)])


def pipe_table(rows: list[list[str]]) -> str:
    """A table of finished cells, its head first."""
    head, *body = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body))


def _horizons(found: Across) -> list[str]:
    rows = [[plain(cell) for cell in row] for row in (COLUMNS, *map(cells, found.models))]
    return [f"### {TITLE}", pipe_table(rows), plain(found.summary)]


def _cells(section: Section) -> list[str]:
    return [plain(section.claim.id), *(_cell(cell) for cell in section.cells)]


def _cell(answer: Answer | None) -> str:
    return "" if answer is None else _label(answer.judged)


def _label(judged: Judged) -> str:
    label = f"{SYMBOLS[judged.verdict.outcome]} {plain(judged.label)}"
    return f"**{label}**" if judged.fails else label


def _notable(page: Outline) -> list[str]:
    """A line with the measured numbers for each claim that was refuted or that changed."""
    lines: list[str] = []
    for answer in page.answers:
        judged = answer.judged
        if judged.changed or judged.verdict.outcome is Outcome.REFUTED:
            said = "; ".join(filter(None, (*_measured(judged.verdict), judged.verdict.note)))
            subject = plain(f"{judged.claim.id} on {answer.model}")
            lines.append(f"- {subject}: {_label(judged)}. {plain(said)}".rstrip())
    return lines


def _measured(verdict: Verdict) -> list[str]:
    """The effect, and the estimate that decided where that is another one."""
    if verdict.deciding in (None, verdict.effect):
        return [verdict.measured]
    return [verdict.measured, f"decided by {verdict.deciding}"]


def _failed(failures: Sequence[Failure]) -> list[str]:
    return [
        f"- **not measured**: {plain(failure.model)}: {plain(failure.message)}"
        for failure in failures
    ]


def _drifted(page: Outline) -> list[str]:
    return [
        f"- **drift** of {plain(drift.curve)} on {plain(label)}: {plain(drift.message)}"
        for label, drift in page.drifts
    ]
