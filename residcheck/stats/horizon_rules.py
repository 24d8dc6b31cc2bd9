"""The decision rules of family F: what is lost when layers read the last k layers only.

Curves over horizons are means over a prompt's predicted tokens, in nats: ``[prompt, k]``
for k = 1 ... L, and the loss of the model as it is ``[prompt]``. At k = L nothing is cut off.
Prompts of which any value is missing are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import stats

from residcheck.stats.decay import (
    MIN_WEIGHT,
    Choice,
    Decay,
    choose_decay,
    horizons_fitted,
)
from residcheck.stats.decision import (
    Decision,
    Estimate,
    Outcome,
    Region,
    decide,
    exactly,
    outcome_of,
)
from residcheck.stats.fits import Floats
from residcheck.stats.intervals import over_prompts
from residcheck.stats.phase import STRONG_EVIDENCE, Phase
from residcheck.stats.resampling import (
    MIN_PROMPTS,
    percentile_estimate,
    percentiles,
    resampled,
)
from residcheck.stats.rules import HALF, growth_rate

# "Qualitatively unchanged": a perplexity, and a divergence of predictions, within 10 %.
MARGIN = 0.1
# "Most of the depth": three quarters of it.
MOST = 0.75
# A tenth of the excess: less than that, and the number of touched layers hardly matters.
# Were every touched layer to cost the same, about three tenths would vanish.
MATTERS = 0.1
# A correlation over fewer models says nothing: of three, one order in six is perfect.
MIN_MODELS = 4


def horizon_decay(loss: Floats, baseline: Floats) -> Decision:
    """Does the loss fall with the horizon, and exponentially?

    Falls: at k = 1 it is above the baseline by more than the margin, and of all pairs of
    horizons the longer one has the lower loss more often than not. Exponentially: of the
    three shapes the exponential has the lowest AIC, for the whole interval over prompts.
    Refuted if another shape has, for the whole interval, and by 6. Not supported by a curve
    that is over within fewer than eleven horizons.
    """
    (loss, baseline), few = complete(loss, baseline)
    if few:
        return few
    excess = loss - baseline[:, None]
    first = over_prompts("excess at k = 1", excess[:, 0], region=Region(low=MARGIN))
    falls = over_prompts(
        "share of pairs of horizons that fall", falling_pairs(loss), region=Region(low=HALF)
    )
    reported = (
        over_prompts("loss at k = 1", loss[:, 0]),
        over_prompts("baseline", baseline),
        effective_horizon(excess),
    )
    choice = choose_decay(excess[:, : len(horizons_fitted(loss.shape[1]))])
    if choice is None:
        decision = decide(first, falls, *reported, note="no shape could be fitted")
        outcome = decision.outcome
        undecided = outcome is Outcome.SUPPORTED
        return replace(decision, outcome=Outcome.INCONCLUSIVE) if undecided else decision
    steepest = (
        replace(middle, name="horizon of the steepest fall, the sigmoid's middle")
        for middle in choice.parameters.get(Decay.SIGMOID, ())[:1]
    )
    tau = choice.parameters[Decay.EXPONENTIAL]
    shown = (*tau, choice.evidence, first, falls, *steepest, *reported)
    decision = decide(*shown, note=f"{choice}")
    return replace(decision, outcome=_settled(decide(first, falls).outcome, choice))


def _settled(falls: Outcome, choice: Choice) -> Outcome:
    """Of both parts. A shape that wins, but not clearly, refutes nothing; and a curve that
    is over within few horizons is no support for an exponential."""
    shape = outcome_of(choice.evidence)
    narrow = shape is Outcome.REFUTED and choice.evidence.value > -STRONG_EVIDENCE
    short = shape is Outcome.SUPPORTED and choice.weight < MIN_WEIGHT
    if narrow or short:
        shape = Outcome.INCONCLUSIVE
    for outcome in (Outcome.REFUTED, Outcome.INCONCLUSIVE):
        if outcome in (falls, shape):
            return outcome
    return Outcome.SUPPORTED


def horizon_small(loss: Floats, baseline: Floats, kl: Floats | None = None) -> Decision:
    """Is the effective horizon, over the depth, at least three quarters?

    Args:
        kl: divergence from the model as it is, whose horizon is reported.
    """
    (loss, baseline, *rest), few = complete(loss, baseline, *([] if kl is None else [kl]))
    if few:
        return few
    found = effective_horizon(loss - baseline[:, None])
    share = over_depth(found, loss.shape[1], Region(low=MOST))
    by_kl = [effective_horizon(values, "effective horizon by divergence") for values in rest]
    note = ""
    if found.value == loss.shape[1]:
        note = "no horizon below the depth leaves the loss unchanged"
    return decide(share, found, *by_kl, note=note)


def horizon_confounder(loss: Floats, from_middle: Floats, baseline: Floats) -> Decision:
    """Does the number of touched layers matter, at equal horizon?

    A horizon k touches L - k layers; enforced from layer N on, all k up to N touch L - N.
    The share of the excess, summed over k < N, that vanishes when it is enforced so.

    Args:
        from_middle: the loss with the horizon enforced from layer N on, k = 1 ... N.
    """
    (loss, from_middle, baseline), few = complete(loss, from_middle, baseline)
    if few:
        return few
    depth, middle = loss.shape[1], from_middle.shape[1]
    free, held = loss[:, : middle - 1] - baseline[:, None], from_middle - baseline[:, None]
    cost = over_prompts("mean excess below N", free.mean(axis=1), region=Region(low=MARGIN))
    fall = over_prompts("controlled fall from k = 1 to N", held[:, 0] - held[:, -1])
    if outcome_of(cost) is not Outcome.SUPPORTED:
        note = "there is no excess for the control to take from"
        return Decision(Outcome.INCONCLUSIVE, (cost, fall), note)
    sums = np.stack([free.sum(axis=1), held[:, :-1].sum(axis=1)], axis=1)
    share = over_prompts(
        "share of the excess that vanishes",
        sums,
        lambda pair: 1 - pair[..., 1] / pair[..., 0],
        Region(low=MATTERS),
    )
    k = np.arange(1, middle)
    by_count = 1 - (depth - middle) * len(k) / (depth - k).sum()
    words = (
        f"N = {middle}; {by_count:.2g} would vanish if every touched layer cost the same; "
        f"{_in_words(fall)}"
    )
    return replace(decide(share), estimates=(share, fall, cost), note=words)


def _in_words(fall: Estimate) -> str:
    if fall.low > 0:
        return (
            "with the number of touched layers held, the loss still falls with k: the decay "
            "with distance is not only that number"
        )
    if fall.high < 0:
        return "with the number of touched layers held, the loss rises with k"
    return "with the number of touched layers held, it is not sure that the loss falls with k"


def horizon_with_growth(loss: Floats, baseline: Floats, log_norm: Floats, phase: Phase) -> Decision:
    """The horizon beside the rate of growth and the depth: reported, never decided."""
    (loss, baseline), few = complete(loss, baseline)
    if few:
        return few
    (log_norm,), few = complete(log_norm)
    if few:
        return few
    found = effective_horizon(loss - baseline[:, None])
    depth = exactly("layers", log_norm.shape[1], log_norm.shape[1], None, "every layer")
    shown = (over_depth(found, loss.shape[1]), found, growth_rate(log_norm, phase), depth)
    note = "an open question: reported, not decided; it takes several models"
    return Decision(Outcome.INCONCLUSIVE, shown, note)


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation over models, with its p from permutations."""

    of: str
    beside: str
    value: float
    p: float

    def __str__(self) -> str:
        return f"{self.of} and {self.beside}: {self.value:+.2f} (p = {self.p:.2g})"


