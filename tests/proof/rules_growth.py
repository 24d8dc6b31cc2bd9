"""Streams and what sublayers add to them, with an effect that is planted."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from proof.simulate import (
    Drawn,
    Rng,
    deviations,
    exponential,
    linear,
    of_prompts,
    of_tokens,
    tokens_of,
    turned,
    with_bos,
)
from scipy import optimize

from residcheck.stats import Phase, choose_phase, slopes
from residcheck.stats.fits import Floats
from residcheck.stats.rules import rate_margin
from residcheck.stats.shape import acceleration

RATE = 0.08
"""Log rate of a stream of which only the rate matters: that of SmolLM2-135M."""
MANY = 320
"""Prompts that stand for all of them where tokens differ."""
XL = slice(5, 42)


def stream_of(rng: Rng, curve: Floats, prompts: int, name: str = "resid_post_norm") -> Drawn:
    """Prompts around a curve of mean logs."""
    rows = of_prompts(rng, curve, prompts)
    return Drawn(tokens_of({name: rows}), lambda: tokens_of({name: curve[None]}))


def growing(rng: Rng, prompts: int, layers: int, rate: float) -> Drawn:
    """A stream that grows exponentially, by ``rate`` a layer in logs."""
    size = 0.03 if rate <= 0 else None
    return stream_of(rng, exponential(rng, layers, rate, size), prompts)


def lines(rng: Rng, prompts: int, layers: int, growth: float) -> Drawn:
    """A stream that grows linearly, by ``growth`` in logs from end to end."""
    return stream_of(rng, linear(rng, layers, growth), prompts)


def roots(rng: Rng, prompts: int, layers: int, growth: float) -> Drawn:
    """A stream that grows as the root of the depth, what uncorrelated writes of one size give."""
    return stream_of(rng, linear(rng, layers, 2 * growth) / 2, prompts)


def published(rng: Rng, prompts: int, layers: int, rate: float) -> Drawn:
    """A stream whose factor per layer over the published window is exactly ``rate``."""
    curve = turned(exponential(rng, layers, 0.044), float(np.log(rate)), XL)
    return stream_of(rng, curve, prompts)


def activating(rng: Rng, prompts: int, layers: int, rate: float) -> Drawn:
    """An activation rate that rises exponentially."""
    size = 0.03 if rate <= 0 else None
    curve = exponential(rng, layers, rate, size)
    return stream_of(rng, curve - curve.max() - 1, prompts, "activation_rate")


def activating_lines(rng: Rng, prompts: int, layers: int, growth: float) -> Drawn:
    """An activation rate that rises linearly."""
    curve = linear(rng, layers, growth)
    return stream_of(rng, curve - curve.max() - 1, prompts, "activation_rate")


def bent(rng: Rng, prompts: int, layers: int, change: float) -> Drawn:
    """A stream whose rate changes by ``change`` of its mean from one half to the other."""
    curve = exponential(rng, layers, RATE, 0.2 * RATE)
    bow = (np.arange(layers) - (layers - 1) / 2) ** 2 / layers  # of no slope of its own
    straight, curved = float(acceleration(curve)), float(acceleration(curve + bow * RATE))
    size = RATE * (change - straight) / (curved - straight)
    return stream_of(rng, curve + size * bow, prompts)


def tokens_around(rng: Rng, curve: Floats, prompts: int) -> Drawn:
    """Tokens around a curve of mean logs."""
    tokens = with_bos(np.exp(of_tokens(rng, curve, prompts)))

    def population() -> dict[str, Floats]:
        return {"resid_post_norm": with_bos(np.exp(of_tokens(rng, curve, MANY)))}

    return Drawn({"resid_post_norm": tokens}, population)


def stepping(rng: Rng, prompts: int, layers: int, down: float) -> Drawn:
    """All tokens go up at every layer but for a share ``down`` of them, evenly spread, at
    which they go down."""
    steps = np.full(layers - 1, 0.1)
    if down:
        steps[rng.integers(round(1 / down)) :: round(1 / down)] = -0.06
    return tokens_around(rng, np.concatenate([[3.0], 3 + steps.cumsum()]), prompts)


def alike(rng: Rng, prompts: int, layers: int, times: float) -> Drawn:
    """Every step is ``times`` as large as what 5 % of the tokens' own steps take away.

    So 5 % of the ratios are at most 1 where ``times`` is 1.
    """
    steps = np.diff(of_tokens(rng, np.zeros(layers), MANY), axis=-1)
    rate = -times * float(np.quantile(steps, 0.05))
    return tokens_around(rng, 3 + rate * np.arange(layers), prompts)


def first_position(rng: Rng, prompts: int, layers: int, deviation: float) -> Drawn:
    """Position 0 goes up ``deviation`` standard deviations from the tokens, and back again."""
    curve = 3 + 0.005 * np.arange(layers)
    every = of_tokens(rng, curve, MANY)
    mean, spread = every.mean(axis=(0, 1)), every.std(axis=(0, 1))
    first, last = max(1, layers // 5), layers - max(1, layers // 10)
    high = mean + deviation * spread
    low = np.minimum(mean, high.max() - 1.2)
    place = np.arange(layers)
    bos = np.where((place >= first) & (place < last), high, low)

    def rows(tokens: Floats) -> dict[str, Floats]:
        return {"resid_post_norm": with_bos(np.exp(tokens), np.exp(bos))}

    return Drawn(rows(of_tokens(rng, curve, prompts)), lambda: rows(every))


def window_of(stream: Floats) -> Phase:
    """The window that the even prompts choose, as the claims have it."""
    return chosen_once(stream[::2].mean(axis=0))


def chosen_once(log_norm: Floats) -> Phase:
    """The window of a curve, looked for once although a case and its claim both want it."""
    return _chosen(tuple(np.round(log_norm, 9)))


@lru_cache(maxsize=8)
def _chosen(log_norm: tuple[float, ...]) -> Phase:
    return choose_phase(np.array(log_norm))


def beside(rng: Rng, curve: Floats, other: Floats, margins: float, window: Phase) -> Floats:
    """``other`` tilted so that over the window its rate differs from the curve's by that
    many of the margins within which rates count as the same."""
    rate = float(slopes(curve[window.window], window.layers))
    wanted = rate + margins * rate_margin(np.array([rate]))
    layers = np.arange(len(curve), dtype=np.float64)
    now = float(slopes(other[window.window], window.layers))
    return np.asarray(other + (wanted - now) * layers)


def middles(rng: Rng, prompts: int, layers: int, margins: float) -> Drawn:
    """resid_mid beside resid_post: one walk, a flutter of its own."""
    curve = exponential(rng, layers, RATE)
    post = of_prompts(rng, curve, prompts)
    window = window_of(post).inside
    mid = beside(rng, curve, curve + 0.03 * rng.normal(size=layers), margins, window)
    rows = mid + post - curve + deviations(rng, post.shape, 0.006, 0.002, 0.018)
    return Drawn(
        tokens_of({"resid_post_norm": post, "resid_mid_norm": rows}),
        lambda: tokens_of({"resid_post_norm": curve[None], "resid_mid_norm": mid[None]}),
    )


def sublayers(rng: Rng, prompts: int, layers: int, margins: float) -> Drawn:
    """Outputs of both sublayers, of which attention's rate is off by so many margins."""
    curve = exponential(rng, layers, RATE)
    post = of_prompts(rng, curve, prompts)
    window = window_of(post).inside
    means = {"resid_post_norm": curve}
    rows = {"resid_post_norm": post}
    for name, off in (("attn_out_norm", margins), ("mlp_out_norm", 0.0)):
        means[name] = beside(rng, curve, curve + 0.3 * rng.normal(size=layers), off, window)
        rows[name] = outputs_of(rng, means[name], prompts)
    return Drawn(tokens_of(rows), lambda: tokens_of({k: v[None] for k, v in means.items()}))


