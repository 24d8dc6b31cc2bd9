"""Weights, random inputs and what they are held against, with an effect that is planted."""

from __future__ import annotations

import numpy as np
from proof.rules_growth import RATE, beside, outputs_of, window_of
from proof.simulate import (
    Drawn,
    Rng,
    Rows,
    exponential,
    of_prompts,
    tokens_of,
)
from scipy import signal

from residcheck.stats import Phase, slopes
from residcheck.stats.fits import Floats
from residcheck.stats.weight_rules import NEGLIGIBLE

DRAWS = 256
MODEL_LAYERS_STRAY = 0.3
"""Sublayers' mean log norms stray by 0.3 to 0.5 from their line; matrices' by 0.03 to 0.6."""


def streams(rng: Rng, prompts: int, layers: int) -> tuple[Floats, Floats, Phase]:
    """An exponential stream: its curve, its prompts, and the blocks of its window."""
    curve = exponential(rng, layers, RATE)
    rows = of_prompts(rng, curve, prompts)
    return curve, rows, window_of(rows).inside


def straying(rng: Rng, curve: Floats, size: float = MODEL_LAYERS_STRAY) -> Floats:
    return np.asarray(curve + size * rng.normal(size=curve.shape))


def _both(logs: Rows, means: Rows, fixed: Rows, fixed_mean: Rows | None = None) -> Drawn:
    """Prompts around means, and what does not vary with prompts."""
    everyone = tokens_of({name: mean[None] for name, mean in means.items()})
    return Drawn(tokens_of(logs) | fixed, lambda: everyone | (fixed_mean or fixed))


def draws_of(rng: Rng, curve: Floats, spread: float) -> Floats:
    """Random inputs, each layer's own: ``[draw, layer]``."""
    return np.asarray(np.exp(curve + spread * rng.normal(size=(DRAWS, len(curve)))))


def ov_weights(rng: Rng, prompts: int, layers: int, margins: float) -> Drawn:
    """W_OV's rate is so many margins off that of attn_out."""
    curve, post, window = streams(rng, prompts, layers)
    attn = straying(rng, curve)
    weights = beside(rng, attn, straying(rng, attn), margins, window)
    return _both(
        {"resid_post_norm": post, "attn_out_norm": outputs_of(rng, attn, prompts)},
        {"resid_post_norm": curve, "attn_out_norm": attn},
        {"ov_frobenius": np.exp(weights)[None]},
    )


