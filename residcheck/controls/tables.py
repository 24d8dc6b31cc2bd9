"""The tables that terminal and page have in common, as finished texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite

import numpy as np

from residcheck.controls.comparison import Comparison
from residcheck.controls.rates import LOG_RATE, LOSS, STORED, over_windows, rate
from residcheck.controls.reading import BASELINE
from residcheck.report.outline import count
from residcheck.stats import Estimate

NONE = "-"
UNLEARNT = 1.0
"""Nats above the baseline, from which on a model does another thing than the baseline."""


@dataclass(frozen=True)
class Table:
    """A title, what stands above and below, and rows of text; ``left`` columns hold words."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1
    note: str = ""


def subject(found: Comparison) -> str:
    """What was trained on what, in one line."""
    scale, window = found.zoo.scale, found.zoo.scale.window
    corpus = found.zoo.runs[0].corpus
    return (
        f"{scale.layers} layers, width {scale.width}, {scale.tokens:,} tokens of the library of "
        f"Python {corpus.get('python', '?')}; rates over layers {window.first}-{window.last}"
    )


def tables(found: Comparison) -> list[Table]:
    return [_runs(found), _arms(found), _stored(found)]


def noise(found: Comparison) -> str:
    """How far apart the seeds of the baseline lie."""
    return f"baseline: {_spread(found, LOG_RATE, 'log rate')}, {_spread(found, LOSS, 'loss')}"


def _spread(found: Comparison, quantity: str, name: str) -> str:
    values = found.of_arm(BASELINE, quantity)
    if len(values) < 2:
        return f"{name} {values[0]:.4f} (one seed)"
    return f"{name} {values.mean():.4f}, seeds apart by {np.ptp(values):.4f}"


def _runs(found: Comparison) -> Table:
    head = ("arm", "seed", "rate per layer", "loss", "log rate minus baseline", "minutes")
    rows = []
    for (arm, seed), run in found.runs.items():
        pair = NONE
        if arm != BASELINE and seed in found.paired(arm):
            pair = signed(over_windows(run, found.runs[BASELINE, seed]))
        minutes = f"{run.seconds / 60:,.0f}"
        rows.append((arm, str(seed), interval(rate(run)), f"{run.loss:.4f}", pair, minutes))
    note = (
        "intervals over held-out windows: of this very model, not of another seed; trained on "
        f"{_machines(found)}, in minutes that pass while other work is done, too"
    )
    return Table("Runs", head, tuple(rows), note=note)


def _machines(found: Comparison) -> str:
    used = {(run.device, run.threads) for run in found.zoo.runs}
    return " and ".join(f"{device} with {count(n, 'thread')}" for device, n in sorted(used))


def _arms(found: Comparison) -> Table:
    head = ("arm", "seeds", "log rate minus baseline", "loss minus baseline", "residual")
    rows = []
    for arm in found.all_arms:
        if arm != BASELINE:
            growth, loss = (found.difference(arm, name) for name in (LOG_RATE, LOSS))
            row = arm, str(growth.n), signed(growth), signed(loss), _residual(found, arm)
            rows.append(row)
    note = (
        "over the seeds that the arms of a question and the baseline have in common, as a block "
        "design with one variance; residual: standard deviation and degrees of freedom of what "
        "neither arm nor seed explains of its log rates"
    )
    return Table("Arms against the baseline", head, tuple(rows), note=note)


def _residual(found: Comparison, arm: str) -> str:
    blocks = found.blocks(found.layout(arm), LOG_RATE)
    return NONE if blocks is None else f"{blocks.variance**0.5:.4f} ({blocks.dof})"


def _stored(found: Comparison) -> Table:
    head = ("arm", "seeds", "stream", *STORED)
    rows = []
    for arm in found.all_arms:
        means = (f"{found.of_arm(arm, name).mean():+.4f}" for name in (LOG_RATE, *STORED))
        rows.append((arm, str(len(found.seeds_of(arm))), *means))
    note = "log rates per layer of norms, mean over seeds; folded: with the gain that is read"
    return Table("Where the growth is stored", head, tuple(rows), note=note)


def interval(estimate: Estimate) -> str:
    return f"{estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"


def signed(estimate: Estimate) -> str:
    """A difference; without an interval where there is none."""
    if not isfinite(estimate.value):
        return NONE
    if not isfinite(estimate.low):
        return f"{estimate.value:+.4f}"
    return f"{estimate.value:+.4f} [{estimate.low:+.4f}, {estimate.high:+.4f}]"


def warnings(found: Comparison) -> Iterator[str]:
    """What to know before the numbers are read."""
    if found.zoo.unfinished:
        yield f"not finished, and left out: {', '.join(found.zoo.unfinished)}"
    for arm in found.all_arms:
        gap = float(found.of_arm(arm, LOSS).mean() - found.of_arm(BASELINE, LOSS).mean())
        if gap > UNLEARNT:
            yield f"{arm} hardly learnt, at {gap:.1f} nats above the baseline: do not compare it"
