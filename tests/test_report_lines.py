"""Figures of lines: heads, draws, matrices and writes beside layers; and the page around them."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from report_runs import (
    DRAWS,
    HEADS,
    LAYERS,
    PROMPTS,
    SHARE,
    SIZES,
    a_chart,
    a_curve,
    a_result,
    a_run,
    drawn,
    keys,
    only,
    paths_of,
    texts,
    values_of,
)

from residcheck.curves import TOKEN_DIMS, Curve
from residcheck.names import MATRICES
from residcheck.report import render_html, render_markdown
from residcheck.report.axis import Axis
from residcheck.report.describe import in_words, legend
from residcheck.report.outline import number
from residcheck.report.plots import frames
from residcheck.report.scales import Limits
from residcheck.stats import Phase
from residcheck.verdict import Figure


def test_heads_are_grey_lines_behind_their_geometric_mean() -> None:
    curve = a_curve("ov_frobenius")
    tokens = Curve("attn_out_norm", TOKEN_DIMS, np.ones((PROMPTS, 4, LAYERS)), "norm")
    shown = a_chart(Figure(("ov_frobenius", "attn_out_norm")), curve, tokens)
    np.testing.assert_allclose(shown.series[0].values, np.exp(np.log(curve.values).mean(0)))
    assert np.array_equal(shown.series[0].strands, curve.values)
    svg = drawn(shown)
    (strands,) = paths_of(svg, "strand")
    assert strands.count("M") == HEADS
    order = [e.get("style", "") for e in svg.iter("path") if "stroke-width" in e.get("style", "")]
    roles = [re.findall(r"stroke: var\(--(strand|s0|s1)\)", style) for style in order]
    assert [role for found in roles for role in found] == ["strand", "s0", "s1"]
    assert keys(shown)[:3] == [
        f"ov_frobenius geometric mean over {HEADS} heads",
        "attn_out_norm geometric mean over ordinary tokens",
        "grey: each head of ov_frobenius",
    ]
    low, high = (number(float(found)) for found in (curve.values.min(), curve.values.max()))
    said = rf"the {HEADS} heads of ov_frobenius lie between {low} \(head \d, layer \d\) and {high}"
    assert re.search(said, in_words(shown))


def test_heads_over_prompts_are_averaged_first() -> None:
    curve = a_curve("head_projection", values_of("head_projection") - 1)
    series = only(a_chart(Figure(("head_projection",), log=False), curve))
    np.testing.assert_allclose(series.strands, curve.values.mean(0))
    np.testing.assert_allclose(series.values, curve.values.mean((0, 1)))
    assert series.low is None
    assert series.reading == f"mean over {HEADS} heads and {PROMPTS} prompts"
    assert series.strand_reading == f"mean over {PROMPTS} prompts"


def test_layers_without_attention_leave_gaps_in_the_heads() -> None:
    values = values_of("ov_frobenius")
    values[:, ::2] = np.nan
    svg = drawn(a_chart(Figure(("ov_frobenius",)), a_curve("ov_frobenius", values)))
    dots = [use for use in svg.iter("use") if "strand" in use.get("style", "")]
    assert len(dots) == HEADS * LAYERS // 2


@pytest.mark.parametrize(
    ("name", "over"),
    [("ov_random_norm", "draw"), ("neuron_cosine", "neuron"), ("write_removal", "prompt")],
)
def test_sampled_axes_become_a_mean_with_a_band(name: str, over: str) -> None:
    curve = a_curve(name)
    shown = a_chart(Figure((name,)), curve)
    series = only(shown)
    np.testing.assert_allclose(series.values, curve.values.mean(0))
    np.testing.assert_allclose([series.low, series.high], np.percentile(curve.values, (5, 95), 0))
    assert keys(shown) == [
        f"{name} mean over {SIZES[over]} {over}s",
        f"band 5th to 95th percentile of {over}s",
    ]
    assert number(float(curve.values.mean(0)[0])) in in_words(shown)


def test_each_matrix_has_a_line_and_a_missing_one_none() -> None:
    values = values_of("frobenius_gaussian")
    values[:, MATRICES.index("W_gate")] = np.nan
    shown = a_chart(Figure(("frobenius_gaussian",)), a_curve("frobenius_gaussian", values))
    there = [name for name in MATRICES if name != "W_gate"]
    assert [s.name for s in shown.series] == [f"frobenius_gaussian of {name}" for name in there]
    np.testing.assert_allclose(shown.series[-1].values, values[:, -1].mean(0))
    assert {s.reading for s in shown.series} == {f"mean over {DRAWS} draws"}
    assert len({str(key.stroke) for key in legend(shown)}) == len(there)
    assert "W_gate" not in in_words(shown)


def test_a_write_axis_is_read_in_layers() -> None:
    shown = a_chart(Figure(("write_removal",), log=False), a_curve("write_removal"))
    assert shown.axis.ticks(3.0) == [(0.0, "embed")] + [
        (2 * layer + 1.5, str(layer)) for layer in range(1, LAYERS)
    ]
    assert "write, by layer (attn_out, mlp_out)" in texts(drawn(shown))
    assert " at the embedding to " in in_words(shown)
    assert in_words(shown).partition(", with")[0].endswith(f" at mlp_out of layer {LAYERS - 1}")


def test_a_phase_is_not_shaded_where_there_are_no_layers() -> None:
    figure = Figure(("write_removal",), phase=Phase(2, 5, "published"))
    assert a_chart(figure, a_curve("write_removal")).phase is None


def test_curves_along_another_axis_are_left_out() -> None:
    figure = Figure(("b_O_norm", "write_removal"))
    shown = a_chart(figure, a_curve("b_O_norm"), a_curve("write_removal"))
    assert (only(shown).name, shown.axis) == ("b_O_norm", Axis("layer", LAYERS))


@pytest.mark.parametrize(
    ("axis", "index", "said"),
    [
        (Axis("write", 5), 0, "the embedding"),
        (Axis("write", 5), 4, "mlp_out of layer 1"),
        (Axis("write", 4), 0, "attn_out of layer 0"),
        (Axis("read", 4), 3, "MLP of layer 1"),
        (Axis("matrix", 7), 4, "W_in"),
        (Axis("matrix", 2), 1, "matrix 1"),
        (Axis("pass", 2), 1, "pass 1"),
    ],
)
def test_places_on_an_axis_in_words(axis: Axis, index: int, said: str) -> None:
    assert axis.place(index) == said


def test_plots_keep_a_common_axis_where_it_is_logarithmic() -> None:
    low, high = (a_curve("b_O_norm", factor * values_of("b_O_norm")) for factor in (1, 100))
    line = Figure(("b_O_norm",))
    first, second = frames([a_chart(line, low), a_chart(line, high)])
    assert isinstance(first, Limits)
    assert first == second
    flat = replace(line, log=False)
    assert len(set(frames([a_chart(flat, low), a_chart(flat, high)]))) == 2


def test_the_page_escapes_and_repeats_itself() -> None:
    name = "<script>alert(1)</script>"
    odd = Curve(name, ("prompt", "head", "layer"), values_of("head_projection"), name)
    result = a_result(a_run(odd, id=name), Figure((name,), kind="map"))
    page = render_html([result])
    assert name not in page
    assert page == render_html([result])
    assert not re.search(r"""(?:href|src)=["'](?!#)|@import|url\((?!#)""", page)


def test_the_summary_knows_nothing_of_figures() -> None:
    run = a_run(a_curve("write_share"))
    assert render_markdown([a_result(run, SHARE)]) == render_markdown([a_result(run, None)])
