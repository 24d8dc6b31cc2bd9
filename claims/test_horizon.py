"""Family F: how far back a layer needs to see."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from residcheck.claim import claim
from residcheck.curves import Run
from residcheck.stats import (
    MIN_PROMPTS,
    Decay,
    fit_decay,
    horizon_confounder,
    horizon_decay,
    horizon_small,
    horizon_with_growth,
    horizons_fitted,
)
from residcheck.verdict import Figure, Finding, Trace

from .published import LAYER_HORIZON, facts_about, growth_phase


@claim(
    "horizon-decay",
    family="F",
    statement="The loss falls as the horizon grows: the importance of earlier layers decays "
    "exponentially with their distance.",
    source=LAYER_HORIZON,
    published="GPT2-XL, mean-ablated: near 9 at k = 1, baseline 3.1418, steepest between 10 and 25",
    needs=("horizon_loss", "loss"),
    prompts=MIN_PROMPTS,
    layers=10,
)
def test_horizon_decay(run: Run) -> Finding:
    """At k = 1 the loss must be above the model's own by 0.1 nats, and of all pairs of
    horizons the longer must have the lower loss more often than not. Then the excess over
    the model's own loss at k = 1 ... L-1 is fitted by an exponential, a power law and a
    sigmoid (scipy's curve_fit, errors proportional to the excess down to a tenth of its
    largest value): the exponential must have the lowest AIC in the whole interval over
    prompts, on at least eleven horizons' worth of curve. Another shape refutes it if it wins
    in the whole interval, and by 6. tau is where the excess is down by a factor e. The
    effective horizon is the smallest k from which on the loss is within 0.1 nats of the
    model's own, by two one-sided tests."""
    loss, baseline = (run[name].prompt_mean for name in ("horizon_loss", "loss"))
    decision = horizon_decay(loss, baseline).with_note(measured_as(run))
    if facts := facts_about(run).horizon:
        decision = decision.with_note(f"{facts}")
    return Finding(decision, decay_figure(run))


@claim(
    "horizon-small-model",
    family="F",
    statement="The model is too small to have an effective layer horizon: most of its depth "
    "is needed.",
    source=LAYER_HORIZON,
    published="gpt2 only, no number",
    needs=("horizon_loss", "loss"),
    uses=("horizon_kl",),
    prompts=MIN_PROMPTS,
    layers=6,
)
def test_horizon_small_model(run: Run) -> Finding:
    """The effective horizon, the smallest k from which on the loss is within 0.1 nats of the
    model's own by two one-sided tests over prompts, must be at least three quarters of the
    depth; its interval is of that k over resamples of the prompts. That of the divergence
    from the model's own predictions is reported beside it. Refuted for a larger model, the
    claim says that it does have an effective horizon."""
    loss, baseline = (run[name].prompt_mean for name in ("horizon_loss", "loss"))
    kl = run["horizon_kl"].prompt_mean if "horizon_kl" in run.curves else None
    decision = horizon_small(loss, baseline, kl).with_note(measured_as(run))
    if not facts_about(run).too_small:
        decision = decision.with_note("published of gpt2, not of this model")
    return Finding(decision, figure_of(run))


@claim(
    "horizon-confounder",
    family="F",
    statement="Short horizons cost more partly because they touch more layers; enforcing all "
    "of them on the same layers controls for it.",
    source=LAYER_HORIZON,
    published="an argument, no number",
    needs=("horizon_loss", "horizon_loss_from_middle", "loss"),
    prompts=MIN_PROMPTS,
    layers=6,
)
def test_horizon_confounder(run: Run) -> Finding:
    """Horizon k leaves layers before k as they are. Enforced only from layer N = L/2 on, all
    k up to N touch the same layers. Of the excess of the loss, summed over k < N, at least
    a tenth must vanish then (ratio of means, interval over prompts). Whether the controlled
    loss still falls from k = 1 to N is reported: if it does, the decay with distance is not
    only the number of touched layers."""
    names = ("horizon_loss", "horizon_loss_from_middle", "loss")
    decision = horizon_confounder(*(run[name].prompt_mean for name in names))
    return Finding(decision.with_note(measured_as(run)), figure_of(run, *names[:2]))


@claim(
    "horizon-vs-growth",
    family="F",
    statement="Slower growth of the norm goes with a different effective horizon, and the "
    "horizon scales with depth: an open question.",
    source=LAYER_HORIZON,
    published="a question",
    needs=("horizon_loss", "loss", "resid_post_norm"),
    layers=6,
)
def test_horizon_vs_growth(run: Run) -> Finding:
    """Never decided. The effective horizon, as a share of the depth and in layers, is
    reported beside the stream's rate of growth and the depth; over several models in one
    session their rank correlations are reported."""
    phase, unseen = growth_phase(run)
    loss, baseline = (run[name].prompt_mean for name in ("horizon_loss", "loss"))
    norm = run["resid_post_norm"].prompt_log[unseen]
    decision = horizon_with_growth(loss, baseline, norm, phase)
    return Finding(decision.with_note(f"{phase}"), figure_of(run))


def measured_as(run: Run) -> str:
    """Which variant of the experiment was measured, and on how many prompts."""
    return "" if run.horizon is None else f"{run.horizon}; {run.horizon.prompts.count} prompts"


def figure_of(run: Run, *names: str) -> Figure:
    """Losses over horizons, with that of the model as it is."""
    baseline = float(run["loss"].mean)
    return Figure(names or ("horizon_loss",), log=False, level=(baseline, "baseline"))


def decay_figure(run: Run) -> Figure:
    """The same with two fitted decays, and what was published of this very model."""
    loss, baseline = (run[name].prompt_mean for name in ("horizon_loss", "loss"))
    excess = np.nanmean(loss - baseline[:, None], axis=0)
    horizons = horizons_fitted(len(excess))
    shapes = (Decay.EXPONENTIAL, Decay.SIGMOID)
    fits = [fit_decay(shape, excess[: len(horizons)], horizons) for shape in shapes]
    level = float(np.nanmean(baseline))
    traces = [Trace(str(fit), tuple(level + fit.at(horizons)), "fitted") for fit in fits if fit]
    figure = replace(figure_of(run), fits=tuple(traces))
    facts = facts_about(run).horizon
    if facts is None:
        return figure
    first = Trace("published, mean-ablated: k = 1", (facts.first_loss,), "published")
    window = (*facts.steepest, "published: steepest")
    return replace(figure, fits=(*figure.fits, first), window=window)
