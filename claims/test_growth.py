"""Family A: the residual stream grows exponentially with depth."""

from __future__ import annotations

import numpy as np

from residcheck.claim import claim
from residcheck.curves import Run
from residcheck.stats import (
    Estimate,
    Phase,
    at_most,
    bos_anomaly,
    decide,
    distribution_moves_up,
    expected_shape,
    exponential_phase,
    published_rate,
    ratio_constant,
    same_rate,
)
from residcheck.tolerances import tolerance
from residcheck.verdict import Figure, Finding, Line

from .published import NORM_GROWTH, facts_about, growth_phase


@claim(
    "growth-exponential",
    family="A",
    statement="The norm of the residual stream grows exponentially with depth over an "
    "extended phase.",
    source=NORM_GROWTH,
    published="GPT2-XL, layers 5-41: a factor of about 1.045 per layer",
    needs=("resid_post_norm",),
)
def test_growth_exponential(run: Run) -> Finding:
    """Log-linear fit of the norm over the phase; interval by bootstrap over prompts. With
    a published rate: equivalence to it within 0.005. Without: on half of the prompts a window
    of at least half the layers is chosen. Of those in which the exponential beats linear,
    square-root and power-law growth by 6 in AIC (of all layers; by 12 of half of them),
    fitted to the log-ratios of neighbouring layers, it is the one that describes all of these
    best by BIC, with a rate of its own before and after it. On the other half of the prompts
    the exponential must win again, by 2, and grow. It is refuted if the norm does not grow
    or another shape wins by 2."""
    norm = run["resid_post_norm"]
    phase, unseen = growth_phase(run)
    rate = facts_about(run).rate
    if rate is not None:
        decision = published_rate(norm.prompt_log[unseen], phase, rate)
    else:
        decision = exponential_phase(norm.prompt_log[unseen], phase)
    fitted = _line("fitted", decision.estimates[0], norm.prompt_log[unseen], phase)
    published = Line(
        "published 1.045", np.log(1.045), _anchor(norm.prompt_log, 1.045, phase), "published"
    )
    figure = Figure(("resid_post_norm",), phase=phase, lines=(fitted, published), bos=True)
    return Finding(decision.with_note(f"{phase}"), figure)


@claim(
    "growth-shape",
    family="A",
    statement="Very small GPT-2s grow super-exponentially, most models exponentially for "
    "long; some GPT-Neo and Pythia models have phases of decrease.",
    source=NORM_GROWTH,
    published="distilgpt2 and gpt2: super-exponential; most models: long exponential phases",
    needs=("resid_post_norm",),
    prompts=8,
)
def test_growth_shape(run: Run) -> Finding:
    """The curve over the inner 80 % of the layers is classified: has-decrease (falls by
    5 % or more), flat, or by how its log rate changes between the halves (by more than
    half of its mean: super- or sub-exponential). Confidence is the share of resamples of
    the prompts with the same class; below 0.975, and more of few prompts (0.994 of 8), the
    verdict is inconclusive. Models of which nothing was published are held against what was
    said of most."""
    norm = run["resid_post_norm"]
    decision = expected_shape(norm.prompt_log, facts_about(run).shape)
    return Finding(decision, Figure(("resid_post_norm",)))


@claim(
    "growth-distribution",
    family="A",
    statement="The whole distribution of log norms moves up with depth, not only its mean.",
    source=NORM_GROWTH,
    published="GPT2-XL: histograms per layer over dozens of prompts",
    needs=("resid_post_norm",),
)
def test_growth_distribution(run: Run) -> Finding:
    """Stochastic dominance of each layer of the phase over the one before, over prompts
    and positions: in at least 90 % of the cells (step x norm) the share of tokens below
    that norm must fall."""
    phase, unseen = growth_phase(run)
    decision = distribution_moves_up(run["resid_post_norm"].ordinary[unseen], phase)
    figure = Figure(("resid_post_norm",), kind="histogram", phase=phase)
    return Finding(decision.with_note(f"{phase}"), figure)


@claim(
    "growth-ratio-constant",
    family="A",
    statement="The ratio of a token's norm to its norm one layer before is above 1 and "
    "about the same for every ordinary token.",
    source=NORM_GROWTH,
    published="GPT2-XL: plotted for one prompt",
    needs=("resid_post_norm",),
)
def test_growth_ratio_constant(run: Run) -> Finding:
    """Per-token ratios inside the phase: at least 95 % must be above 1, and at least 95 %
    of tokens must have a log rate of their own within half of the median token's."""
    phase, unseen = growth_phase(run)
    decision = ratio_constant(run["resid_post_norm"].ordinary[unseen], phase)
    return Finding(decision.with_note(f"{phase}"), Figure(("resid_post_norm",), phase=phase))


