"""The decision rules of families A and B: arrays in, :class:`Decision` out.

``log_norm`` arrays are mean log norms per prompt: ``[prompt, layer]``. ``tokens`` arrays
are per token, ``[prompt, position, layer]``, NaN where a prompt has no token. Margins are
fixed here, beforehand, and are the same for every model.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from residcheck.stats.decision import (
    CHOICES,
    Decision,
    Estimate,
    Outcome,
    Region,
    decide,
    exactly,
    outcome_of,
)
from residcheck.stats.fits import Floats, evidence_for_exponential, slopes
from residcheck.stats.intervals import over_prompts, share_of_tokens
from residcheck.stats.phase import EVIDENCE, RATE_MARGIN, Phase

# RATE_MARGIN, to which the published rate is known, is a ninth of its excess over 1. Rates
# are called the same when their logs differ by less than that ninth of the stream's, and
# never by less than 0.005.
RELATIVE_RATE_MARGIN = 0.11
NEARLY_ALL = 0.95
MOSTLY = 0.9
HALF = 0.5
BOS_DISTANCE = 3.0
FAR_FROM_PERFECT = 0.9


def growth_rate(log_norm: Floats, phase: Phase, region: Region | None = None) -> Estimate:
    """Factor per layer over the phase: exp of the mean slope of log norm against layer."""
    per_prompt = slopes(log_norm[:, phase.window], phase.layers)
    return over_prompts("rate per layer", per_prompt, np.exp, region)


def published_rate(log_norm: Floats, phase: Phase, rate: float) -> Decision:
    """Equivalence of the rate to a published one within 0.005."""
    region = Region(rate - RATE_MARGIN, rate + RATE_MARGIN)
    return decide(growth_rate(log_norm, phase, region))


def exponential_phase(log_norm: Floats, phase: Phase) -> Decision:
    """On prompts that did not choose the window: does the exponential beat the others?

    Supported if it does, by 2 in AIC, and the rate is above 1 by more than the precision
    of the published one. Refuted if the rate is not, or if another shape beats the
    exponential by 2. Where no window was chosen for its exponential, it is not supported.
    """
    grows = growth_rate(log_norm, phase, Region(low=1 + RATE_MARGIN))
    evidence = over_prompts(
        "AIC advantage over other shapes",
        log_norm[:, phase.window],
        lambda curves: evidence_for_exponential(curves, phase.layers),
        Region(low=EVIDENCE),
        CHOICES,
    )
    decision = decide(grows, evidence)
    undecided = (decision.outcome is Outcome.SUPPORTED and not phase.exponential) or (
        outcome_of(grows) is not Outcome.REFUTED
        and outcome_of(evidence) is Outcome.REFUTED
        and evidence.high > -EVIDENCE
    )
    return replace(decision, outcome=Outcome.INCONCLUSIVE) if undecided else decision


def same_rate(what: str, log_a: Floats, log_stream: Floats, phase: Phase) -> Estimate:
    """Difference of two log rates, with the region in which they count as the same.

    The margin is 11 % of the stream's log rate, and at least 0.005.
    """
    stream = slopes(log_stream[:, phase.window], phase.layers)
    other = slopes(log_a[:, phase.window], phase.layers)
    margin = rate_margin(stream)
    return over_prompts(what, other - stream, region=Region(-margin, margin))


def rate_margin(log_rates: Floats) -> float:
    """How far two log rates may lie apart and count as the same, of the stream's rates."""
    return max(RATE_MARGIN, RELATIVE_RATE_MARGIN * abs(float(log_rates.mean())))


