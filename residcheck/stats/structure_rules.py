"""The decision rules of families E and G: what becomes of what was written."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from residcheck.stats.decision import LEVEL, Decision, Region, decide, exactly
from residcheck.stats.fits import Floats, slopes
from residcheck.stats.intervals import mean_over_layers, over_prompts
from residcheck.stats.phase import RATE_MARGIN, Phase
from residcheck.stats.rules import HALF

# Twice the kurtosis of the rotated, normal-looking stream: that of a Laplace distribution.
HEAVY = 2.0
# "Far narrower": by an order of magnitude.
FAR = 10.0
# Writing against a thousandth of the stream is a trace of rounding or chance.
TRACE = 1e-3
# A connection: one per cent beyond what random directions give.
CONNECTED = 1.01


def early_writes(phase: Phase) -> list[int]:
    """Indices on the ``write`` axis of both outputs of each layer of the phase's first half."""
    middle = (phase.first + phase.last) // 2
    return [1 + 2 * n + part for n in range(phase.first, middle + 1) for part in (0, 1)]


def first_read(write: int) -> int:
    """The first layer whose ``resid_pre`` holds a write; 0 is the embedding."""
    return 0 if write == 0 else (write - 1) // 2 + 1


def overshadowed(share: Floats, phase: Phase) -> Decision:
    """Does an early write become a small share of what later sublayers read?

    Of the writes of the phase's first half: the decay of the log share per layer further
    on, and what is left at the phase's last layer of the share at the first read.

    Args:
        share: ``[prompt, write, layer]``.
    """
    logs = np.log(share)
    decay, left = [], []
    for write in early_writes(phase):
        layers = np.arange(first_read(write), phase.last + 1, dtype=np.float64)
        curve = logs[:, write, first_read(write) : phase.last + 1]
        decay.append(slopes(curve, layers))
        left.append(curve[:, -1] - curve[:, 0])
    slope = over_prompts(
        "log rate of the share per layer further on",
        np.mean(decay, axis=0),
        region=Region(high=-RATE_MARGIN),
    )
    remaining = over_prompts(
        "share left of the share at the first read",
        np.mean(left, axis=0),
        np.exp,
        Region(high=HALF),
    )
    return decide(slope, remaining)


def overshadowed_not_cancelled(share: Floats, kept: Floats, phase: Phase) -> Decision:
    """Is most of an early write's direction still there when its share has shrunk?

    Of the writes of the phase's first half, at the phase's last layer: the median over
    writes of what is kept along their own direction (1: untouched by later writes, 0:
    cancelled), and of the share by norm.
    """
    chosen = early_writes(phase)
    there = over_prompts(
        "kept of an early write's direction",
        kept[:, chosen, phase.last],
        lambda rows: np.median(rows, axis=-1),
        Region(low=HALF),
    )
    small = np.log(share[:, chosen, phase.last])
    by_norm = over_prompts(
        "its share by norm", small, lambda rows: np.exp(np.median(rows, axis=-1))
    )
    return decide(there, by_norm)


@dataclass(frozen=True)
class Removers:
    """What writes against the stream: ``(layer, index)``, score, most negative first."""

    kind: str
    found: tuple[tuple[int, int, float], ...]

    def __str__(self) -> str:
        if not self.found:
            return f"no {self.kind} removes"
        first = ", ".join(f"{layer}.{i} ({score:+.2g})" for layer, i, score in self.found[:5])
        return f"{len(self.found)} {self.kind}s remove, most: {first}"


def removers(kind: str, mean: Floats, error: Floats, n: int) -> Removers:
    """Those that take more than a thousandth of the stream away, beyond sampling error.

    One-sided t tests over prompts against that size, the false discovery rate held at 5 %
    (Benjamini and Hochberg, ``scipy.stats.false_discovery_control``).

    Args:
        mean: projection on the stream as a share of it, ``[index, layer]``.
        error: its standard error over ``n`` prompts.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        p = stats.t.cdf((mean + TRACE) / error, n - 1)
    p = np.where(np.isfinite(p), p, 1.0)
    sure = stats.false_discovery_control(p.ravel()).reshape(p.shape) < 1 - LEVEL
    order = np.argsort(mean, axis=None)
    places = [np.unravel_index(i, mean.shape) for i in order if sure.ravel()[i]]
    found = tuple((int(layer), int(i), float(mean[i, layer])) for i, layer in places)
    return Removers(kind, found)


def writes_persist(kept: Floats, found: list[Removers]) -> Decision:
    """Does what is written stay, while some heads or neurons do remove?

    What stays: the median over all pairs of a write and a later layer of what is kept
    along the write's direction, at least a half.
    """
    written = np.asarray(np.isfinite(kept).all(axis=0))
    for write in range(kept.shape[1]):
        written[write, : first_read(write) + 1] = False  # nothing could have touched it yet
    stays = over_prompts(
        "kept of a write, median over pairs",
        kept[:, written],
        lambda rows: np.median(rows, axis=-1),
        Region(low=HALF),
    )
    count = sum(len(r.found) for r in found)
    some = exactly("heads and neurons that remove", count, count, Region(low=1), "every unit")
    return decide(stays, some, note="; ".join(map(str, found)))


def connected_beyond_chance(scores: Floats) -> Decision:
    """Are later layers' reading weights aligned with earlier ones' writing weights?

    The mean over later reads of each write's composition, 1 at chance; interval over the
    layers that write. Its slope against the distance in layers is reported.
    """
    rows = np.nanmean(scores[:-2], axis=1)  # the last layer's writes have few readers or none
    layers = rows.reshape(-1, 2).mean(axis=1)
    above = mean_over_layers("composition over chance", layers, Region(low=CONNECTED))
    write, read = np.nonzero(np.isfinite(scores))
    distance = read // 2 - write // 2
    trend = stats.spearmanr(distance, scores[write, read]).statistic
    near = float(np.mean(scores[write, read][distance <= 1]))
    note = f"{near:.3g} for neighbours; rank correlation with distance {trend:+.2f}"
    return decide(above, note=note)


def heavy_tailed(kurtosis: Floats, rotated: Floats, bos: Floats) -> Decision:
    """Is the stream's kurtosis in the standard basis well above that in a rotated one?

    Args:
        kurtosis, rotated: mean logs per prompt, ``[prompt, layer]``.
        bos: kurtosis at position 0, ``[prompt, layer]``; reported.
    """
    ratio = over_prompts(
        "kurtosis over that of a rotated basis",
        (kurtosis - rotated).mean(axis=-1),
        np.exp,
        Region(low=HEAVY),
    )
    level = over_prompts("kurtosis in a rotated basis", rotated.mean(axis=-1), np.exp)
    return decide(ratio, level, note=f"at BOS up to {np.nanmax(bos):.3g}")


def bottleneck(n_layers: int, d_model: int, d_mlp: int) -> Decision:
    """How many neurons write to and read from the middle of the stream, per dimension?"""
    before = n_layers // 2 * d_mlp / d_model
    after = (n_layers - n_layers // 2) * d_mlp / d_model
    region = Region(low=FAR)
    return decide(
        exactly(
            "neurons before the middle, per dimension", before, n_layers, region, "every layer"
        ),
        exactly("neurons after the middle, per dimension", after, n_layers, region, "every layer"),
    )
