"""What a claim's evaluation leaves: an outcome, its evidence, and what to draw."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from residcheck.stats import LEVEL, Decision, Estimate, Outcome, Phase, outcome_of


@dataclass(frozen=True)
class Line:
    """A straight line in a log plot: ``anchor`` is the log value at ``layer`` 0."""

    label: str
    log_rate: float
    anchor: float
    kind: Literal["fitted", "published"]


@dataclass(frozen=True)
class Trace:
    """A curve beside the measured ones: ``values`` at the places of the plot's axis, in order.

    It may be shorter than the axis, and is not drawn where it is NaN.
    """

    label: str
    values: tuple[float, ...]
    kind: Literal["fitted", "published"]


@dataclass(frozen=True)
class Figure:
    """What to draw for a verdict, from the curves of the run.

    Args:
        curves: names of the curves, drawn together.
        kind: ``lines`` (mean per layer with the band over prompts or draws; each head's
            line thin behind the mean over heads), ``histogram`` (of log values, one row per
            layer) or ``map`` (colours over the last two axes, averaged over the others).
        log: logarithmic vertical axis.
        phase: the window to shade.
        lines: fitted and published lines, drawn over the window.
        fits: fitted and published curves, drawn along the whole axis.
        window: the first and last place of a published window as the axis counts them
            (horizons from 1), with its label; its ends are marked.
        bos: draw position 0 apart.
        level: a horizontal line at this value, with its label.
    """

    curves: tuple[str, ...]
    kind: Literal["lines", "histogram", "map"] = "lines"
    log: bool = True
    phase: Phase | None = None
    lines: tuple[Line, ...] = ()
    fits: tuple[Trace, ...] = ()
    window: tuple[int, int, str] | None = None
    bos: bool = False
    level: tuple[float, str] | None = None


@dataclass(frozen=True)
class Finding:
    """What a claim's function returns: the decision, and the figure that shows it."""

    decision: Decision
    figure: Figure | None = None


@dataclass(frozen=True)
class Verdict:
    """The answer to one claim on one model.

    ``note`` says in words what the numbers do not: why a claim does not apply, which
    window was used, what more would decide it.
    """

    claim: str
    model: str
    outcome: Outcome
    estimates: tuple[Estimate, ...] = ()
    note: str = ""
    figure: Figure | None = field(default=None, compare=False)

    @property
    def effect(self) -> Estimate | None:
        return self.estimates[0] if self.estimates else None

    @property
    def deciding(self) -> Estimate | None:
        """The estimate that made the outcome: the first that has the verdict's own."""
        ruled = (e for e in self.estimates if e.region and outcome_of(e) is self.outcome)
        return next(ruled, self.effect)

    @property
    def measured(self) -> str:
        """The effect size with its interval and what it is about, in one line."""
        if self.effect is None:
            return ""
        effect = self.effect
        if effect.exact:
            return f"{effect} (n = {effect.n:,})"
        return f"{effect} ({LEVEL:.0%}, over {effect.population}, n = {effect.n})"

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file; infinite bounds become null."""
        return {
            "claim": self.claim,
            "model": self.model,
            "verdict": self.outcome.value,
            "note": self.note,
            "estimates": [estimate_json(e) for e in self.estimates],
        }


def estimate_json(estimate: Estimate) -> dict[str, Any]:
    """Plain data; what is not finite becomes null."""
    plain = asdict(estimate) | {"level": None if estimate.exact else LEVEL}
    for key in ("value", "low", "high"):
        plain[key] = _finite(plain[key])
    if estimate.region is not None:
        plain["region"] = {key: _finite(value) for key, value in asdict(estimate.region).items()}
    return plain


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
