"""Family H: claims that are answered by training, not by measuring a model.

They compare runs of :mod:`residcheck.train`, so that nothing that puts claims to a model
knows of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from residcheck.claim import Source, declared, in_words
from residcheck.controls import Comparison, Zoo
from residcheck.stats import Decision
from residcheck.verdict import Verdict

Rule = Callable[[Comparison], Decision]
FAMILY = "H"


@dataclass(frozen=True)
class Intervention:
    """A documented statement about training, and the rule that decides it.

    Args:
        id: its name for ever.
        statement: what is claimed, in one sentence.
        source: where it was published.
        published: the published numbers, as text; facts, not parameters.
        arms: the trained controls that the rule reads, beside the baseline.
        rule: from a comparison of controls to the decision.
    """

    id: str
    statement: str
    source: Source
    published: str
    arms: tuple[str, ...]
    rule: Rule

    @property
    def family(self) -> str:
        return FAMILY

    @property
    def how(self) -> str:
        return in_words(self.rule)

    def evaluate(self, found: Comparison) -> Verdict:
        """The verdict on trained controls."""
        decision = self.rule(found)
        return Verdict(self.id, found.zoo.name, decision.outcome, decision.estimates, decision.note)


def intervention(
    id: str, *, statement: str, source: Source, published: str, arms: tuple[str, ...]
) -> Callable[[Rule], Callable[..., None]]:
    """Declare one: the decorated rule becomes a test over the controls that are shipped."""

    def declare(rule: Rule) -> Callable[..., None]:
        found = Intervention(id, statement, source, published, arms, rule)

        @functools.wraps(rule)
        def test(
            residcheck_controls: Comparison,
            residcheck_judge_controls: Callable[[Intervention, Comparison], None],
        ) -> None:
            residcheck_judge_controls(found, residcheck_controls)

        # pytest would look through the wrapper and ask for the rule's own parameter.
        vars(test).pop("__wrapped__")
        vars(test)["intervention"] = found
        return test

    return declare


def all_interventions() -> list[Intervention]:
    """Every one of the package ``residcheck.claims``, in the order written."""
    return declared("intervention", Intervention)


def provenance(zoo: Zoo) -> dict[str, Any]:
    """Of which runs a verdict is, as snapshots tell it: another run, another question."""
    first = zoo.runs[0]
    return {
        "model": {
            "id": zoo.name,
            "weights": zoo.sha256,
            "runs": [run.name for run in zoo.runs],
        },
        "prompts": {"sha256": first.corpus["sha256"], "count": len(first.measured.loss)},
        "environment": dict(first.versions),
    }
