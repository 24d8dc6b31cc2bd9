"""Horizons in words, and several models' horizons beside their growth and their depth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from residcheck.curves import Run
from residcheck.stats import AcrossModels, Estimate, horizon_against
from residcheck.verdict import Verdict

_CLAIM = "horizon-vs-growth"
_RATE, _HORIZON, _SHARE = (
    "rate per layer",
    "effective horizon",
    "effective horizon over the depth",
)
"""What the claim's estimates are called that are set beside each other here."""


def depth(run: Run) -> int:
    """The horizon that reaches back over all the model."""
    sublayers = run.horizon is not None and run.horizon.unit == "sublayers"
    return run.n_layers * (2 if sublayers else 1)


def half(run: Run) -> int | None:
    """The longest horizon that still says much: half the depth.

    None where one layer or none is enforced: there every horizon touches as few.
    """
    if run.horizon is not None and run.horizon.enforced in ("at", "unembedding"):
        return None
    return depth(run) // 2


TITLE = "Horizon, growth and depth"
COLUMNS = ("model", "layers", "growth rate", "effective horizon", "share of the depth")


@dataclass(frozen=True)
class Beside:
    """One model's horizon, beside its growth and its depth."""

    model: str
    run: Run
    rate: Estimate
    horizon: Estimate
    share: Estimate


@dataclass(frozen=True)
class Across:
    """Several models' horizons, and how they go with growth and depth."""

    models: tuple[Beside, ...]
    together: AcrossModels

    @property
    def summary(self) -> str:
        """The correlations, or how many models they need, in a sentence."""
        if self.together.missing:
            return f"Correlations over models: {self.together}."
        return f"Rank correlations over {self.together.models} models: {self.together}."


def across(answers: Iterable[tuple[str, Run, Verdict]]) -> Across | None:
    """From verdicts on models by label; None if fewer than two have a horizon and a rate."""
    models = tuple(
        Beside(label, run, found[_RATE], found[_HORIZON], found[_SHARE])
        for label, run, verdict in answers
        if verdict.claim == _CLAIM
        and {_RATE, _HORIZON, _SHARE} <= (found := {e.name: e for e in verdict.estimates}).keys()
    )
    if len(models) < 2:
        return None
    together = horizon_against(
        [model.rate.value for model in models],
        [float(depth(model.run)) for model in models],
        [model.horizon.value for model in models],
    )
    return Across(models, together)


def cells(model: Beside) -> tuple[str, ...]:
    """A row under :data:`COLUMNS`."""
    numbers = (model.rate, model.horizon, model.share)
    return (model.model, str(model.run.n_layers), *map(_with_interval, numbers))


def _with_interval(estimate: Estimate) -> str:
    return f"{estimate.value:.4g} [{estimate.low:.4g}, {estimate.high:.4g}]"
