"""Synthetic runs of every kind of curve, and what the report draws of them."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np

from residcheck.claim import Claim, Source
from residcheck.curves import Curve, Floats, ModelInfo, PromptInfo, Run
from residcheck.names import MATRICES, STATISTICS
from residcheck.report.chart import Chart, Map, Series
from residcheck.report.describe import legend
from residcheck.report.plots import draw, frames
from residcheck.report.series import chart
from residcheck.result import Judged, ModelResult
from residcheck.stats import Outcome
from residcheck.verdict import Figure, Verdict

LAYERS, HEADS, PROMPTS, DRAWS = 8, 3, 5, 32
WRITES = 2 * LAYERS + 1
SIZES = {
    "layer": LAYERS,
    "head": HEADS,
    "prompt": PROMPTS,
    "draw": DRAWS,
    "matrix": len(MATRICES),
    "neuron": 40,
    "write": WRITES,
    "read": 2 * LAYERS,
}
MAPS = {name: Figure((name,), kind="map") for name in ("write_share", "write_kept")}
SHARE = MAPS["write_share"]


def values_of(name: str, **sizes: int) -> Floats:
    """Positive noise of the curve's shape, the same on every call."""
    shape = [(SIZES | sizes)[dim] for dim in STATISTICS[name].dims]
    return np.exp(np.random.default_rng(7).normal(0.0, 0.3, shape))


def a_curve(name: str, values: Floats | None = None) -> Curve:
    statistic = STATISTICS[name]
    table = values_of(name) if values is None else values
    return Curve(name, statistic.dims, table, statistic.unit)


def a_run(*curves: Curve, id: str = "org/tiny") -> Run:
    text = dict.fromkeys(
        ("weights", "model_type", "norm", "activation", "dtype", "device", "backend"), "x"
    )
    model = ModelInfo(
        id=id,
        n_layers=LAYERS,
        d_model=8,
        n_heads=HEADS,
        d_mlp=40,
        norm_eps=0.0,
        parallel=False,
        gated=False,
        processing="raw",
        attention="",
        **text,
    )
    prompts = PromptInfo("a.txt", "ab", PROMPTS, 20, 4, "<s>")
    return Run(model, {}, prompts, {curve.name: curve for curve in curves})


def a_result(run: Run, figure: Figure | None) -> ModelResult:
    source = Source("On norms", "Nobody", 2023)
    claim = Claim("grows", "A", "It grows.", source, "", (), (), 1, 1, lambda run: None)
    verdict = Verdict("grows", run.model.id, Outcome.SUPPORTED, figure=figure)
    return ModelResult(run, (Judged(claim, verdict),))


def a_chart(figure: Figure, *curves: Curve) -> Chart:
    return chart(a_run(*curves), figure)


def drawn(shown: Chart, *others: Chart) -> ElementTree.Element:
    return ElementTree.fromstring(draw(shown, "k", frames([shown, *others])[0]))


def texts(svg: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in svg.iter("text")]


def keys(shown: Chart) -> list[str]:
    return [f"{key.text} {key.detail}".strip() for key in legend(shown)]


def paths_of(svg: ElementTree.Element, role: str) -> list[str]:
    return [e.get("d", "") for e in svg.iter("path") if f"var(--{role})" in e.get("style", "")]


def only(shown: Chart) -> Series:
    (series,) = shown.series
    return series


def the_map(shown: Chart) -> Map:
    assert shown.map is not None
    return shown.map
