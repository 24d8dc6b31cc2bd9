"""The decision rules of families C and D: what weights say of the growth.

Curves of weights, ``[layer]``, do not vary with prompts; what they are held against does,
``[prompt, layer]``; random inputs are ``[draw, layer]``. All are logs. Margins are those of
:mod:`residcheck.stats.rules`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import stats

from residcheck.stats.decision import DRAWS, Decision, Estimate, Region, decide, exactly
from residcheck.stats.fits import Floats, slopes
from residcheck.stats.intervals import over_prompts, rate_over_layers
from residcheck.stats.phase import Phase
from residcheck.stats.resampling import estimate, resampled
from residcheck.stats.rules import HALF, MOSTLY, rate_margin, same_rate
from residcheck.stats.shape import EDGE, VISIBLE

# A vector adds less than the visible 5 % to the norm of a sum with one across it.
NEGLIGIBLE = float(np.sqrt(1.05**2 - 1))
# A theorem may fail once in ten thousand sets of draws by chance.
FAMILY_WISE = 1e-4
# "About 5x" and "about 4x", published to one digit.
ONE_DIGIT = 0.5


def _alike(log_curve: Floats, log_prompts: Floats) -> Floats:
    """A curve of the weights as one row a prompt."""
    return np.broadcast_to(log_curve, log_prompts.shape)


def weights_track(log_weights: Floats, log_output: Floats, phase: Phase) -> Decision:
    """Do a norm of the weights and the norm of what is written grow at one rate?

    Also reported: the correlation of the two log curves over the phase, which any two
    growing curves have, and how far their ratio strays over it.
    """
    difference = same_rate(
        "log rate of W_OV minus attn_out's", _alike(log_weights, log_output), log_output, phase
    )
    weights = log_weights[phase.window]
    correlation = over_prompts(
        "correlation of the logs",
        log_output[:, phase.window],
        lambda rows: _correlation(rows, weights),
    )
    spread = over_prompts(
        "spread of the log ratio over layers",
        log_output[:, phase.window],
        lambda rows: np.std(rows - weights, axis=-1),
    )
    return decide(difference, correlation, spread)


def _correlation(rows: Floats, curve: Floats) -> Floats:
    y, x = rows - rows.mean(axis=-1, keepdims=True), curve - curve.mean()
    scale = np.sqrt((y**2).sum(axis=-1) * (x**2).sum())
    return np.asarray(y @ x / np.where(scale > 0, scale, 1.0))


def negligible_beside(log_bias: Floats, log_output: Floats) -> Decision:
    """Is a bias small beside what is written, but for the last tenth of the layers?

    Small: added across it, it changes the norm by less than 5 %.
    """
    n_layers = len(log_bias)
    early = slice(0, n_layers - round(EDGE * n_layers))

    def small(rows: Floats) -> Floats:
        return np.asarray(np.mean(log_bias[early] - rows[..., early] < np.log(NEGLIGIBLE), axis=-1))

    share = over_prompts(
        "share of early layers with a small ratio", log_output, small, Region(MOSTLY)
    )
    ratio = np.exp(log_bias - log_output.mean(axis=0))
    note = (
        f"median ratio {np.median(ratio):.2g}, largest {ratio.max():.2g} at layer "
        f"{int(ratio.argmax())}, last layer {ratio[-1]:.2g}"
    )
    return decide(share, note=note)


def larger_than_real(
    what: str, draws: Floats, log_real: Floats, phase: Phase, published: float | None = None
) -> Estimate:
    """Mean ratio of what random inputs give to what real ones do, over the phase.

    The interval is over prompts and allows for the draws: both are resampled.

    Args:
        draws: logs, ``[draw, layer]``, of which the mean is taken, as of the real ones'.
        published: a factor known to one digit; else it need only be above 1.
    """
    random, real = (x[:, phase.window].mean(axis=-1) for x in (draws, log_real))
    ratios = np.exp(resampled(random, seed=1) - resampled(real))
    region = Region(low=1.0)
    if published is not None:
        region = Region(published - ONE_DIGIT, published + ONE_DIGIT)
    value = float(np.exp(random.mean() - real.mean()))
    return estimate(what, value, ratios, len(log_real), region)


def precision_of(draws: Floats) -> str:
    """How many draws there are, and how well they fix the mean log of a layer."""
    error = draws.std(axis=0) / np.sqrt(len(draws))
    return f"{len(draws)} draws, each layer's mean known to {np.expm1(error.max()):.1%}"


def random_mlp(draws: Floats, log_mlp: Floats, phase: Phase) -> Decision:
    """Do the MLPs' outputs on Gaussian inputs grow as their real ones do, and are larger?"""
    random, real = (slopes(x[:, phase.window], phase.layers) for x in (draws, log_mlp))
    margin = rate_margin(real)
    rate = estimate(
        "log rate on random inputs minus mlp_out's",
        float(random.mean() - real.mean()),
        resampled(random, seed=1) - resampled(real),
        len(log_mlp),
        Region(-margin, margin),
    )
    ratio = larger_than_real("ratio to mlp_out", draws, log_mlp, phase)
    return decide(rate, ratio, note=precision_of(draws))


