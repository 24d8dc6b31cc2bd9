"""Several models' horizons beside growth and depth: page, summary and terminal say the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
from horizon_runs import beside_growth

from residcheck.console import show_horizons
from residcheck.report import render_html, render_markdown
from residcheck.report.outline import outline
from residcheck.result import ModelResult
from residcheck.stats.horizon_rules import MIN_MODELS, horizon_against

TITLE = "Horizon, growth and depth"
FOUR = [
    beside_growth("org/a", 12, 1.08, 11.0),
    beside_growth("org/b", 24, 1.06, 18.0),
    beside_growth("org/c", 30, 1.05, 21.0),
    beside_growth("org/d", 48, 1.04, 25.0),
]


def said(results: list[ModelResult], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The page, the summary, and what the terminal shows."""
    show_horizons(results)
    return [render_html(results), render_markdown(results), capsys.readouterr().out]


def test_each_model_has_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    page, summary, terminal = said(FOUR[:2], capsys)
    for text in (page, summary, terminal):
        assert TITLE in text
        for part in ("org/a", "org/b", "1.08", "11 [11, 11]", "0.75"):
            assert part in text.replace("\\", "")
        assert f"{MIN_MODELS - 2} more are needed" in text
    row = r"| org/b | 24 | 1.06 \[1.059, 1.061\] | 18 \[18, 18\] | 0.75 \[0.749, 0.751\] |"
    assert row in summary.splitlines()
    assert '<th scope="row">org/a</th><td>12</td><td>1.08 [1.079, 1.081]</td>' in page


def test_enough_models_are_correlated(capsys: pytest.CaptureFixture[str]) -> None:
    expected = horizon_against([1.08, 1.06, 1.05, 1.04], [12, 24, 30, 48], [11, 18, 21, 25])
    assert expected.correlations[0].value == pytest.approx(-1)
    for text in said(FOUR, capsys):
        flat = " ".join(text.split())
        assert "effective horizon and rate: -1.00 (p = " in flat
        assert "its share of the depth and depth: -1.00" in flat
        assert "Rank correlations over 4 models: " in flat
        assert "needed" not in flat


def test_one_model_or_another_claim_is_not_compared(capsys: pytest.CaptureFixture[str]) -> None:
    (judged,) = FOUR[1].judged
    other = replace(judged, verdict=replace(judged.verdict, claim="horizon-decay"))
    empty = replace(judged, verdict=replace(judged.verdict, estimates=()))
    for second in ([], [other], [empty]):
        results = [FOUR[0], *(replace(FOUR[1], judged=(judged,)) for judged in second)]
        assert outline(results).horizons is None
        page, summary, terminal = said(results, capsys)
        assert TITLE not in page + summary
        assert terminal == ""


def test_horizons_in_sublayers_are_shares_of_all_sublayers() -> None:
    results = []
    for result in FOUR:
        assert result.run.horizon is not None
        horizon = replace(result.run.horizon, unit="sublayers")
        results.append(replace(result, run=replace(result.run, horizon=horizon)))
    found = outline(results).horizons
    assert found is not None
    assert found.together == horizon_against(
        [1.08, 1.06, 1.05, 1.04], [24, 48, 60, 96], [11, 18, 21, 25]
    )


def test_names_of_models_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    bad = "<script>[bold]|*x*"
    page, summary, terminal = said([FOUR[0], beside_growth(bad, 12, 1.1, 5.0)], capsys)
    assert "<script" not in page
    assert "<script" not in summary
    assert r"\[bold\]\|\*x\*" in summary
    assert bad in terminal
