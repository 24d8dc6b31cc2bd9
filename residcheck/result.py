"""All there is to say about one model: its run, its verdicts, and what drifted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from residcheck.claim import Statement
from residcheck.compare import Comparison
from residcheck.curves import Run
from residcheck.errors import ExitStatus
from residcheck.stats import Outcome
from residcheck.verdict import Verdict


@dataclass(frozen=True)
class Judged:
    """A verdict beside the one that was recorded for this model or these controls, if any.

    ``comparable`` is true when the record was made on the same weights and prompts, so
    that another outcome is a change and not another question.
    """

    claim: Statement
    verdict: Verdict
    recorded: Outcome | None = None
    comparable: bool = False

    @property
    def changed(self) -> bool:
        return self.comparable and self.recorded not in (None, self.verdict.outcome)

    @property
    def as_recorded(self) -> bool:
        return self.recorded == self.verdict.outcome

    @property
    def fails(self) -> bool:
        """A refutation nobody has recorded, or any change against the record."""
        refuted = self.verdict.outcome is Outcome.REFUTED
        return self.changed or (refuted and not self.as_recorded)

    @property
    def label(self) -> str:
        """The outcome in words, with what the record says of it."""
        outcome = self.verdict.outcome.value
        if self.changed:
            assert self.recorded is not None
            return f"{outcome} (was {self.recorded.value})"
        if self.as_recorded and self.verdict.outcome is Outcome.REFUTED:
            return f"{outcome}, as recorded"
        return outcome


@dataclass(frozen=True)
class Drift:
    """A curve that left its snapshot: where, how far, and against what bound.

    ``stored`` is the summary of the curve in the snapshot, and ``comparison`` all that
    differs from it; None where the curve cannot be measured any more.
    """

    curve: str
    message: str
    stored: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)
    comparison: Comparison | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Failure:
    """A model that was asked for and could not be measured, and why."""

    model: str
    message: str
    hint: str = ""


@dataclass(frozen=True)
class ModelResult:
    """The run of one model with its verdicts, in the order of the claims."""

    run: Run
    judged: tuple[Judged, ...]
    drifts: tuple[Drift, ...] = ()

    @property
    def status(self) -> ExitStatus:
        if self.drifts or any(j.fails for j in self.judged):
            return ExitStatus.REFUTED_OR_DRIFTED
        return ExitStatus.OK