def distribution_moves_up(tokens: Floats, phase: Phase, grid_points: int = 96) -> Decision:
    """First-order dominance of each layer of the phase over the one before.

    Layer n+1 dominates n where its share of tokens below x is no larger, at every x. The
    effect is the part of (step, x) cells where that holds, over the x between the 5th and
    95th percentile of either layer.
    """
    values = np.log(tokens[:, :, phase.window])
    low, high = np.nanmin(values), np.nanmax(values)
    grid = np.linspace(low, high, grid_points)
    below = np.stack([_share_below(values[..., n], grid) for n in range(values.shape[-1])], axis=1)

    def cells(share: Floats) -> Floats:
        before, after = share[..., :-1, :], share[..., 1:, :]
        inner = np.minimum(before, after) < NEARLY_ALL
        inner &= np.maximum(before, after) > 1 - NEARLY_ALL
        holds = inner & (after < before)
        return np.asarray(holds.sum(axis=(-2, -1)) / np.maximum(inner.sum(axis=(-2, -1)), 1))

    return decide(over_prompts("share of cells that move up", below, cells, Region(low=MOSTLY)))


def _share_below(values: Floats, grid: Floats) -> Floats:
    """Per prompt, the share of its tokens below each point of the grid."""
    return np.stack(
        [
            np.searchsorted(np.sort(row[~np.isnan(row)]), grid) / max(1, (~np.isnan(row)).sum())
            for row in values
        ]
    )


def ratio_constant(tokens: Floats, phase: Phase) -> Decision:
    """Per-token ratios norm(n) / norm(n-1): above 1, and about the same for every token.

    "About the same": a token's own log rate over the phase within half of the median's.
    """
    values = np.log(tokens[:, :, phase.window])
    present = ~np.isnan(values[..., 0])
    rises = np.where(present, (np.diff(values, axis=-1) > 0).mean(axis=-1), np.nan)
    own = np.where(present, slopes(np.nan_to_num(values), phase.layers), np.nan)
    median = float(np.nanmedian(own))
    alike = np.where(present, np.abs(own - median) <= HALF * abs(median), np.nan)
    steps = values.shape[-1] - 1
    above = share_of_tokens("share of ratios above 1", rises, steps, Region(NEARLY_ALL))
    constant = share_of_tokens(
        "share of tokens near the median rate", alike, region=Region(NEARLY_ALL)
    )
    spread = np.nanpercentile(own, (5, 95)) - median
    note = f"tokens' own rates spread {spread[0]:+.3f} to {spread[1]:+.3f} in logs (90 %)"
    return decide(above, constant, note=note)


def bos_anomaly(bos: Floats, tokens: Floats) -> Decision:
    """Position 0 is apart from the ordinary tokens and is an inverted U.

    Apart: more than 3 standard deviations of the ordinary log norms away, in at least
    half of the layers. Inverted U: half of its largest norm is reached in the first half
    of the layers and lost again at the last; between, it stays there for a quarter.

    Args:
        bos: norm at position 0, ``[prompt, layer]``.
    """
    curve = np.exp(np.log(bos).mean(axis=0))
    log_tokens = np.log(tokens)
    moments = np.stack([np.nanmean(log_tokens, axis=1), np.nanmean(log_tokens**2, axis=1)], axis=1)

    def apart(means: Floats) -> Floats:
        mean, square = means[..., 0, :], means[..., 1, :]
        spread = np.sqrt(np.maximum(square - mean**2, 0))
        far = np.abs(np.log(curve) - mean) > BOS_DISTANCE * spread
        return np.asarray(far.mean(axis=-1))

    n_layers = len(curve)
    high = np.flatnonzero(curve >= HALF * curve.max())
    distance = over_prompts("share of layers more than 3 sd apart", moments, apart, Region(HALF))
    rise = exactly("depth of the rise", high[0] / n_layers, len(bos), Region(high=HALF))
    plateau = exactly(
        "share of layers on the plateau", len(high) / n_layers, len(bos), Region(0.25)
    )
    fall = exactly("last over largest norm", curve[-1] / curve.max(), len(bos), Region(high=HALF))
    note = f"largest norm {curve.max():.4g} at layer {int(curve.argmax())}"
    return decide(distance, rise, plateau, fall, note=note)


