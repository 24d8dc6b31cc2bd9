"""The rules of family H: what trained controls say, as decisions.

Margins are those of the other families: :data:`residcheck.stats.phase.RATE_MARGIN`, 0.005 per
layer, is what the published rate is known to, and from which on a stream counts as growing.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from residcheck.controls.comparison import Comparison
from residcheck.controls.rates import GAIN_SIZE, GAINS, LOG_RATE, LOSS
from residcheck.controls.reading import BASELINE
from residcheck.stats import Decision, Estimate, Outcome, Region, decide
from residcheck.stats.phase import RATE_MARGIN

RESCALED, LEARNED = "rescale-residual", "rescale-residual-learned"
HEADS_8, HEADS_16 = "heads-8", "heads-16"
DECAY_ALL, DECAY_NONE = "decay-all", "decay-none"
_NONE = Region(-RATE_MARGIN, RATE_MARGIN)


def growth_removed(found: Comparison) -> Decision:
    """Is the log rate of the rescaled stream within 0.005 of 0?"""
    left, grows = found.mean(RESCALED, LOG_RATE, _NONE), found.mean(BASELINE, LOG_RATE)
    beside = [grows, found.difference(RESCALED, LOG_RATE), found.difference(RESCALED, LOSS)]
    notes = [f"the log rate is {left.value / grows.value:.2f} times the baseline's"]
    if found.seeds_of(LEARNED):
        beside += [found.mean(LEARNED, LOG_RATE), found.difference(LEARNED, LOSS)]
        share = beside[3].value / grows.value
        notes.append(f"learned: divided by {_learned(found)}, the log rate is {share:.2f} times it")
    decision = decide(left, *beside, note="; ".join(notes))
    if decision.outcome is Outcome.REFUTED and left.value < 0:
        decision = decision.with_note("the stream shrinks: more than its growth is taken away")
    if grows.value <= RATE_MARGIN:
        decision = replace(decision, outcome=Outcome.INCONCLUSIVE)
        decision = decision.with_note("the baseline does not grow: there is nothing to remove")
    return _honest(decision, found.why_no_mean(RESCALED))


def _learned(found: Comparison) -> str:
    """What the stream is divided by before blocks, mean over seeds: the least and the most."""
    each = [found.runs[LEARNED, seed].measured.divisors for seed in found.seeds_of(LEARNED)]
    mean = np.mean(each, axis=0)
    least, most = mean.argmin(), mean.argmax()
    return f"{mean[least]:.3f} (layer {least}) to {mean[most]:.3f} (layer {most})"


def grows_with_heads(found: Comparison) -> Decision:
    """Is the log rate with 16 heads above that with 4 by more than 0.005?"""
    effect = found.difference(HEADS_16, LOG_RATE, Region(low=RATE_MARGIN))
    beside = [found.difference(arm, LOG_RATE) for arm in _there(found, HEADS_8)]
    beside += [found.difference(arm, LOSS) for arm in _there(found, HEADS_16, HEADS_8)]
    return _honest(decide(effect, *beside), found.why_no_difference(HEADS_16))


def moved_by_decay(found: Comparison) -> Decision:
    """Does the log rate of the gains differ by more than 0.005, up or down?"""
    signed = found.difference(DECAY_ALL, GAINS)
    stored = ("W_OV", "W_in", "W_out", "W_OV folded", "W_in folded")
    arms = _there(found, DECAY_ALL, DECAY_NONE)
    beside = [found.difference(arm, GAINS) for arm in _there(found, DECAY_NONE)]
    beside += [found.difference(arm, name) for arm in arms for name in stored]
    beside += [found.difference(arm, LOG_RATE) for arm in arms]
    sizes = {arm: found.difference(arm, GAIN_SIZE) for arm in arms}
    notes = [f"{arm}: gains {np.exp(size.value):.3f} times as large" for arm, size in sizes.items()]
    moved = _size(signed, Region(low=RATE_MARGIN))
    decision = decide(moved, signed, *beside, note="; ".join(notes))
    return _honest(decision, found.why_no_difference(DECAY_ALL))


def _size(signed: Estimate, region: Region) -> Estimate:
    """The absolute value; its interval is what values in that of ``signed`` can be."""
    ends = abs(signed.low), abs(signed.high)
    low = 0.0 if signed.low <= 0 <= signed.high else min(ends)
    size = replace(signed, name=f"size of the difference of {signed.name}", region=region)
    return replace(size, value=abs(signed.value), low=low, high=max(ends))


def _there(found: Comparison, *arms: str) -> list[str]:
    return [arm for arm in arms if found.paired(arm)]


def _honest(decision: Decision, reason: str) -> Decision:
    """With the reason where there is no interval over seeds, and without numbers of nothing."""
    kept = tuple(e for e in decision.estimates if not np.isnan(e.value))
    decision = replace(decision, estimates=kept)
    if not reason:
        return decision
    note = reason if not kept else f"{reason}; {decision.note}".rstrip("; ")
    return Decision(Outcome.INCONCLUSIVE, kept, note)
