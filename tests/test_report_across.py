"""Several models' horizons beside growth and depth: page, summary and terminal say the same."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest
from horizon_runs import beside_growth
from report_runs import texts

from residcheck.console import show_horizons
from residcheck.report import render_html, render_markdown
from residcheck.report.outline import outline
from residcheck.report.plots import draw_models
from residcheck.report.scatter import across_models
from residcheck.result import Failure, ModelResult
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


def test_models_are_points_with_their_intervals() -> None:
    scatters = across_models(outline(FOUR))
    (by_rate,) = scatters  # these have no claim about growth alone
    assert (by_rate.across, by_rate.up) == ("growth rate per layer", "effective horizon, in layers")
    assert [point.number for point in by_rate.points] == [1, 2, 3, 4]
    assert str(by_rate.points[0].across) == "1.08 [1.079, 1.081]"
    page = render_html(FOUR)
    assert page.count('<section aria-labelledby="models">') == 1
    assert "2 org/b <" in page
    svg = ElementTree.fromstring(draw_models(by_rate, "k"))
    assert {"1", "2", "3", "4", by_rate.up, by_rate.across} <= set(texts(svg))
    assert "3 org/c: 21 [21, 21] at 1.05 [1.049, 1.051]" in svg.get("aria-label", "")


def test_rates_are_drawn_against_depth_where_two_are_known() -> None:
    found = [with_growth(result) for result in FOUR[:2]]
    by_depth, by_rate = across_models(outline(found))
    assert [(p.across.value, p.up.value) for p in by_depth.points] == [(12, 1.08), (24, 1.06)]
    assert (by_depth.across, by_depth.up) == ("layers", "growth rate per layer")
    assert len(by_rate.points) == 2
    assert across_models(outline(found[:1])) == []
    assert "Models beside each other" not in render_html(found[:1])


def with_growth(result: ModelResult) -> ModelResult:
    """The same with a verdict on growth, of the same rate."""
    (judged,) = result.judged
    rate = next(e for e in judged.verdict.estimates if e.name == "rate per layer")
    claim = replace(judged.claim, id="growth-exponential")
    verdict = replace(judged.verdict, claim=claim.id, estimates=(rate,))
    return replace(result, judged=(judged, replace(judged, claim=claim, verdict=verdict)))


def test_what_could_not_be_measured_is_named_and_escaped() -> None:
    failures = [Failure("org/<x>", "it <b>broke</b> | here", "look <there>")]
    page, summary = render_html(FOUR[:1], failures), render_markdown(FOUR[:1], failures)
    assert "<b>org/&lt;x&gt;</b><p>it &lt;b&gt;broke&lt;/b&gt; | here" in page
    assert "look &lt;there&gt;" in page
    line = r"- **not measured**: org/&lt;x&gt;: it &lt;b&gt;broke&lt;/b&gt; \| here"
    assert line in summary.splitlines()
    nothing = render_html([], failures)
    assert "Not measured" in nothing
    assert "No claim was judged." in nothing


def test_names_of_models_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    bad = "<script>[bold]|*x*"
    page, summary, terminal = said([FOUR[0], beside_growth(bad, 12, 1.1, 5.0)], capsys)
    assert "<script" not in page
    assert "<script" not in summary
    assert r"\[bold\]\|\*x\*" in summary
    assert bad in terminal