def biases(rng: Rng, prompts: int, layers: int, below: float) -> Drawn:
    """A bias that is small in nine tenths of the early layers if ``below`` is above 0.

    The layer on which it turns lies that far below the ratio that counts as small, in logs.
    """
    attn = straying(rng, 3 + RATE * np.arange(layers))
    off = 0.5 * rng.normal(size=layers)
    early = layers - round(0.1 * layers)
    largest = np.sort(off[:early])[::-1]
    turns = largest[early // 10]  # a tenth of the early layers may be larger
    bias = attn + np.log(NEGLIGIBLE) - below - turns + off
    return _both(
        {"attn_out_norm": outputs_of(rng, attn, prompts)},
        {"attn_out_norm": attn},
        {"b_O_norm": np.exp(bias)},
    )


def ov_inputs(rng: Rng, prompts: int, layers: int, factor: float) -> Drawn:
    """Random inputs give ``factor`` times what real ones do, over the window."""
    curve, post, window = streams(rng, prompts, layers)
    return _ratio(rng, prompts, curve, post, window, factor)


def ov_inputs_published(rng: Rng, prompts: int, layers: int, factor: float) -> Drawn:
    """The same, over the blocks of the published window."""
    curve = exponential(rng, layers, RATE)
    post = of_prompts(rng, curve, prompts)
    return _ratio(rng, prompts, curve, post, Phase(5, 41, "published").inside, factor)


def _ratio(
    rng: Rng, prompts: int, curve: Floats, post: Floats, window: Phase, factor: float
) -> Drawn:
    attn = straying(rng, curve)
    random = _lifted(straying(rng, attn), attn, window, factor)
    return _both(
        {"resid_post_norm": post, "attn_out_norm": outputs_of(rng, attn, prompts)},
        {"resid_post_norm": curve, "attn_out_norm": attn},
        {"ov_random_norm": draws_of(rng, random, 0.15)},
        {"ov_random_norm": np.exp(np.tile(random, (DRAWS, 1)))},
    )


def _lifted(random: Floats, real: Floats, window: Phase, factor: float) -> Floats:
    """``random`` so that its geometric mean over the window is ``factor`` times the other's."""
    return np.asarray(random + np.log(factor) - (random - real)[window.window].mean())


def mlp_inputs(rng: Rng, prompts: int, layers: int, margins: float) -> Drawn:
    """MLPs' outputs on random inputs are twice the real ones, their rate so far off."""
    curve, post, window = streams(rng, prompts, layers)
    mlp = straying(rng, curve)
    random = beside(rng, mlp, straying(rng, mlp), margins, window)
    random = _lifted(random, mlp, window, 2.0)
    return _both(
        {"resid_post_norm": post, "mlp_out_norm": outputs_of(rng, mlp, prompts)},
        {"resid_post_norm": curve, "mlp_out_norm": mlp},
        {"mlp_random_norm": draws_of(rng, random, 0.2)},
        {"mlp_random_norm": np.exp(np.tile(random, (DRAWS, 1)))},
    )


def flat_weights(rng: Rng, prompts: int, layers: int, margins: float) -> Drawn:
    """W_out's rate is below the stream's by so many margins, the others' by all of it."""
    curve, post, window = streams(rng, prompts, layers)
    level = straying(rng, np.zeros(layers), 0.1)
    none = level - float(slopes(level[window.window], window.layers)) * np.arange(layers)
    other = beside(rng, curve, straying(rng, curve, 0.1), -margins, window)
    fixed = {
        "W_in_frobenius": np.exp(none),
        "W_out_frobenius": np.exp(other),
        "W_in_W_out_frobenius": np.exp(none + 0.5),
    }
    return _both({"resid_post_norm": post}, {"resid_post_norm": curve}, fixed)


def reading(rng: Rng, prompts: int, layers: int, share: float) -> Drawn:
    """W_in grows at a ``share`` of the writing weights' rate, W_Q and W_K do not.

    Matrices stray from their line by 0.03 to 0.6, neighbours correlated by 0 to 0.7.
    """
    rate = 2.4 / layers
    rates = {"W_O": rate, "W_out": rate, "W_Q": 0.0, "W_K": 0.0, "W_in": share * rate}
    lines = {f"{k}_frobenius": r * np.arange(layers) for k, r in rates.items()}
    sample = {}
    for name, line in lines.items():
        noise = rng.normal(size=layers + 8) * 0.2 * np.sqrt(1 - 0.4**2)
        sample[name] = np.exp(line + signal.lfilter([1.0], [1.0, -0.4], noise)[8:])
    rows = {"loss": np.zeros((prompts, 2))}
    return Drawn(sample | rows, lambda: {k: np.exp(v) for k, v in lines.items()} | rows)


def random_rates(rng: Rng, prompts: int, layers: int, rate: float) -> Drawn:
    """Gaussian inputs activate half as many neurons again, and ``rate`` more each layer."""
    return _rates(rng, prompts, layers, 1.5, rate, None)


def random_rates_published(rng: Rng, prompts: int, layers: int, factor: float) -> Drawn:
    """They activate ``factor`` times as many over the published window, more each layer."""
    return _rates(rng, prompts, layers, factor, 0.01, Phase(5, 20, "published"))


def _rates(
    rng: Rng, prompts: int, layers: int, factor: float, rate: float, window: Phase | None
) -> Drawn:
    curve = exponential(rng, layers, 0.03, 0.05)
    curve = curve - curve.max() - np.log(2 * factor)
    rows = of_prompts(rng, curve, prompts)
    chosen = window or window_of(rows)
    random = straying(rng, curve.mean() + np.zeros(layers), 0.02)
    random = random + (rate - float(slopes(random[chosen.window], chosen.layers))) * np.arange(
        layers
    )
    random = _lifted(random, curve, chosen, factor)
    return _both(
        {"activation_rate": rows},
        {"activation_rate": curve},
        {"activation_rate_random": draws_of(rng, random, 0.075)},
        {"activation_rate_random": np.exp(np.tile(random, (DRAWS, 1)))},
    )


def resampled_rates(rng: Rng, prompts: int, layers: int, share: float) -> Drawn:
    """Resampled streams are ``share`` as far from the real rate as Gaussian ones are.

    Those are 0.4 off in logs at every layer, the former up or down by layer.
    """
    curve = exponential(rng, layers, 0.03, 0.05)
    curve = curve - curve.max() - 1.0
    signs = rng.choice([-1.0, 1.0], size=layers)
    resampled, gaussian = curve + 0.4 * share * signs, curve + 0.4
    fixed, everyone = (
        {
            "activation_rate_resampled": make(resampled, 0.15),
            "activation_rate_random": make(gaussian, 0.075),
        }
        for make in (
            lambda mean, spread: draws_of(rng, mean, spread),
            lambda mean, _: np.exp(np.tile(mean, (DRAWS, 1))),
        )
    )
    rows = {"activation_rate": of_prompts(rng, curve, prompts)}
    return _both(rows, {"activation_rate": curve}, fixed, everyone)


def theorem(rng: Rng, prompts: int, layers: int, off: float) -> Drawn:
    """Squared lengths over their expectation, one matrix of which is ``off`` by a share.

    A single draw's varies by 0.11 in SmolLM2-135M and by 0.15 in Gemma 3 270M.
    """
    curves = {}
    for name in ("frobenius_gaussian", "frobenius_normalized"):
        draws = rng.gamma(1 / 0.15**2, 0.15**2, size=(DRAWS, 7, layers))
        draws[:, 0, 0] *= 1 + off
        curves[name] = draws
    curves["loss"] = np.zeros((prompts, 2))
    return Drawn(curves, lambda: curves)