@dataclass(frozen=True)
class AcrossModels:
    """What several models say together; ``missing`` more are needed before they say it."""

    models: int
    missing: int
    correlations: tuple[Correlation, ...] = ()

    def __str__(self) -> str:
        if self.missing:
            return f"{self.models} model(s) with a horizon; {self.missing} more are needed"
        return "; ".join(map(str, self.correlations))


def horizon_against(rates: list[float], depths: list[float], horizons: list[float]) -> AcrossModels:
    """Effective horizons of several models against their rates of growth and depths.

    Args:
        rates, depths, horizons: one of each per model; models without one (NaN) are left out.
    """
    table = np.array([rates, depths, horizons], dtype=np.float64)
    table = table[:, np.isfinite(table).all(axis=0)]
    models = table.shape[1]
    if models < MIN_MODELS:
        return AcrossModels(models, MIN_MODELS - models)
    rate, depth, horizon = table
    ours = {"effective horizon": horizon, "its share of the depth": horizon / depth}
    theirs = {"rate": rate, "depth": depth}
    found = [
        Correlation(of, beside, *rank_correlation(one, other))
        for of, one in ours.items()
        for beside, other in theirs.items()
    ]
    return AcrossModels(models, 0, tuple(found))


def rank_correlation(x: Floats, y: Floats) -> tuple[float, float]:
    """Spearman's correlation and its p; NaN where all of one are equal.

    All orders are gone through up to eight models: the usual formula for p gives zero for
    a perfect order of four.
    """
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan"), float("nan")
    ranks = stats.zscore(stats.rankdata(y))

    def correlation(values: Floats, axis: int = -1) -> Floats:
        return np.asarray(
            (stats.zscore(stats.rankdata(values, axis=axis), axis) * ranks).mean(axis)
        )

    test = stats.permutation_test(
        (x,),
        correlation,
        permutation_type="pairings",
        vectorized=True,
        n_resamples=40320,  # of eight models, all
        rng=np.random.default_rng(0),
    )
    return float(stats.spearmanr(x, y).statistic), float(test.pvalue)