def outputs_of(rng: Rng, curve: Floats, prompts: int) -> Floats:
    """Log norms of a sublayer's output: they flutter more than the stream does."""
    return of_prompts(rng, curve, prompts, level=0.04, flutter=0.07)


# What a sublayer adds, over the stream: geometric means of about 0.2 in both models, and how
# they and the cosines vary with the prompt and the token. Layers are alike, so that the share
# is the same over any window.
ADDED = np.log(0.2)
SPREADS = ((0.085, 0.33), (0.02, 0.15))


def adding(rng: Rng, prompts: int, layers: int, share: float) -> Drawn:
    """Blocks in which uncorrelated outputs would give a ``share`` of the growth."""
    wanted = _cosine_for(share)
    sample = _added(_addends(rng, prompts, layers), wanted)
    return Drawn(sample, lambda: _added(_addends(rng, MANY, layers), wanted))


@lru_cache
def _cosine_for(share: float) -> float:
    """The mean cosine that gives this share, found on far more outputs than are ever judged:
    one found on a few thousand would be off the boundary by what 64 prompts can tell."""
    some = _addends(np.random.default_rng(0), 64 * MANY, 6)
    return float(optimize.brentq(lambda c: _share(some, c) - share, 0.0, 0.85, xtol=1e-6))


def _addends(rng: Rng, prompts: int, layers: int) -> tuple[Floats, Floats]:
    """Log ratios and cosines, but for the mean cosine: ``[output, prompt, token, layer]``."""
    shape = (2, prompts, 8, layers)
    ratios, cosines = (
        prompt * rng.normal(size=(2, prompts, 1, layers)) + clipped(rng, shape, token)
        for prompt, token in SPREADS
    )
    return np.exp(ADDED + ratios), cosines


def clipped(rng: Rng, shape: tuple[int, ...], size: float) -> Floats:
    """Heavy tails, cut off where a cosine or a norm would leave its range."""
    return np.clip(rng.standard_t(4, shape) / np.sqrt(2), -3, 3) * size


def _grown(ratio: Floats, cosine: Floats) -> Floats:
    return np.asarray(0.5 * np.log1p(2 * ratio * cosine + ratio**2))


def _share(addends: tuple[Floats, Floats], cosine: float) -> float:
    ratio, cosines = addends[0], np.clip(cosine + addends[1], -0.98, 0.98)
    alone = 0.5 * np.log1p(ratio**2)
    return float(alone.sum() / _grown(ratio, cosines).sum())


def _added(addends: tuple[Floats, Floats], cosine: float) -> dict[str, Floats]:
    """Norms and cosines of blocks whose outputs have this mean cosine with the stream."""
    ratio, cosines = addends[0], np.clip(cosine + addends[1], -0.98, 0.98)
    grown = _grown(ratio, cosines)
    post = 3 + grown.sum(axis=0).cumsum(axis=-1)
    pre = post - grown.sum(axis=0)
    mid = pre + grown[0]
    logs = {
        "resid_pre_norm": pre,
        "resid_mid_norm": mid,
        "resid_post_norm": post,
        "attn_out_norm": pre + np.log(ratio[0]),
        "mlp_out_norm": mid + np.log(ratio[1]),
    }
    rows = {name: with_bos(np.exp(values)) for name, values in logs.items()}
    return rows | {"attn_out_cosine": with_bos(cosines[0]), "mlp_out_cosine": with_bos(cosines[1])}
