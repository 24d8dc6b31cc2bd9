"""Family D: is the growth in the MLPs' weights?"""

from __future__ import annotations

import numpy as np

from residcheck.claim import claim
from residcheck.curves import Run
from residcheck.stats import (
    exponential_phase,
    random_activation,
    random_mlp,
    resampled_like_real,
    slower_than_stream,
)
from residcheck.verdict import Figure, Finding

from .published import (
    NORM_GROWTH,
    activation_log,
    activation_phase,
    facts_about,
    growth_phase,
    mlp_phase,
)

MLP_NORMS = {
    "W_in": "W_in_frobenius",
    "W_gate": "W_gate_frobenius",
    "W_out": "W_out_frobenius",
    "W_in W_out": "W_in_W_out_frobenius",
    "b_in W_out": "b_in_W_out_norm",
    "b_out": "b_out_norm",
}


@claim(
    "mlp-random-input",
    family="D",
    statement="On normalised Gaussian inputs the MLPs' outputs grow exponentially, at the rate "
    "of mlp_out, and are larger than mlp_out.",
    source=NORM_GROWTH,
    published="GPT2-XL, layers 30-43: 1.045",
    needs=("mlp_random_norm", "mlp_out_norm", "resid_post_norm"),
)
def test_mlp_random_input(run: Run) -> Finding:
    """Over the published window or the phase's blocks: difference of the log rates within
    11 % of mlp_out's (0.005 at least), and the ratio of the norms above 1."""
    phase, unseen = mlp_phase(run)
    draws = np.log(run["mlp_random_norm"].double)
    decision = random_mlp(draws, run["mlp_out_norm"].prompt_log[unseen], phase)
    figure = Figure(("mlp_random_norm", "mlp_out_norm"), phase=phase)
    return Finding(decision.with_note(f"{phase}"), figure)


@claim(
    "activation-rate",
    family="D",
    statement="The share of hidden neurons with a pre-activation above 0 rises exponentially.",
    source=NORM_GROWTH,
    published="GPT2-XL, layers 5-20",
    needs=("activation_rate",),
)
def test_activation_rate(run: Run) -> Finding:
    """As for the growth of the norm, with a window of its own: the rate must rise, and the
    exponential beat linear, square-root and power-law growth, on prompts that did not
    choose the window. In a gated MLP the pre-activation is the gate's."""
    phase, unseen = activation_phase(run)
    decision = exponential_phase(activation_log(run)[unseen], phase)
    note = f"{phase}{_gate(run)}"
    return Finding(decision.with_note(note), Figure(("activation_rate",), phase=phase))


@claim(
    "activation-rate-random",
    family="D",
    statement="Normalised Gaussian inputs activate more neurons than real ones, and more and "
    "more with depth.",
    source=NORM_GROWTH,
    published="GPT2-XL: about 4 times",
    needs=("activation_rate_random", "activation_rate"),
)
def test_activation_rate_random(run: Run) -> Finding:
    """Geometric mean over the window of the ratio of geometric means: above 1, or where a factor
    was published within 0.5 of it; and a log rate of the random curve above 0. A linear
    gate without biases sends half of all Gaussian vectors above 0 whatever its weights."""
    phase, unseen = activation_phase(run)
    draws = _log(run, "activation_rate_random")
    factor = facts_about(run).activation_random_factor
    real = activation_log(run)[unseen]
    decision = random_activation(draws, real, phase, factor)
    figure = Figure(("activation_rate_random", "activation_rate"), log=False, phase=phase)
    return Finding(decision.with_note(f"{phase}{_gate(run)}"), figure)


@claim(
    "activation-rate-resampled",
    family="D",
    statement="Real streams resampled at random activate as many neurons as real runs do, not "
    "as Gaussian inputs do.",
    source=NORM_GROWTH,
    published="GPT2-XL: resid_mid from positions 1 to 6, beside the real and random curves",
    needs=("activation_rate_resampled", "activation_rate_random", "activation_rate"),
    uses=("activation_rate_shuffled",),
)
def test_activation_rate_resampled(run: Run) -> Finding:
    """Mean absolute log ratios to the real rate over the window: that of the resampled
    vectors at most half of the Gaussian ones', which must be above 5 %. Coordinates
    resampled one by one are drawn beside them and decide nothing."""
    phase, unseen = activation_phase(run)
    resampled, gaussian = (_log(run, f"activation_rate_{kind}") for kind in ("resampled", "random"))
    real = activation_log(run)[unseen]
    decision = resampled_like_real(resampled, gaussian, real, phase)
    curves = ("activation_rate", "activation_rate_resampled", "activation_rate_random")
    figure = Figure((*curves, "activation_rate_shuffled"), log=False, phase=phase)
    return Finding(decision.with_note(f"{phase}{_gate(run)}"), figure)


@claim(
    "mlp-weight-norms-flat",
    family="D",
    statement="No norm of the MLPs' weights and biases grows at the stream's rate: W_in, W_out, "
    "W_in W_out, b_in W_out, b_out.",
    source=NORM_GROWTH,
    published="GPT2-XL, appendix 3: a figure of each",
    needs=("W_in_frobenius", "W_out_frobenius", "W_in_W_out_frobenius", "resid_post_norm"),
    uses=("W_gate_frobenius", "b_in_W_out_norm", "b_out_norm"),
)
def test_mlp_weight_norms_flat(run: Run) -> Finding:
    """Over the phase's blocks, each log rate below the stream's by more than rates that
    count as the same may differ (11 %, 0.005 at least). Biases where the model has them."""
    phase, unseen = growth_phase(run)
    present = {label: name for label, name in MLP_NORMS.items() if name in run.curves}
    tiny = np.finfo(np.float64).tiny
    logs = {k: np.log(run[n].double + tiny) for k, n in present.items()}
    stream = run["resid_post_norm"].prompt_log[unseen]
    decision = slower_than_stream(logs, stream, phase.inside)
    figure = Figure((*present.values(), "resid_post_norm"), phase=phase)
    return Finding(decision.with_note(f"{phase}"), figure)


def _log(run: Run, name: str) -> np.ndarray:
    """Mean logs over draws need every draw above zero: half a neuron stands for none."""
    values = run[name].double
    return np.log(np.maximum(values, 0.5 / (run.model.d_mlp or 1)))


def _gate(run: Run) -> str:
    return "; pre-activations of the gate" if run.model.gated else ""
