"""Family C: is the growth in the attention's weights?"""

from __future__ import annotations

import numpy as np

from residcheck.claim import claim
from residcheck.curves import Run
from residcheck.names import MATRICES
from residcheck.stats import (
    decide,
    frobenius_theorem,
    larger_than_real,
    negligible_beside,
    precision_of,
    reading_and_writing,
    weights_track,
)
from residcheck.verdict import Figure, Finding

from .published import BASIC_FACTS, NORM_GROWTH, facts_about, growth_phase

READING = ("W_Q_frobenius", "W_K_frobenius", "W_in_frobenius")
WRITING = ("W_O_frobenius", "W_out_frobenius")


@claim(
    "ov-tracks-attn-out",
    family="C",
    statement="The Frobenius norms of the heads' W_OV grow exponentially, at the rate of attn_out.",
    source=NORM_GROWTH,
    published="GPT2-XL, 25 heads: one figure with both",
    needs=("ov_frobenius", "attn_out_norm", "resid_post_norm"),
    uses=("ov_frobenius_raw",),
)
def test_ov_tracks_attn_out(run: Run) -> Finding:
    """Log rate of the mean over heads minus that of attn_out over the phase's blocks: two
    one-sided tests against 11 % of attn_out's log rate (0.005 at least). The correlation
    of the logs is reported and decides nothing: growing curves correlate."""
    phase, unseen = growth_phase(run)
    mean = run["ov_frobenius"].double.mean(axis=0)
    decision = weights_track(np.log(mean), run["attn_out_norm"].prompt_log[unseen], phase.inside)
    figure = Figure(("ov_frobenius", "attn_out_norm"), phase=phase)
    return Finding(decision.with_note(f"{phase}"), figure)


@claim(
    "bo-negligible",
    family="C",
    statement="The attention's output bias is negligible beside attn_out, but for the last layers.",
    source=NORM_GROWTH,
    published="GPT2-XL: the bias matters in the final layers only",
    needs=("b_O_norm", "attn_out_norm"),
)
def test_bo_negligible(run: Run) -> Finding:
    """Value biases folded in. A bias is small where adding it, across, changes the norm of
    attn_out by less than 5 %: a ratio below 0.32. It must be so in 90 % of the layers, the
    last tenth of them left out."""
    bias = run["b_O_norm"].double
    tiny = np.finfo(np.float64).tiny  # a bias of zeros
    decision = negligible_beside(np.log(bias + tiny), run["attn_out_norm"].prompt_log)
    return Finding(decision, Figure(("b_O_norm", "attn_out_norm")))


@claim(
    "ov-random-input",
    family="C",
    statement="The sum of all heads' W_OV x for a normalised Gaussian x is larger than attn_out.",
    source=NORM_GROWTH,
    published="GPT2-XL: about 5 times",
    needs=("ov_random_norm", "attn_out_norm", "resid_post_norm"),
)
def test_ov_random_input(run: Run) -> Finding:
    """Geometric mean over the phase's blocks of the ratio of geometric means: above 1, or where
    a factor was published within 0.5 of it. Under a norm after the attention, both sides
    are what it lets through."""
    phase, unseen = growth_phase(run)
    draws = np.log(run["ov_random_norm"].double)
    factor = facts_about(run).ov_random_factor
    real = run["attn_out_norm"].prompt_log[unseen]
    decision = decide(larger_than_real("ratio to attn_out", draws, real, phase.inside, factor))
    figure = Figure(("ov_random_norm", "attn_out_norm"), phase=phase)
    return Finding(decision.with_note(f"{phase}; {precision_of(draws)}"), figure)


@claim(
    "frobenius-expectation",
    family="C",
    statement="The Frobenius norm of W is the root mean square of |Wx| over Gaussian x.",
    source=NORM_GROWTH,
    published='footnote 5: "maybe this is a theorem?"',
    needs=("frobenius_gaussian", "frobenius_normalized"),
    prompts=1,
    layers=1,
)
def test_frobenius_expectation(run: Run) -> Finding:
    """It is a theorem: E|Wx|^2 = |W|_F^2 where E[x x^T] is the identity; for x normalised to
    mean 0 and variance 1 it is d/(d-1) (|W|_F^2 - |Wu|^2), u the constant unit vector. Every
    matrix of every layer must agree with it up to the sampling error of its draws (chance
    of any failing: 1 in 10,000)."""
    kinds = {"Gaussian": "frobenius_gaussian", "normalised": "frobenius_normalized"}
    parts = {kind: run[name].double for kind, name in kinds.items()}
    figure = Figure(tuple(kinds.values())[:1], log=False, level=(1.0, "theorem"))
    return Finding(frobenius_theorem(parts), figure)


@claim(
    "reading-writing",
    family="C",
    statement="Writing weights (W_O, W_out) grow through the network; reading weights (W_Q, "
    "W_K, W_in) stay about constant.",
    source=BASIC_FACTS,
    published="GPT-2 models: figures of the norms per layer",
    needs=(*READING, *WRITING),
    uses=tuple(f"{name}_frobenius_raw" for name in MATRICES),
    prompts=1,
)
def test_reading_writing(run: Run) -> Finding:
    """Log rates over all layers (Theil-Sen, intervals over layers that allow for neighbours
    that are alike), of folded weights: those of writing weights above 0, those of reading
    weights at most half of the mean of these, up or down. The weights as stored are reported
    beside them."""

    def logs(names: tuple[str, ...]) -> dict[str, np.ndarray]:
        found = {n: run[n].double for n in names if n in run.curves}
        return {name.partition("_frobenius")[0]: np.log(v) for name, v in found.items()}

    stored = logs(tuple(f"{name}_raw" for name in (*READING, *WRITING)))
    decision = reading_and_writing(logs(READING), logs(WRITING), stored)
    return Finding(decision, Figure((*READING, *WRITING)))
