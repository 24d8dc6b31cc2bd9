"""One cell: a case, a truth and a size, judged many times by the claim itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from unittest.mock import patch
from zlib import crc32

import numpy as np
from proof.rules_cases import Case
from proof.rules_growth import chosen_once
from proof.rules_run import population_of, run_of
from proof.simulate import Drawn, Rows

from residcheck.claim import Claim, all_claims
from residcheck.stats import Estimate, Outcome
from residcheck.stats.decision import CHOICES
from residcheck.verdict import Figure, Verdict

RESAMPLES = 399
"""Resamples of the prompts while calibrating; claims take 1999."""
CLAIMS: dict[str, Claim] = {claim.id: claim for claim in all_claims()}
_ROUNDING = 1e-9


@dataclass
class Cell:
    """The answers of one cell, and of each estimate how often its interval held the truth.

    ``ranged`` is the same of ranges of resamples, which are no confidence intervals.
    """

    case: Case
    truth: str
    effect: float
    prompts: int
    layers: int
    answers: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(Outcome, 0))
    held: dict[str, list[bool]] = field(default_factory=dict)
    ranged: dict[str, list[bool]] = field(default_factory=dict)

    @property
    def size(self) -> str:
        return f"{self.prompts} x {self.layers}"

    @property
    def repetitions(self) -> int:
        return sum(self.answers.values())

    def share(self, outcome: Outcome) -> float:
        return self.answers[outcome] / max(self.repetitions, 1)


@contextmanager
def quickly() -> Iterator[None]:
    """Fewer resamples, and nothing that is only reported or drawn."""
    figure = Figure(())
    with ExitStack() as stack:
        stack.enter_context(patch("residcheck.stats.resampling.RESAMPLES", RESAMPLES))
        claims = "residcheck.claims"
        stack.enter_context(patch(f"{claims}.published.choose_phase", chosen_once))
        stack.enter_context(patch(f"{claims}.test_sublayers.change_point", lambda curve: None))
        stack.enter_context(patch(f"{claims}.test_horizon.decay_figure", lambda run: figure))
        yield


def applies(case: Case, prompts: int, layers: int) -> bool:
    """Whether the claim is decided on so few prompts and layers."""
    claim = CLAIMS[case.claim]
    return prompts >= claim.prompts and layers >= claim.layers


def simulate(cell: Cell, repetitions: int, seed: int, covered: int) -> Cell:
    """Judge the cell so many times; each has a seed of its own, whatever else is run.

    The intervals of the first ``covered`` are held against the population.
    """
    place = f"{cell.case.name}|{cell.truth}|{cell.effect}|{cell.size}"
    for i in range(repetitions):
        rng = np.random.default_rng([seed, crc32(place.encode()), i])
        drawn = cell.case.draw(rng, cell.prompts, cell.layers, cell.effect)
        verdict = judge(cell.case, drawn.sample, cell.prompts, cell.layers)
        cell.answers[verdict.outcome] += 1
        if i < covered:
            for estimate, held in coverage(cell, drawn, verdict):
                kept = cell.ranged if estimate.population == CHOICES else cell.held
                kept.setdefault(estimate.name, []).append(held)
    return cell


def judge(case: Case, curves: Rows, prompts: int, layers: int) -> Verdict:
    """The verdict of the claim, as on any run."""
    return CLAIMS[case.claim].evaluate(run_of(curves, prompts, layers, case.model))


def coverage(cell: Cell, drawn: Drawn, verdict: Verdict) -> list[tuple[Estimate, bool]]:
    """Whether each interval holds the value of the population."""
    estimates = [e for e in verdict.estimates if not e.exact]
    if not estimates:
        return []
    with patch("residcheck.stats.resampling.RESAMPLES", 9):
        curves, rows = population_of(drawn, cell.case.halved)
        everyone = judge(cell.case, curves, rows, cell.layers)
    truths = {e.name: e.value for e in everyone.estimates}
    known = [e for e in estimates if e.name in truths and e.name not in cell.case.unknown]
    return [(e, holds(e, truths[e.name])) for e in known]


def holds(estimate: Estimate, truth: float) -> bool:
    slack = _ROUNDING * (1 + abs(truth))
    return estimate.low - slack <= truth <= estimate.high + slack