def random_activation(
    draws: Floats, log_rate: Floats, phase: Phase, published: float | None
) -> Decision:
    """Do Gaussian inputs activate more neurons than real ones, and ever more with depth?"""
    ratio = larger_than_real("ratio to the real rate", draws, log_rate, phase, published)
    rises = over_prompts(
        "log rate of the random activation rate",
        draws[:, phase.window],
        lambda rows: slopes(rows, phase.layers),
        Region(low=0.0),
        population=DRAWS,
    )
    return decide(ratio, rises, note=precision_of(draws))


def resampled_like_real(
    resampled_draws: Floats, gaussian: Floats, log_real: Floats, phase: Phase
) -> Decision:
    """Is the rate on resampled streams near the real one, and that on Gaussians far?

    Distances are mean absolute log ratios over the phase. Near: less than half as far as
    the Gaussian rate; far: more than the visible 5 %. Prompts and draws are resampled.
    """
    samples = [x[:, phase.window] for x in (log_real, resampled_draws, gaussian)]

    def distances(real: Floats, near: Floats, far: Floats) -> tuple[Floats, Floats]:
        distance = np.abs(real - far).mean(axis=-1)
        return np.abs(real - near).mean(axis=-1) / distance, distance

    ratio, distance = distances(*(x.mean(axis=0) for x in samples))
    ratios, away = distances(*(resampled(x, seed=seed) for seed, x in enumerate(samples)))
    n, what = len(log_real), "distance of the resampled rate, over the Gaussian's"
    near = estimate(what, float(ratio), ratios, n, Region(high=HALF))
    far = estimate("distance of the Gaussian rate", float(distance), away, n, Region(VISIBLE))
    return decide(near, far, note=precision_of(resampled_draws))


def slower_than_stream(
    log_weights: dict[str, Floats], log_stream: Floats, phase: Phase
) -> Decision:
    """Does every norm grow more slowly than the stream, by more than equal rates may differ?"""
    stream = slopes(log_stream[:, phase.window], phase.layers)
    margin = rate_margin(stream)
    estimates = [
        over_prompts(
            f"log rate of {name} minus the stream's",
            float(slopes(curve[phase.window], phase.layers)) - stream,
            region=Region(high=-margin),
        )
        for name, curve in log_weights.items()
    ]
    return decide(*estimates)


def reading_and_writing(
    reading: dict[str, Floats], writing: dict[str, Floats], stored: dict[str, Floats]
) -> Decision:
    """Do writing weights grow through the network while reading weights do not?

    Log rates over all layers, with intervals over layers. Writing: above 0. Reading: at
    most half of the mean writing rate, up or down. ``stored``: reported only.
    """
    grow = [_whole_rate(name, curve, Region(low=0.0)) for name, curve in writing.items()]
    bound = HALF * max(float(np.mean([e.value for e in grow])), 0.0)
    constant = [_whole_rate(n, curve, Region(-bound, bound)) for n, curve in reading.items()]
    reported = [_whole_rate(f"{name} as stored", curve, None) for name, curve in stored.items()]
    return decide(*grow, *constant, *reported)


def _whole_rate(name: str, log_curve: Floats, region: Region | None) -> Estimate:
    layers = np.arange(len(log_curve), dtype=np.float64)
    return rate_over_layers(f"log rate of {name}", log_curve, layers, region)


def frobenius_theorem(parts: Mapping[str, Floats]) -> Decision:
    """Is the mean of ``|Wx|^2`` over its expectation 1, for every matrix, up to sampling?

    Args:
        parts: per kind of input the ratios, ``[draw, matrix, layer]``; NaN where a model has
            no such matrix.
    """
    estimates = []
    notes = []
    for kind, ratios in parts.items():
        n = len(ratios)
        error = ratios.std(axis=0, ddof=1) / np.sqrt(n)
        off = np.abs(ratios.mean(axis=0) - 1) / error
        count = int(np.isfinite(off).sum())
        # Sums of squares are skewed: the t quantile allows for it at hundreds of draws.
        bound = float(stats.t.isf(FAMILY_WISE / 2 / max(count, 1), n - 1))
        worst = float(np.nanmax(off))
        estimates.append(
            exactly(
                f"largest error in standard errors, {kind} x",
                worst,
                count,
                Region(high=bound),
                "every matrix",
            )
        )
        notes.append(f"{kind}: {n} draws, median standard error {np.nanmedian(error):.1%}")
    return decide(*estimates, note="; ".join(notes))