@claim(
    "bos-anomaly",
    family="A",
    statement="The BOS position has a norm curve of its own: a steep rise, a plateau and a "
    "late fall.",
    source=NORM_GROWTH,
    published="GPT2-XL: an inverted U at BOS and padding positions, excluded from averages",
    needs=("resid_post_norm",),
    prompts=8,
)
def test_bos_anomaly(run: Run) -> Finding:
    """Position 0 must be more than three standard deviations of the ordinary log norms
    away in at least half of the layers, reach half of its largest norm in the first half
    of the layers, keep it for a quarter of them, and have lost it at the last."""
    norm = run["resid_post_norm"]
    return Finding(bos_anomaly(norm.bos, norm.ordinary), Figure(("resid_post_norm",), bos=True))


@claim(
    "bos-constant",
    family="A",
    statement="BOS and padding positions have the same values whatever the prompt.",
    source=NORM_GROWTH,
    published="an argument: these positions attend to no other",
    needs=("bos_spread", "padding_spread", "resid_post_norm"),
    prompts=2,
    layers=1,
)
def test_bos_constant(run: Run) -> Finding:
    """Exact: the stream's vectors at BOS, and at each position of left padding, are
    compared between prompts of different text; the norm at BOS between all prompts."""
    rounding = tolerance(run.model.dtype).token
    bos = run["resid_post_norm"].bos
    parts = {
        "spread at BOS": run["bos_spread"].values,
        "spread at padding": run["padding_spread"].values,
        "spread of the norm at BOS": np.ptp(bos, axis=0) / bos.mean(axis=0),
    }
    figure = Figure(("bos_spread",), log=False)
    return Finding(at_most(parts, dict.fromkeys(parts, rounding)), figure)


@claim(
    "mean-zero",
    family="A",
    statement="With centred writing weights residual streams have mean zero, so that the "
    "norm is the standard deviation times the root of d_model; centring changes no output.",
    source=NORM_GROWTH,
    published="footnote 1, exact",
    needs=("centred_mean", "centring_logit_shift"),
    prompts=1,
    layers=1,
)
def test_mean_zero(run: Run) -> Finding:
    """Exact: the largest mean of a token's stream in units of its standard deviation, with
    centred writing weights, and the change of the log-probabilities by centring."""
    row = tolerance(run.model.dtype)
    parts = {
        "mean over standard deviation": run["centred_mean"].values,
        "shift of the log-probabilities": run["centring_logit_shift"].values,
    }
    bounds = dict(zip(parts, (row.curve, row.logits), strict=True))
    return Finding(at_most(parts, bounds), Figure(("centred_mean",), log=False))


@claim(
    "mid-between",
    family="A",
    statement="The stream between the sublayers grows at the same rate as after them.",
    source=NORM_GROWTH,
    published="GPT2-XL: one figure with both curves",
    needs=("resid_mid_norm", "resid_post_norm"),
)
def test_mid_between(run: Run) -> Finding:
    """Difference of the log rates of resid_mid and resid_post over the phase's blocks: two
    one-sided tests against a margin of 11 % of the stream's log rate (0.005 at least)."""
    phase, unseen = growth_phase(run)
    mid, post = (run[f"{site}_norm"].prompt_log[unseen] for site in ("resid_mid", "resid_post"))
    decision = decide(same_rate("log rate of resid_mid minus resid_post", mid, post, phase.inside))
    figure = Figure(("resid_mid_norm", "resid_post_norm"), phase=phase)
    return Finding(decision.with_note(f"{phase}"), figure)


def _line(label: str, rate: Estimate, log_norm: np.ndarray, phase: Phase) -> Line:
    anchor = _anchor(log_norm, rate.value, phase)
    return Line(f"{label} {rate.value:.4f}", float(np.log(rate.value)), anchor, "fitted")


def _anchor(log_norm: np.ndarray, rate: float, phase: Phase) -> float:
    """Where a line of this rate crosses layer 0 if it passes through the phase's middle."""
    middle = log_norm[:, phase.window].mean()
    return float(middle - np.log(rate) * phase.layers.mean())
