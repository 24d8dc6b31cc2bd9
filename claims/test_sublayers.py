"""Family B: what attention and MLP add to the stream."""

from __future__ import annotations

from residcheck.claim import claim
from residcheck.curves import Run
from residcheck.stats import (
    change_point,
    correlated_addition,
    decide,
    normalised_input,
    same_rate,
    triangle_bound,
)
from residcheck.tolerances import tolerance
from residcheck.verdict import Figure, Finding

from .published import NORM_GROWTH, growth_phase


@claim(
    "sublayers-grow",
    family="B",
    statement="The outputs of attention and of the MLP both grow at the stream's rate.",
    source=NORM_GROWTH,
    published="GPT2-XL: 1.045 for both; attn_out falls off near layer 30",
    needs=("attn_out_norm", "mlp_out_norm", "resid_post_norm"),
)
def test_sublayers_grow(run: Run) -> Finding:
    """Difference of each output's log rate to the stream's over the phase's blocks: two
    one-sided tests against a margin of 11 % of the stream's log rate (0.005 at least). The layer at
    which a broken line through log attn_out bends is reported."""
    phase, unseen = growth_phase(run)
    stream = run["resid_post_norm"].prompt_log[unseen]
    parts = [
        same_rate(
            f"log rate of {name} minus the stream's",
            run[f"{name}_norm"].prompt_log[unseen],
            stream,
            phase.inside,
        )
        for name in ("attn_out", "mlp_out")
    ]
    bend = change_point(run["attn_out_norm"].prompt_log.mean(axis=0))
    note = f"{phase}" + (f"; attn_out bends at layer {bend}" if bend is not None else "")
    figure = Figure(("resid_post_norm", "attn_out_norm", "mlp_out_norm"), phase=phase)
    return Finding(decide(*parts, note=note), figure)


@claim(
    "ln-input-norm",
    family="B",
    statement="Whatever the stream's norm, each sublayer reads a vector of norm sqrt(d_model).",
    source=NORM_GROWTH,
    published="exact",
    needs=("ln1_normalized_norm", "resid_pre_norm"),
    uses=("ln2_normalized_norm", "resid_mid_norm"),
    prompts=1,
    layers=1,
)
def test_ln_input_norm(run: Run) -> Finding:
    """Exact, at every token and layer: the norm of what the norm layer gives out, its gain
    and bias undone, against sqrt(d_model v / (v + epsilon)), v the mean square of what it
    takes in."""
    model = run.model
    second = "resid_pre_norm" if model.parallel else "resid_mid_norm"
    streams = {"ln1_normalized_norm": "resid_pre_norm", "ln2_normalized_norm": second}
    measured = {name: run[name].values for name in streams if name in run.curves}
    decision = normalised_input(
        measured,
        {name: run[streams[name]].values for name in measured},
        model.d_model,
        model.norm_eps_of_layers,
        tolerance(model.dtype, "float32").token,  # norms compute in float32 at most
    )
    level = (model.d_model**0.5, "sqrt(d_model)")
    return Finding(decision, Figure(tuple(measured), log=False, level=level))


@claim(
    "triangle-bound",
    family="B",
    statement="The growth of the stream over a block is at most what the norms of its two "
    "outputs allow: g - 1 <= (|attn_out| + |mlp_out|) / |resid_pre|.",
    source=NORM_GROWTH,
    published="appendix 1, a theorem",
    needs=("resid_pre_norm", "attn_out_norm", "mlp_out_norm", "resid_post_norm"),
    prompts=1,
    layers=1,
)
def test_triangle_bound(run: Run) -> Finding:
    """Exact, at every token and layer, BOS included; the slack is reported. One violation
    beyond rounding refutes, and means that a hook is broken."""
    sites = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    norms = {site: run[f"{site}_norm"].values for site in sites}
    decision = triangle_bound(norms, tolerance(run.model.dtype).identity)
    return Finding(decision, Figure(("attn_out_norm", "mlp_out_norm", "resid_pre_norm")))


@claim(
    "correlated-addition",
    family="B",
    statement="Uncorrelated addition explains nowhere near the growth: the sublayers' "
    "outputs are positively correlated with the stream, far from perfectly.",
    source=NORM_GROWTH,
    published="appendix 2, GPT2-XL: figures of the two ends of the range",
    needs=(
        "resid_pre_norm",
        "resid_post_norm",
        "attn_out_norm",
        "mlp_out_norm",
        "attn_out_cosine",
        "mlp_out_cosine",
    ),
    uses=("resid_mid_norm",),
)
def test_correlated_addition(run: Run) -> Finding:
    """Over the phase's blocks: the growth that outputs uncorrelated with the stream would give, as
    a share of the actual growth, must be below a half, and the mean cosine of each output
    with the stream between 0 and 0.9."""
    phase, unseen = growth_phase(run)
    sites = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
    norms = {s: run[f"{s}_norm"].ordinary[unseen] for s in sites if f"{s}_norm" in run.curves}
    cosines = {s: run[f"{s}_cosine"].ordinary[unseen] for s in ("attn_out", "mlp_out")}
    decision = correlated_addition(norms, cosines, phase.inside)
    figure = Figure(("attn_out_cosine", "mlp_out_cosine"), log=False, phase=phase)
    return Finding(decision.with_note(f"{phase}"), figure)