def effective_horizon(difference: Floats, name: str = "effective horizon") -> Estimate:
    """The smallest k from which on the model is qualitatively unchanged.

    The value: from the longest horizon down, the last at which two one-sided tests over
    prompts still find the mean difference within the margin. The tests stop at the first
    that fails, so there is nothing to correct for their number; and a curve that crosses
    the baseline before it leaves it again is not unchanged. If only k = L passes, the
    model has no effective horizon below its depth.

    The interval: of the smallest k from which on the mean itself is within the margin, over
    prompts, widened to hold the value, which is larger the fewer prompts there are.

    Args:
        difference: ``[prompt, k]``, the loss minus the baseline, or a divergence.
    """
    n = len(difference)
    draws = resampled(difference)
    low, high = percentiles(draws, n)
    value = unchanged_from((low >= -MARGIN) & (high <= MARGIN))
    return percentile_estimate(name, float(value), unchanged_from(np.abs(draws) <= MARGIN), n)


def unchanged_from(within: npt.NDArray[np.bool_]) -> Floats:
    """The first k of the last run of true values ``[..., k]``; L where even k = L is false."""
    outside = ~within
    length = outside.shape[-1]
    run = np.argmax(outside[..., ::-1], axis=-1)  # true values at the end, if any are false
    first = np.where(outside.any(axis=-1), length - run + 1, 1)
    return np.asarray(np.minimum(first, length), dtype=np.float64)


def over_depth(found: Estimate, horizons: int, region: Region | None = None) -> Estimate:
    """An effective horizon as a share of the longest horizon, which reaches over all layers."""
    value, low, high = (x / horizons for x in (found.value, found.low, found.high))
    name = f"{found.name} over the depth"
    return replace(found, name=name, value=value, low=low, high=high, region=region)


def falling_pairs(loss: Floats) -> Floats:
    """Of all pairs of horizons, the share of which the longer has the lower loss: ``[...]``.

    Ties count half, so that 1/2 is no trend; Kendall's tau is twice that less one.
    """
    shorter, longer = np.triu_indices(loss.shape[-1], k=1)
    signs = np.sign(loss[..., shorter] - loss[..., longer])
    return np.asarray((1 + signs.mean(axis=-1)) / 2)


def complete(*tables: Floats) -> tuple[list[Floats], Decision | None]:
    """The rows without a missing value, of tables with one row per prompt each.

    Also what to answer where too few are left.
    """
    flat = [table.reshape(len(table), -1) for table in tables]
    whole = np.all([np.isfinite(rows).all(axis=1) for rows in flat], axis=0)
    kept = [table[whole] for table in tables]
    n = int(whole.sum())
    if n >= MIN_PROMPTS:
        return kept, None
    note = f"{n} prompt(s) with every value; at least {MIN_PROMPTS} are needed"
    return kept, Decision(Outcome.INCONCLUSIVE, (), note)
