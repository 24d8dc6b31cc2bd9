"""Plots over horizons: counted from 1, the half that says little shaded, fits beside them."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from horizon_runs import BASELINE, LAYERS, decay, horizon_run
from report_runs import a_curve, a_result, a_run, drawn, keys, only, paths_of, texts, values_of

from residcheck.curves import Curve
from residcheck.names import HORIZON
from residcheck.report import render_html
from residcheck.report.axis import Axis
from residcheck.report.describe import in_words, legend
from residcheck.report.series import chart
from residcheck.verdict import Figure, Trace

FITTED = Trace("fitted decay", tuple(decay()), "fitted")
NEAR_9 = Trace("published: near 9 at k = 1", (9.0,), "published")
LOSS = Figure(
    ("horizon_loss", "horizon_loss_from_middle"),
    log=False,
    fits=(FITTED, NEAR_9),
    level=(BASELINE, "baseline"),
    window=(10, 25, "published: steepest"),
)
BEYOND = "above half the depth: few layers are touched"


def test_horizons_are_counted_from_one() -> None:
    shown = chart(horizon_run(), LOSS)
    assert shown.axis == Axis("horizon", LAYERS, "layers")
    assert shown.axis.place(11) == "horizon 12"
    ticks = [(0.0, "1"), *((k - 1.0, str(k)) for k in range(5, LAYERS + 1, 5))]
    assert shown.axis.ticks(3.0) == ticks
    said = texts(drawn(shown))
    assert {"horizon k, in layers", "1", "5", "30", "nats"} <= set(said)
    assert "0" not in said[:7]


@pytest.mark.parametrize(("size", "ticks"), [(1, ["1"]), (4, ["1", "2", "3", "4"]), (48, None)])
def test_few_horizons_have_a_tick_each(size: int, ticks: list[str] | None) -> None:
    expected = ticks or ["1", "10", "20", "30", "40"]
    assert [text for _, text in Axis("horizon", size).ticks(3.0)] == expected


def test_the_loss_is_a_line_with_a_band_over_prompts() -> None:
    run = horizon_run()
    whole, upper = chart(run, LOSS).series
    assert whole.reading == "mean over ordinary tokens"
    np.testing.assert_allclose(whole.values, run["horizon_loss"].mean)
    np.testing.assert_allclose(whole.high, np.percentile(run["horizon_loss"].prompt_mean, 95, 0))
    assert len(upper.values) == LAYERS // 2
    assert whole.over == upper.over == "prompts"


def test_the_half_that_says_little_is_shaded_and_said() -> None:
    shown = chart(horizon_run(), LOSS)
    assert shown.beyond == LAYERS // 2
    (key,) = [key for key in legend(shown) if key.area == "phase"]
    assert key.text == BEYOND
    assert f"shaded: horizons 16-30, {BEYOND}" in in_words(shown)
    (area,) = paths_of(drawn(shown), "shade")
    left, right = re.findall(r"M ([\d.]+) .*?L ([\d.]+) ", area)[0]
    assert 0.4 < (float(right) - float(left)) / (400 * 0.85) < 0.52


def test_an_odd_depth_is_halved_downwards() -> None:
    assert chart(horizon_run(layers=7), LOSS).beyond == 3  # k = 4 is above 3.5


@pytest.mark.parametrize(
    ("fields", "beyond"),
    [
        ({"enforced": "from", "layer": 3}, 15),
        ({"enforced": "at", "layer": 3}, None),
        ({"enforced": "unembedding"}, None),
    ],
)
def test_where_all_horizons_touch_as_few_layers_none_is_shaded(
    fields: dict[str, object], beyond: int | None
) -> None:
    assert chart(horizon_run(**fields), LOSS).beyond == beyond  # type: ignore[arg-type]


def test_enforced_from_the_middle_no_horizon_is_beyond_it() -> None:
    shown = chart(horizon_run(), replace(LOSS, curves=("horizon_loss_from_middle",)))
    assert shown.beyond is None
    assert BEYOND not in keys(shown)
    assert only(shown).values.shape == (LAYERS // 2,)


def test_sublayers_are_counted_as_such() -> None:
    shown = chart(horizon_run(unit="sublayers"), LOSS)
    assert shown.axis.size == 2 * LAYERS
    assert shown.beyond == LAYERS
    assert "horizon k, in sublayers" in texts(drawn(shown))


def test_fits_the_baseline_and_a_published_window_are_told() -> None:
    shown = chart(horizon_run(), LOSS)
    assert keys(shown)[2:] == [
        "band 5th to 95th percentile of prompts",
        "fitted decay",
        "published: near 9 at k = 1",
        "baseline 3",
        "published: steepest horizons 10-25",
        BEYOND,
    ]
    assert len({f"{key.stroke} {key.area}" for key in legend(shown)[3:]}) == 5
    said = in_words(shown)
    assert "line fitted decay: from 9 at horizon 1 to 3 at horizon 30" in said
    assert "point published: near 9 at k = 1: 9 at horizon 1" in said
    assert "level: baseline = 3" in said
    assert "marked: published: steepest, horizons 10-25" in said
    assert "horizon_loss falls from 9" in said.partition(";")[0]
    svg = drawn(shown)
    assert svg.get("aria-label") == said
    dashed = [path for path in svg.iter("path") if "stroke-dasharray: 7" in path.get("style", "")]
    assert len(dashed) == 2  # both ends of the window


def test_a_fit_longer_than_the_axis_is_cut_and_one_with_gaps_is_broken() -> None:
    run = horizon_run(layers=10)
    values = (np.nan, *decay(40))
    shown = chart(run, replace(LOSS, fits=(replace(FITTED, values=values),)))
    (segment,) = shown.segments
    assert segment.values.shape == segment.entries.shape == (10,)
    assert "line fitted decay: from 9 at horizon 2 to" in in_words(shown)


@pytest.mark.parametrize("window", [(31, 40, "w"), (5, 3, "w")])
def test_a_window_outside_the_axis_is_not_marked(window: tuple[int, int, str]) -> None:
    assert chart(horizon_run(), replace(LOSS, window=window)).window is None


def test_the_baseline_curve_has_no_axis_and_is_left_out() -> None:
    run = horizon_run()
    both = chart(run, replace(LOSS, curves=("loss", "horizon_loss")))
    assert [series.name for series in both.series] == ["horizon_loss"]
    for kind in ("lines", "histogram"):
        alone = chart(run, Figure(("loss",), kind=kind))  # type: ignore[arg-type]
        assert alone.empty
    page = render_html([a_result(run, Figure(("loss",)))])
    assert "Nothing to draw" in page


def test_nothing_is_drawn_at_bos_where_nothing_predicts_it() -> None:
    shown = chart(horizon_run(), replace(LOSS, bos=True))
    assert not any(series.bos for series in shown.series)


def test_layers_and_horizons_do_not_share_a_plot() -> None:
    run = horizon_run()
    run = replace(run, curves={**run.curves, "b_O_norm": a_curve("b_O_norm")})
    shown = chart(run, replace(LOSS, curves=("horizon_loss", "b_O_norm")))
    assert only(shown).name == "horizon_loss"
    assert chart(run, replace(LOSS, curves=("b_O_norm",), fits=())).beyond is None


def test_fits_run_along_layers_too() -> None:
    run = replace(horizon_run(), curves={"b_O_norm": a_curve("b_O_norm")})
    fits = (Trace("a fit", tuple(values_of("b_O_norm")), "fitted"),)
    assert " at layer 0 to " in in_words(chart(run, Figure(("b_O_norm",), fits=fits)))


@pytest.mark.parametrize("kind", ["histogram", "map"])
def test_other_plots_count_horizons_from_one_too(kind: str) -> None:
    shown = chart(horizon_run(), Figure(("horizon_loss",), kind=kind))  # type: ignore[arg-type]
    assert "horizon k, in layers" in texts(drawn(shown))
    assert "horizon 1" in in_words(shown)
    assert "layer" not in in_words(shown).replace(BEYOND, "")


def test_the_page_says_how_horizons_were_taken() -> None:
    page = render_html([a_result(horizon_run(ablation="mean", enforced="from", layer=9), LOSS)])
    assert "horizons on 12 prompts" in page
    assert (
        "what is further back than k layers is replaced by its mean, from layer 9 on, "
        "with recomputed outputs" in page
    )
    assert "12 prompts, 72 tokens, sha256 cd" in page
    assert '<circle cx="14"' in page
    plain = render_html([a_result(a_run(), None)])
    assert "horizon" not in plain


def test_labels_of_fits_and_windows_are_escaped() -> None:
    bad = "<script>alert(1)</script>"
    figure = replace(LOSS, fits=(replace(FITTED, label=bad),), window=(1, 2, bad), level=(3.0, bad))
    run = horizon_run(id=bad)
    odd = Curve(bad, HORIZON["horizon_loss"].dims, run["horizon_loss"].values, bad)
    run = replace(run, curves={bad: odd})
    page = render_html([a_result(run, replace(figure, curves=(bad,)))])
    assert "<script" not in page
