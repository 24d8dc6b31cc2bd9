"""The simulations behind the error rates: their truth, their seeds, and gross errors."""

from __future__ import annotations

import csv
import pickle
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from proof.calibrate import main
from proof.page import read_section
from proof.rules_cases import BOUNDARY, CASES, FALSE, TRUE, case_of
from proof.rules_cells import CLAIMS, Cell, applies, quickly, simulate
from proof.rules_growth import alike, bent, middles, published
from proof.rules_run import population_of, run_of
from proof.rules_structure import cancelled, horizons, overshadowed
from proof.simulate import Drawn, correlated, exponential, heavy, linear, of_prompts

from residcheck.stats import Outcome, slopes
from residcheck.stats.fits import Floats
from residcheck.stats.shape import acceleration

LAYERS = 24


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20230509)


def population(drawn: Drawn, name: str) -> Floats:
    """The curve of mean logs of all prompts."""
    return np.asarray(np.log(drawn.population()[name][:, 1:]).mean(axis=(0, 1)))


def test_noise_has_the_size_that_it_says(rng: np.random.Generator) -> None:
    assert heavy(rng, (200_000,), 0.3).std() == pytest.approx(0.3, rel=0.05)
    series = correlated(rng, (20_000, 12), 0.2)
    assert series.std() == pytest.approx(0.2, rel=0.05)
    assert np.corrcoef(series[:, 5], series[:, 6])[0, 1] == pytest.approx(0.5, abs=0.05)
    off = of_prompts(rng, np.zeros(LAYERS), 4000)
    rates = slopes(off, np.arange(LAYERS, dtype=np.float64))
    assert rates.std() == pytest.approx(0.004, abs=0.001)  # as in the models that are shipped
    assert np.diff(off).std() == pytest.approx(0.02, abs=0.004)


def test_curves_without_jags_are_of_their_shape(rng: np.random.Generator) -> None:
    assert np.diff(exponential(rng, LAYERS, 0.08, 0.0)) == pytest.approx(0.08)
    curves = [linear(rng, LAYERS, 2.0) for _ in range(3000)]
    norm = np.exp(np.mean(curves, axis=0) - 3)
    assert np.diff(norm) == pytest.approx(np.expm1(2) / (LAYERS - 1), rel=0.2)
    assert norm[-1] / norm[0] == pytest.approx(np.exp(2), rel=0.05)


def test_effects_over_all_prompts_are_the_planted_ones(rng: np.random.Generator) -> None:
    curve = population(published(rng, 16, 48, 1.05), "resid_post_norm")
    assert slopes(curve[5:42], np.arange(37.0)) == pytest.approx(np.log(1.05))
    curve = population(bent(rng, 16, LAYERS, 0.5), "resid_post_norm")
    assert float(acceleration(curve)) == pytest.approx(0.5)
    for name, draw, effect, layers in (
        ("old-outputs-overshadowed", overshadowed, 2.0, LAYERS),
        ("overshadow-not-cancel", cancelled, 0.7, LAYERS),
        ("horizon-small-model", horizons, 0.7, LAYERS),
    ):
        case = case_of(name)
        drawn = draw(rng, 16, layers, effect)
        curves, rows = population_of(drawn, case.halved)
        values = CLAIMS[case.claim].evaluate(run_of(curves, rows, layers)).estimates
        found = values[1].value if name.startswith("old") else values[0].value
        right = {"old-outputs-overshadowed": 0.25, "horizon-small-model": 16 / 24}
        assert found == pytest.approx(right.get(name, effect), rel=1e-6)


def test_rates_lie_as_many_margins_apart_as_planted(rng: np.random.Generator) -> None:
    """Over the window that the drawn prompts choose, which the population shares."""
    drawn = middles(rng, 16, LAYERS, 1.0)
    curves, rows = population_of(drawn, halved=True)
    verdict = CLAIMS["mid-between"].evaluate(run_of(curves, rows, LAYERS))
    difference = verdict.estimates[0]
    assert difference.region is not None
    assert difference.value == pytest.approx(difference.region.high, rel=0.01)
    sample = CLAIMS["mid-between"].evaluate(run_of(drawn.sample, 16, LAYERS))
    assert sample.note == verdict.note  # one window