def correlated_addition(
    norms: dict[str, Floats], cosines: dict[str, Floats], phase: Phase
) -> Decision:
    """What of the growth is left when sublayer outputs are taken as uncorrelated?

    Uncorrelated vectors add as sqrt(a^2 + b^2): the growth of that, summed over the phase,
    as a share of the actual growth, should be below a half. Of a stream that is not known to
    grow there is no such share: its growth is what is answered, which should be above 0.
    Cosines of the outputs with the stream that they are added to should be above 0 and
    below 0.9.

    Args:
        norms: per-token ``resid_pre``, ``resid_post``, ``attn_out``, ``mlp_out``, and
            ``resid_mid`` in sequential blocks.
        cosines: per-token cosines of ``attn_out`` and ``mlp_out`` with the stream.
    """
    w = {name: values[:, :, phase.window] for name, values in norms.items()}
    if "resid_mid" in w:
        alone = _log_hypot(w["attn_out"] / w["resid_pre"])
        alone = alone + _log_hypot(w["mlp_out"] / w["resid_mid"])
    else:
        alone = _log_hypot(np.hypot(w["attn_out"], w["mlp_out"]) / w["resid_pre"])
    actual = np.log(w["resid_post"] / w["resid_pre"])
    sums = np.stack([np.nanmean(g, axis=1).sum(axis=-1) for g in (alone, actual)], axis=1)
    growth = over_prompts("log growth over the phase's blocks", sums[:, 1], None, Region(low=0.0))
    share = over_prompts(
        "share of growth from uncorrelated addition",
        sums,
        lambda pair: pair[..., 0] / pair[..., 1],
        Region(0.0, HALF),
    )
    means = [
        over_prompts(
            f"cosine of {name}",
            np.nanmean(values[:, :, phase.window], axis=(1, 2)),
            None,
            Region(0.0, FAR_FROM_PERFECT),
        )
        for name, values in cosines.items()
    ]
    return decide(share if growth.low > 0 else growth, *means)


def _log_hypot(ratio: Floats) -> Floats:
    return np.asarray(0.5 * np.log1p(ratio**2))


def triangle_bound(norms: dict[str, Floats], rounding: float) -> Decision:
    """g - 1 <= (|attn_out| + |mlp_out|) / |resid_pre| at every token and layer, BOS included.

    The slack is (|resid_pre| + |attn_out| + |mlp_out| - |resid_post|) / |resid_post|. One
    value below zero by more than rounding refutes: the bound is a theorem, so it means
    that a hook is broken.
    """
    reach = norms["resid_pre"] + norms["attn_out"] + norms["mlp_out"]
    slack = (reach - norms["resid_post"]) / norms["resid_post"]
    n = int(np.isfinite(slack).sum())
    smallest = exactly("smallest slack", float(np.nanmin(slack)), n, Region(low=-rounding))
    position = np.unravel_index(int(np.nanargmin(slack)), slack.shape)
    note = (
        f"median slack {float(np.nanmedian(slack)):.3g}; smallest at prompt {position[0] + 1}, "
        f"position {position[1]}, layer {position[2]}"
    )
    return decide(smallest, note=note)


def normalised_input(
    measured: dict[str, Floats],
    streams: dict[str, Floats],
    d_model: int,
    eps: Floats | float,
    rounding: float,
) -> Decision:
    """Normalised inputs have norm sqrt(d_model * v / (v + eps)), with v = |x|^2 / d_model.

    Epsilon is one for all, or one for each layer.
    """
    estimates = []
    for name, norm in measured.items():
        variance = streams[name] ** 2 / d_model
        expected = np.sqrt(d_model * variance / (variance + eps))
        deviation = np.abs(norm / expected - 1)
        n = int(np.isfinite(deviation).sum())
        worst = float(np.nanmax(deviation)) if n else np.nan
        estimates.append(exactly(f"largest deviation at {name}", worst, n, Region(high=rounding)))
    return decide(*estimates)


def at_most(parts: dict[str, Floats], bounds: dict[str, float]) -> Decision:
    """Every value of each part is at most its bound."""
    estimates = [
        exactly(name, float(np.max(values)), values.size, Region(high=bounds[name]))
        for name, values in parts.items()
    ]
    return decide(*estimates)
