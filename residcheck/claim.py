"""What a claim is, how one is declared, and how all of them are found."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import isnan
from typing import Any, Protocol, TypeVar

import numpy as np

from residcheck.curves import Run
from residcheck.stats import MIN_LAYERS, MIN_PROMPTS, Outcome
from residcheck.verdict import Finding, Verdict

Rule = Callable[[Run], Finding]
Kind = TypeVar("Kind")
FAMILIES = {
    "A": "growth of the residual stream",
    "B": "what sublayers write",
    "C": "the attention's weights",
    "D": "the MLPs' weights",
    "E": "why norms grow",
    "F": "the layer horizon",
    "G": "the structure of the stream",
    "H": "interventions in training",
}


@dataclass(frozen=True)
class Source:
    """Where a claim was published."""

    title: str
    authors: str
    year: int
    place: str = ""

    def __str__(self) -> str:
        where = f", {self.place}" if self.place else ""
        return f"{self.authors} ({self.year}), {self.title}{where}"


class Statement(Protocol):
    """What claims and interventions say of themselves: see :class:`Claim`."""

    @property
    def id(self) -> str: ...

    @property
    def family(self) -> str: ...

    @property
    def statement(self) -> str: ...

    @property
    def source(self) -> Source: ...

    @property
    def published(self) -> str: ...

    @property
    def how(self) -> str:
        """The rule in words."""


def in_words(rule: Callable[..., Any]) -> str:
    """A rule in words: the docstring of its function, as one paragraph."""
    return " ".join((inspect.getdoc(rule) or "").split())


@dataclass(frozen=True)
class Claim:
    """A documented statement about residual streams, and the rule that decides it.

    Args:
        id: its name for ever.
        family: the letter of its family.
        statement: what is claimed, in one sentence.
        source: where it was published.
        published: the published numbers, as text; facts, not parameters.
        needs: curves without which it cannot be decided; where the architecture has no
            such thing, the claim does not apply.
        uses: curves that are used where they exist.
        prompts: how many prompts the statistics need.
        layers: how many layers it needs.
        rule: from a run to the finding.
    """

    id: str
    family: str
    statement: str
    source: Source
    published: str
    needs: tuple[str, ...]
    uses: tuple[str, ...]
    prompts: int
    layers: int
    rule: Rule

    @property
    def curves(self) -> tuple[str, ...]:
        return (*self.needs, *self.uses)

    @property
    def how(self) -> str:
        return in_words(self.rule)

    def not_applicable(self, missing: dict[str, str], n_layers: int) -> str:
        """Why the claim does not apply to such a model; empty if it does."""
        for name in self.needs:
            if name in missing:
                return missing[name]
        if n_layers < self.layers:
            return f"the model has {n_layers} layer(s); at least {self.layers} are needed"
        return ""

    def evaluate(self, run: Run) -> Verdict:
        """The verdict on a run."""
        reason = self.not_applicable(dict(run.model.missing), run.n_layers)
        if reason:
            return Verdict(self.id, run.model.id, Outcome.NOT_APPLICABLE, note=reason)
        absent = [name for name in self.needs if name not in run.curves]
        if absent:
            note = f"the run does not hold {', '.join(absent)}; measure it again"
            return Verdict(self.id, run.model.id, Outcome.INCONCLUSIVE, note=note)
        if run.prompts.count < self.prompts:
            note = f"{run.prompts.count} prompt(s); at least {self.prompts} are needed"
            return Verdict(self.id, run.model.id, Outcome.INCONCLUSIVE, note=note)
        zero = zeros(run)
        with _without_numbers() if zero else nullcontext():
            finding = self.rule(run)
        decision = finding.decision
        if zero and any(isnan(e.value) for e in decision.estimates):
            which = [zero[name] for name in self.curves if name in zero] or zero.values()
            decision = decision.with_note(f"{'; '.join(which)}: logs and rates are not defined")
        return Verdict(
            self.id,
            run.model.id,
            decision.outcome,
            decision.estimates,
            decision.note,
            finding.figure,
        )


def zeros(run: Run) -> dict[str, str]:
    """Norms that are zero somewhere in a layer, as where it was pruned, and in which layers.

    Biases are left out: models without any have zeros there, and rules know of it.
    """
    found: dict[str, str] = {}
    for name, curve in run.curves.items():
        if curve.unit == "norm" and curve.dims[-1] == "layer" and not name.startswith("b_"):
            layers = np.flatnonzero(
                (curve.values == 0).any(axis=tuple(range(curve.values.ndim - 1)))
            )
            if len(layers):
                found[name] = f"{name} is zero in layers {', '.join(map(str, layers))}"
    return found


@contextmanager
def _without_numbers() -> Iterator[None]:
    """Within: what has no number is NaN and no warning."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def claim(
    id: str,
    *,
    family: str,
    statement: str,
    source: Source,
    published: str,
    needs: tuple[str, ...],
    uses: tuple[str, ...] = (),
    prompts: int = 2 * MIN_PROMPTS,
    layers: int = MIN_LAYERS,
) -> Callable[[Rule], Callable[..., None]]:
    """Declare a claim: the decorated rule becomes a test that pytest collects.

    The test takes two fixtures of the plugin: ``residcheck_run``, a model's measurements,
    and ``residcheck_judge``, which evaluates the claim and reports the verdict. The :class:`Claim`
    itself is the test's ``claim`` attribute.
    """

    def declare(rule: Rule) -> Callable[..., None]:
        declared = Claim(
            id, family, statement, source, published, needs, uses, prompts, layers, rule
        )

        @functools.wraps(rule)
        def test(residcheck_run: Run, residcheck_judge: Callable[[Claim, Run], None]) -> None:
            residcheck_judge(declared, residcheck_run)

        # pytest would look through the wrapper and ask for the rule's own parameter.
        vars(test).pop("__wrapped__")
        vars(test)["claim"] = declared
        return test

    return declare


def all_claims() -> list[Claim]:
    """Every claim of the package ``residcheck.claims``, by family, in the order written."""
    return sorted(declared("claim", Claim), key=lambda c: c.family)


def declared(name: str, kind: type[Kind]) -> list[Kind]:
    """What the tests of the package ``residcheck.claims`` carry as an attribute."""
    package: Any = importlib.import_module("residcheck.claims")
    found: list[Kind] = []
    for module in sorted(info.name for info in pkgutil.iter_modules(package.__path__)):
        members = vars(importlib.import_module(f"residcheck.claims.{module}")).values()
        carried = (getattr(member, name, None) for member in members)
        found += [one for one in carried if isinstance(one, kind)]
    return found