def test_a_share_of_ratios_is_the_planted_one(rng: np.random.Generator) -> None:
    values = alike(rng, 64, LAYERS, 1.0).population()["resid_post_norm"][:, 1:]
    assert (np.diff(values, axis=-1) > 0).mean() == pytest.approx(0.95, abs=0.01)


def test_a_true_effect_is_on_the_side_of_the_claim(rng: np.random.Generator) -> None:
    """Given all prompts, a claim says what was planted, but where shapes are jagged."""
    jagged = {"growth-exponential", "activation-rate", "horizon-decay", "virtual-weights"}
    slow = {"growth-distribution", "correlated-addition", "bos-anomaly", "growth-ratio-constant"}
    for case in CASES:
        if case.claim in jagged | slow or "remover" in case.name:
            continue
        size = next(s for s in case.sizes if applies(case, *s))
        for truth, outcome in ((TRUE, Outcome.SUPPORTED), (FALSE, Outcome.REFUTED)):
            if truth not in case.planted or case.claim in {"frobenius-expectation"}:
                continue
            drawn = case.draw(rng, *size, case.planted[truth])
            curves, rows = population_of(drawn, case.halved)
            if case.claim == "writes-persist":
                curves["head_projection"] = drawn.sample["head_projection"]
            verdict = CLAIMS[case.claim].evaluate(run_of(curves, rows, size[1], case.model))
            assert verdict.outcome is outcome, (case.name, truth, verdict)


def test_the_command_writes_its_section_and_repeats_itself(tmp_path: Path) -> None:
    options = ["--repetitions", "2", "--rule", "horizon-confounder", "--rule", "reading-writing"]
    pages, files = [], []
    for i in range(2):
        page, full = tmp_path / f"{i}.md", tmp_path / f"{i}.csv"
        found = CliRunner().invoke(main, [*options, "--page", str(page), "--full", str(full)])
        assert found.exit_code == 0, found.output
        pages.append(read_section("rules", page))
        files.append(list(csv.DictReader(full.read_text(encoding="utf-8").splitlines())))
    assert pages[0] == pages[1]
    assert "horizon-confounder" in pages[0]
    assert files[0] == files[1]
    assert {row["truth"] for row in files[0]} == {TRUE, FALSE, BOUNDARY}


def test_a_cell_comes_back_from_another_process() -> None:
    for case in CASES:
        cell = Cell(case, TRUE, 1.0, 16, LAYERS)
        assert pickle.loads(pickle.dumps(cell)) == cell


def test_a_rule_has_the_same_numbers_whatever_else_is_measured() -> None:
    case = case_of("bo-negligible")
    found = []
    with quickly():
        for others in (0, 1):
            for _ in range(others):
                simulate(Cell(case, FALSE, -0.5, 16, 12), 2, 0, 0)
            cell = simulate(Cell(case, BOUNDARY, 0.0, 16, 12), 6, 0, 2)
            found.append((cell.answers, cell.held))
    assert found[0] == found[1]


def test_an_unknown_rule_is_refused() -> None:
    found = CliRunner().invoke(main, ["--rule", "no-such-rule"])
    assert found.exit_code == 2
    assert "no such rule" in found.output


@pytest.mark.parametrize("name", ["basis-privileged-in-practice", "horizon-confounder"])
@pytest.mark.parametrize("truth", [TRUE, FALSE, BOUNDARY])
def test_no_rule_errs_grossly(name: str, truth: str) -> None:
    case = case_of(name)
    with quickly():
        cell = simulate(Cell(case, truth, case.planted[truth], 16, 12), 60, 0, 0)
    assert truth == TRUE or cell.share(Outcome.SUPPORTED) <= 0.15
    assert truth == FALSE or cell.share(Outcome.REFUTED) <= 0.15
    if truth != BOUNDARY:
        assert cell.share(Outcome.INCONCLUSIVE) <= 0.2


def test_jagged_straight_lines_are_hardly_ever_called_exponential() -> None:
    case = case_of("growth-exponential, linear growth")
    with quickly():
        cell = simulate(Cell(case, FALSE, 2.0, 16, 12), 60, 0, 0)
    assert cell.share(Outcome.SUPPORTED) <= 0.15
