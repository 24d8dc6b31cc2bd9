"""What both forms of the report say: models by label, claims with their answers, counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite, isnan

from residcheck.claim import Statement
from residcheck.curves import ModelInfo, Run
from residcheck.report.horizons import Across, across
from residcheck.result import Drift, Judged, ModelResult
from residcheck.stats import Outcome

SYMBOLS = {
    Outcome.SUPPORTED: "✓",
    Outcome.REFUTED: "✗",
    Outcome.INCONCLUSIVE: "?",
    Outcome.NOT_APPLICABLE: "\N{EN DASH}",
}


@dataclass(frozen=True)
class Answer:
    """One claim judged on one model, which the report calls ``model``."""

    model: str
    run: Run
    judged: Judged


@dataclass(frozen=True)
class Section:
    """One claim with an answer per model, in the order of the models; None: not judged."""

    claim: Statement
    cells: tuple[Answer | None, ...]

    @property
    def answers(self) -> tuple[Answer, ...]:
        return tuple(cell for cell in self.cells if cell is not None)

    @property
    def estimated(self) -> tuple[Answer, ...]:
        """The answers that rest on numbers."""
        return tuple(answer for answer in self.answers if answer.judged.verdict.estimates)


@dataclass(frozen=True)
class Outline:
    """The content of a report.

    Args:
        models: each result with the label that tells it from the others.
        sections: the claims, in the order in which they first occur.
    """

    models: tuple[tuple[str, ModelResult], ...]
    sections: tuple[Section, ...]

    @property
    def answers(self) -> list[Answer]:
        return [answer for section in self.sections for answer in section.answers]

    @cached_property
    def drifts(self) -> list[tuple[str, Drift]]:
        return [(label, drift) for label, result in self.models for drift in result.drifts]

    @cached_property
    def horizons(self) -> Across | None:
        return across((a.model, a.run, a.judged.verdict) for a in self.answers)

    @property
    def subject(self) -> str:
        """The model's label, or how many models there are."""
        return self.models[0][0] if len(self.models) == 1 else count(len(self.models), "model")

    @property
    def summary(self) -> str:
        """In words: how many verdicts of each kind, what changed, what drifted."""
        answers = self.answers
        outcomes = Counter(answer.judged.verdict.outcome for answer in answers)
        if not answers:
            verdicts = "No claim was judged."
        else:
            kinds = listed(f"{outcomes[outcome]} {outcome.value}" for outcome in Outcome)
            claims, verb = count(len(self.sections), "claim"), "were"
            if len(self.sections) == 1:
                verb = "was"
            total = "" if len(self.models) == 1 else f", {count(len(answers), 'verdict')}"
            verdicts = f"{claims} {verb} judged on {self.subject}{total}: {kinds}."
        return " ".join([verdicts, *self._against_the_record(answers)])

    def _against_the_record(self, answers: Sequence[Answer]) -> list[str]:
        """A sentence each on refutations that were recorded, on changes and on drifts."""
        refuted = [a.judged for a in answers if a.judged.verdict.outcome is Outcome.REFUTED]
        known = sum(judged.as_recorded for judged in refuted)
        changed = sum(answer.judged.changed for answer in answers)
        drifted = len(self.drifts)
        said: list[str] = []
        if known:
            said.append(f"{known} of the refutations {is_are(known)} as recorded.")
        if changed:
            said.append(f"{count(changed, 'verdict')} changed against the record.")
        if drifted:
            said.append(f"{count(drifted, 'curve')} drifted from the snapshot.")
        return said


def outline(results: Sequence[ModelResult]) -> Outline:
    """Arrange ``results`` by claim."""
    labels = model_labels([result.run.model for result in results])
    models = tuple(zip(labels, results, strict=True))
    claims = {judged.claim.id: judged.claim for result in results for judged in result.judged}
    answers = {
        (judged.claim.id, label): Answer(label, result.run, judged)
        for label, result in models
        for judged in result.judged
    }
    sections = tuple(
        Section(claim, tuple(answers.get((id, label)) for label in labels))
        for id, claim in claims.items()
    )
    return Outline(models, sections)


def model_labels(models: Sequence[ModelInfo]) -> list[str]:
    """A label for each: its id, with how it was run where one id occurs more than once."""
    ids = [model.id for model in models]
    how = [f"{m.id} ({m.dtype}, {m.device}, {m.backend}, {m.processing})" for m in models]
    labels = [h if ids.count(id) > 1 else id for id, h in zip(ids, how, strict=True)]
    return [
        f"{label} #{labels[:i].count(label) + 1}" if labels.count(label) > 1 else label
        for i, label in enumerate(labels)
    ]


def number(value: float) -> str:
    """To three digits, without an exponent where that is readable: 0.046, 25,100, 4.2e-07."""
    if not isfinite(value):
        return "undefined" if isnan(value) else ("infinity" if value > 0 else "-infinity")
    if 999.5 <= abs(value) < 1e7:
        digits = len(str(int(abs(value)))) - 3
        return f"{round(value, -digits):,.0f}"
    return f"{value:.3g}"


def count(n: int, noun: str) -> str:
    """``1 claim``, ``2 claims``."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def is_are(n: int) -> str:
    return "is" if n == 1 else "are"


def listed(parts: Iterable[str]) -> str:
    """``a, b and c``."""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
