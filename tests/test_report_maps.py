"""Maps: the colour of every cell, what the colours are worth, and what is said of them."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from report_runs import (
    LAYERS,
    MAPS,
    PROMPTS,
    SHARE,
    WRITES,
    a_chart,
    a_curve,
    a_result,
    a_run,
    drawn,
    texts,
    the_map,
    values_of,
)

from residcheck.curves import Curve, Floats
from residcheck.report import render_html
from residcheck.report.axis import Axis
from residcheck.report.chart import Chart, Map
from residcheck.report.describe import in_words, legend
from residcheck.report.draw_map import shades
from residcheck.report.outline import number
from residcheck.report.plots import draw, frames
from residcheck.report.scales import Scale, common_scale
from residcheck.report.series import chart
from residcheck.verdict import Figure


def cells(svg: ElementTree.Element, size: tuple[int, int]) -> list[list[str]]:
    """The colour of each cell, read back from the paths; "" where none is drawn."""
    grid = [[""] * size[1] for _ in range(size[0])]
    for path in next(svg.iter("g")).find("g") or []:
        x = y = 0
        for move, down, width, back in re.findall(
            r"m(-?\d+) ?(-?\d+)h(\d+)v1h(-\d+)", path.get("d", "")
        ):
            x, y = x + int(move), y + int(down)
            for column in range(x, x + int(width)):
                assert not grid[size[0] - 1 - y][column]
                grid[size[0] - 1 - y][column] = path.get("fill", "")
            y += 1
            assert int(back) == -int(width)
    return grid


def triangle(values: Floats) -> Floats:
    """What the recorder leaves: NaN where nothing is written yet."""
    written = np.arange(values.shape[-2])[:, None] <= 2 * np.arange(values.shape[-1])
    return np.where(written, values, np.nan)


@pytest.mark.parametrize("name", MAPS)
def test_every_cell_of_a_map_has_the_colour_of_its_mean(name: str) -> None:
    values = triangle(values_of(name) - (name == "write_kept"))
    shown = a_chart(MAPS[name], a_curve(name, values))
    mean = values.mean(0)
    np.testing.assert_allclose(the_map(shown).values, mean)
    scale = common_scale([shown])
    palette = [*shades(scale.steps), ""]
    expected = [[palette[step] for step in row] for row in scale.colours(mean)]
    assert cells(drawn(shown), (WRITES, LAYERS)) == expected
    assert expected[-1] == [""] * LAYERS
    assert len({cell for row in expected for cell in row}) > 5


@pytest.mark.parametrize("name", MAPS)
def test_a_map_is_told_in_numbers(name: str) -> None:
    values = triangle(values_of(name))
    values[:, 3, 4], values[:, 6, 5] = 90.0, 0.001
    shown = a_chart(MAPS[name], a_curve(name, values))
    mean = values.mean(0)
    assert in_words(shown) == (
        f"map of {name} over {WRITES} writes by {LAYERS} layers; "
        "the smallest value is 0.001 (mlp_out of layer 2, layer 5), "
        "the largest 90 (attn_out of layer 1, layer 4); "
        f"the median of all cells is {number(float(np.nanmedian(mean)))}; "
        f"{np.isnan(mean).sum()} of {mean.size} cells are empty."
    )
    assert drawn(shown).get("aria-label") == in_words(shown)
    (key,) = legend(shown)
    assert key.text == name
    assert f"mean over {PROMPTS} prompts, from 0.001 to 90;" in key.detail
    assert "attn_out of a layer is below its mlp_out; empty: no value" in key.detail


def test_virtual_weights_say_what_writes_and_what_reads() -> None:
    figure = Figure(("virtual_weights",), kind="map")
    values = values_of("virtual_weights", write=2 * LAYERS)
    shown = a_chart(figure, a_curve("virtual_weights", values))
    said = texts(drawn(shown))
    assert {"layer that writes", "layer that reads", "ratio, log scale"} <= set(said)
    assert "embed" not in said
    assert "its attention left of its MLP" in legend(shown)[0].detail
    assert "empty" not in in_words(shown) + legend(shown)[0].detail


def test_colours_are_logarithmic_for_ratios_and_norms_only() -> None:
    assert common_scale([a_chart(SHARE, a_curve("write_share"))]).log
    assert not a_chart(MAPS["write_kept"], a_curve("write_kept")).log
    assert not a_chart(replace(SHARE, log=False), a_curve("write_share")).log


def test_all_and_nothing_are_edges_between_colours_and_written_beside_them() -> None:
    values = triangle(values_of("write_kept") - 0.5)
    values[:, :4, 4], values[:, :4, 5] = 40.0, -30.0
    shown = a_chart(MAPS["write_kept"], a_curve("write_kept", values))
    scale = common_scale([shown])
    assert {0.0, 1.0} <= set(scale.ticks)
    np.testing.assert_allclose(scale.position(np.array([0.0, 1.0])) % 1, 0, atol=1e-9)
    below, zero, above, one = scale.colours(np.array([-0.01, 0.0, 0.99, 1.0])).tolist()
    assert below < zero < above < one
    assert {"0", "1"} <= set(texts(drawn(shown)))


def test_a_few_giants_leave_the_others_their_colours() -> None:
    values = np.random.default_rng(0).uniform(0.0, 1.0, (20, 20))
    values[3, 4] = 1e6
    shown = Chart(
        False, "cosine", Axis("layer", 20), map=Map("x", "", "", values, Axis("head", 20))
    )
    scale = common_scale([shown])
    assert (scale.below, scale.above) == (False, True)
    assert len(set(scale.colours(values).ravel().tolist())) > 8
    assert scale.colours(values)[3, 4] == scale.steps - 1
    tips = [e for e in drawn(shown).iter("path") if e.get("d", "").startswith("M0 0L.5")]
    assert [tip.get("fill") for tip in tips] == shades(scale.steps)[-1:]


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("value", [1.0, 0.3, 1e-9, 1e9])
def test_a_constant_map_can_be_drawn(log: bool, value: float) -> None:
    values = np.full((3, 4), value)
    shown = Chart(log, "ratio", Axis("layer", 4), map=Map("x", "", "", values, Axis("head", 3)))
    assert {cell for row in cells(drawn(shown), (3, 4)) for cell in row} <= set(
        shades(common_scale([shown]).steps)
    )


def test_zeros_have_no_place_among_logarithmic_colours() -> None:
    values = values_of("write_share")
    values[:, 2, 3] = 0.0
    shown = a_chart(SHARE, a_curve("write_share", values))
    assert np.argwhere(np.isnan(the_map(shown).values)).tolist() == [[2, 3]]
    assert legend(shown)[0].detail.endswith("empty: no value above 0")
    assert in_words(shown).endswith(f"1 of {WRITES * LAYERS} cells is empty.")


@pytest.mark.parametrize(
    ("figure", "curve"),
    [
        (SHARE, a_curve("write_share", np.full((PROMPTS, WRITES, LAYERS), np.nan))),
        (Figure(("b_O_norm",), kind="map"), a_curve("b_O_norm")),
        (Figure(("frobenius_gaussian",)), None),
    ],
)
def test_nothing_to_draw_is_said(figure: Figure, curve: Curve | None) -> None:
    run = a_run(curve) if curve else a_run()
    assert "Nothing to draw: no finite value." in render_html([a_result(run, figure)])


@pytest.mark.parametrize("size", [(97, 48), (96, 96)])
def test_a_map_of_noise_stays_small(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).uniform(0.0, 1.0, size)
    if size[0] == size[1]:
        noise[np.tril_indices(size[0])] = np.nan
    shown = Chart(
        False, "ratio", Axis("layer", size[1]), map=Map("x", "", "", noise, Axis("write", size[0]))
    )
    text = draw(shown, "k", common_scale([shown]))
    assert len(text) < 60_000
    assert len(next(ElementTree.fromstring(text).iter("g")).find("g") or []) <= 20


def test_maps_of_several_models_have_the_same_colours() -> None:
    small, large = values_of("write_share"), 100 * values_of("write_share")
    runs = [a_run(a_curve("write_share", v), id=f"m{i}") for i, v in enumerate((small, large))]
    first, second = frames([chart(run, SHARE) for run in runs])
    assert isinstance(first, Scale)
    assert first == second
    spread = np.array([small.mean(0).min(), large.mean(0).max()])
    assert first.colours(spread).tolist() == [0, first.steps - 1]


def test_ticks_stand_at_the_cells_they_name() -> None:
    svg = drawn(a_chart(SHARE, a_curve("write_share")))
    cell, bar = (
        [float(part) for part in re.findall(r"[\d.]+", g.get("transform", ""))]
        for g in svg.iter("g")
        if "transform" in g.attrib
    )
    left, top, wide, high = cell
    place = {
        text.text: (float(text.get("x", 0)), float(text.get("y", 0))) for text in svg.iter("text")
    }
    baseline = place["embed"][1] - (top + (WRITES - 0.5) * high)
    assert 3 < baseline < 6
    # Upwards: attn_out and mlp_out of the last layer are the two rows on top.
    assert place[str(LAYERS - 1)][1] == pytest.approx(top + high + baseline, abs=0.02)
    across = [e for e in svg.iter("text") if e.text == "3" and "middle" in e.get("style", "")]
    assert float(across[0].get("x", 0)) == pytest.approx(left + 3.5 * wide, abs=0.02)
    scale = common_scale([a_chart(SHARE, a_curve("write_share"))])
    up = (scale.steps - float(scale.position(1.2))) * bar[3]
    assert place["1.2"][1] == pytest.approx(bar[1] + up + baseline, abs=0.02)
