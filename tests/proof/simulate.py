"""Simulated measurements whose truth is planted, noisy in the ways that real ones are.

The sizes are those of SmolLM2-135M and Gemma 3 270M on the 68 shipped passages:

* the log norm of a model's mean curve is jagged: its steps stray from a smooth line with a
  standard deviation of 0.04 and 0.16, about six tenths of the growth per layer (0.09 and
  0.23). All prompts share that, so that no number of prompts averages it out;
* a prompt's own mean log norm lies 0.01 to 0.03 off the mean curve, its rate 0.003 to 0.004,
  and its steps 0.02 to 0.03, neighbours among them correlated by -0.1 to -0.2; 0.1 and -0.4 to
  -0.5 for attention's outputs;
* a token's own log norm varies by 0.15 to 0.2 within a prompt, its rate by 0.014, its steps
  by 0.08 to 0.12, with heavy tails.

A prompt's deviation is a random walk, whose steps are correlated between neighbours by 0.5,
which real ones are not, and a flutter that the next layer takes back. Both have Student's t
with 4 degrees of freedom.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import signal

from residcheck.stats.fits import Floats, slopes

Rng = np.random.Generator
Rows = dict[str, Floats]
NEIGHBOURS = 0.5
JAGGED = 0.6
"""The standard deviation of a layer's own step, over the growth per layer."""
TOKENS = 24
"""Ordinary tokens of a simulated prompt; the real ones have up to 127."""
LEVEL, WALK, FLUTTER = 0.02, 0.01, 0.012
TOKEN_LEVEL, TOKEN_WALK, TOKEN_FLUTTER = 0.17, 0.035, 0.05


@dataclass(frozen=True)
class Drawn:
    """What was measured on the prompts that were drawn, and on all there are.

    Args:
        sample: curves by name, prompts first where they have any.
        population: the same curves, of rows whose mean is that of all prompts; drawn only
            where it is asked for.
    """

    sample: Rows
    population: Callable[[], Rows]


def heavy(rng: Rng, shape: tuple[int, ...], size: float) -> Floats:
    """Student's t with 4 degrees of freedom, of standard deviation ``size``."""
    return np.asarray(size * rng.standard_t(4, shape) / np.sqrt(2))


def correlated(rng: Rng, shape: tuple[int, ...], size: float, by: float = NEIGHBOURS) -> Floats:
    """A stationary series along the last axis, of standard deviation ``size``."""
    warm = 8
    noise = heavy(rng, (*shape[:-1], shape[-1] + warm), size * np.sqrt(1 - by**2))
    return np.asarray(signal.lfilter([1.0], [1.0, -by], noise, axis=-1)[..., warm:])


def deviations(
    rng: Rng, shape: tuple[int, ...], level: float, walk: float, flutter: float
) -> Floats:
    """How far units lie off the curve that they share, ``[..., layer]``."""
    own = level * rng.normal(size=(*shape[:-1], 1)) + heavy(rng, shape, flutter)
    return np.asarray(own + correlated(rng, shape, walk).cumsum(axis=-1)) if walk else own


def of_prompts(
    rng: Rng,
    curve: Floats,
    prompts: int,
    level: float = LEVEL,
    walk: float = WALK,
    flutter: float = FLUTTER,
) -> Floats:
    """Mean logs per prompt around the mean of all prompts, ``[prompt, layer]``."""
    return np.asarray(curve + deviations(rng, (prompts, len(curve)), level, walk, flutter))


def of_tokens(rng: Rng, curve: Floats, prompts: int) -> Floats:
    """Logs per token, ``[prompt, token, layer]``: prompts are clusters of tokens."""
    means = of_prompts(rng, curve, prompts)[:, None]
    shape = (prompts, TOKENS, len(curve))
    return np.asarray(means + deviations(rng, shape, TOKEN_LEVEL, TOKEN_WALK, TOKEN_FLUTTER))


def jagged(rng: Rng, steps: Floats, size: float) -> Floats:
    """The log curve of a model, each layer of which strays from the step it should make."""
    strayed = steps + size * rng.normal(size=len(steps))
    return np.concatenate([[3.0], 3.0 + strayed.cumsum()])


def exponential(rng: Rng, layers: int, rate: float, size: float | None = None) -> Floats:
    """A jagged curve that grows at a constant log rate."""
    strays = JAGGED * abs(rate) if size is None else size
    return jagged(rng, np.full(layers - 1, rate), strays)


def turned(curve: Floats, rate: float, window: slice) -> Floats:
    """The curve, tilted so that its slope over the window is the rate."""
    layers = np.arange(len(curve), dtype=np.float64)
    return np.asarray(curve + (rate - slopes(curve[window], layers[window])) * layers)


def linear(rng: Rng, layers: int, growth: float) -> Floats:
    """A norm that grows by equal amounts, ``growth`` in logs from end to end, as jagged."""
    norm = 1 + np.linspace(0, np.expm1(growth), layers)
    return jagged(rng, np.diff(np.log(norm)), JAGGED * growth / (layers - 1))


def tokens_of(logs: Mapping[str, Floats]) -> Rows:
    """Curves of one token a prompt besides position 0, whose mean logs are ``logs``."""
    return {name: with_bos(np.exp(values)[:, None]) for name, values in logs.items()}


def with_bos(tokens: Floats, bos: Floats | float = 1.0) -> Floats:
    """``[prompt, position, layer]``, position 0 before the tokens."""
    first = np.broadcast_to(bos, (len(tokens), 1, tokens.shape[-1]))
    return np.concatenate([first, tokens], axis=1)
