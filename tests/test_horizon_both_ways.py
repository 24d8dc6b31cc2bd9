"""Every claim about layer horizons comes out supported on one model and refuted on another.

What each layer reads of the ones before it is planted. Verdicts come out of the whole
pipeline: a saved folder, the measurement, the claim.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from planted_horizons import copying_llama, equal_llama, fading_llama, repeated
from tiny import Tiny

from residcheck.claim import Claim, all_claims
from residcheck.curves import Run
from residcheck.judging import needed_curves
from residcheck.measure import measure
from residcheck.models import ModelSpec
from residcheck.stats import Outcome

SUPPORTED, REFUTED = Outcome.SUPPORTED, Outcome.REFUTED
CLAIMS: dict[str, Claim] = {claim.id: claim for claim in all_claims() if claim.family == "F"}


def fading(folder: Path) -> Path:
    """Layers read the one right before, so that touching them costs nothing; the last
    reads all, far ones less."""
    return fading_llama(folder, depth=20, tau=5)


def step(folder: Path) -> Path:
    """Each layer reads only the tenth before it: below ten all is lost, from there nothing."""
    return copying_llama(folder, depth=16, reach=10)


def equal(folder: Path) -> Path:
    """Every layer that a horizon touches costs the same, wherever it is."""
    return equal_llama(folder, depth=12)


def bottomless(folder: Path) -> Path:
    """Each layer reads the embedding, and the last one alone is read."""
    return copying_llama(folder, depth=12, reach=12)


Model = Callable[[Path], Path]
BOTH_WAYS: dict[str, tuple[Model, Model]] = {
    # claim: where it holds, where it does not
    "horizon-decay": (fading, step),
    "horizon-small-model": (bottomless, step),
    "horizon-confounder": (equal, fading),
}
UNDECIDED = "horizon-vs-growth"
MODELS = {make.__name__: make for pair in BOTH_WAYS.values() for make in pair}


@pytest.fixture(scope="session")
def run_of(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Callable[[str], Run]:
    """Each model measured once, for all claims that are settled on it, and the open one."""
    runs: dict[str, Run] = {}

    def run(model: str) -> Run:
        if model not in runs:
            settled = [c for c, pair in BOTH_WAYS.items() if MODELS[model] in pair]
            names = needed_curves([CLAIMS[name] for name in (*settled, UNDECIDED)])
            folder = MODELS[model](tmp_path_factory.mktemp(model))
            spec = ModelSpec(str(folder)).with_options(backend="transformers")
            runs[model] = measure(spec, repeated(), names=names)
        return runs[model]

    return run


@pytest.mark.parametrize("outcome", [SUPPORTED, REFUTED])
@pytest.mark.parametrize("claim", BOTH_WAYS)
def test_both_ways(claim: str, outcome: Outcome, run_of: Callable[[str], Run]) -> None:
    model = BOTH_WAYS[claim][outcome is REFUTED].__name__
    verdict = CLAIMS[claim].evaluate(run_of(model))
    assert verdict.outcome is outcome, (model, verdict)


# The first number of a verdict. Of "equal": horizons 1 to 5 touch 11 + 10 + ... + 7 = 45
# layers, and from the middle on 5 times 6.
PLANTED = [
    ("horizon-decay", "fading", 5.0),
    ("horizon-small-model", "step", 10 / 16),
    ("horizon-confounder", "equal", 1 - 30 / 45),
]


@pytest.mark.parametrize(("claim", "model", "planted"), PLANTED)
def test_what_is_found_is_what_was_planted(
    claim: str, model: str, planted: float, run_of: Callable[[str], Run]
) -> None:
    """But for a few percent by which the norms change with what is lost."""
    found = CLAIMS[claim].evaluate(run_of(model)).estimates[0]
    assert found.value == pytest.approx(planted, rel=0.1), found


@pytest.mark.parametrize("model", MODELS)
def test_the_open_question_is_never_decided(model: str, run_of: Callable[[str], Run]) -> None:
    verdict = CLAIMS[UNDECIDED].evaluate(run_of(model))
    assert verdict.outcome is Outcome.INCONCLUSIVE, verdict
    assert "an open question" in verdict.note


def test_all_claims_of_this_family_are_here() -> None:
    assert set(CLAIMS) == {*BOTH_WAYS, UNDECIDED}
