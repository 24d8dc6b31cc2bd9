"""Family G: how the residual stream is built."""

from __future__ import annotations

import numpy as np

from residcheck.claim import claim
from residcheck.curves import Run
from residcheck.stats import (
    at_most,
    bottleneck,
    connected_beyond_chance,
    heavy_tailed,
    removers,
    writes_persist,
)
from residcheck.tolerances import tolerance
from residcheck.verdict import Figure, Finding

from .published import STREAM_NOTES


@claim(
    "rotation-invariance",
    family="G",
    statement="The stream has no privileged basis: rotating every matrix that reads or writes "
    "it changes no output.",
    source=STREAM_NOTES,
    published="exact",
    needs=("rotation_logit_shift",),
    prompts=1,
    layers=1,
)
def test_rotation_invariance(run: Run) -> Finding:
    """Exact, up to rounding: the log-probabilities of the canonical model, its stream turned
    by a random orthogonal matrix, against those of the model as it is."""
    shift = {"shift of the log-probabilities": run["rotation_logit_shift"].values}
    bound = dict.fromkeys(shift, tolerance(run.model.dtype).logits)
    return Finding(at_most(shift, bound))


@claim(
    "basis-privileged-in-practice",
    family="G",
    statement="Trained streams are heavy-tailed in the standard basis all the same.",
    source=STREAM_NOTES,
    published="no number",
    needs=("resid_post_kurtosis", "resid_post_kurtosis_rotated"),
)
def test_basis_privileged_in_practice(run: Run) -> Finding:
    """Kurtosis of the stream's coordinates at sampled ordinary tokens, geometric mean over
    tokens and layers: at least twice that after a random rotation, which is about 3."""
    names = ("resid_post_kurtosis", "resid_post_kurtosis_rotated")
    standard, rotated = (run[name] for name in names)
    decision = heavy_tailed(standard.prompt_log, rotated.prompt_log, standard.bos)
    return Finding(decision, Figure(names, bos=True))


@claim(
    "writes-persist",
    family="G",
    statement="Once written, information stays unless a later layer removes it; some heads and "
    "neurons do remove it.",
    source=STREAM_NOTES,
    published='"memory management", no number',
    needs=("write_kept", "write_removal", "head_projection"),
    uses=("neuron_projection", "neuron_projection_error", "ov_eigenvalues", "neuron_cosine"),
)
def test_writes_persist(run: Run) -> Finding:
    """Over all pairs of a write and a later layer, the median kept along the write's own
    direction must be at least a half; and at least one head or neuron must take away more
    than a thousandth of the stream it is added to (t tests over prompts, false discovery
    rate 5 %). They are
    listed as layer.index with what they remove, as a share of the stream."""
    heads = run["head_projection"].double
    n = len(heads)
    error = heads.std(axis=0, ddof=1) / np.sqrt(n)
    found = [removers("head", heads.mean(axis=0), error, n)]
    if "neuron_projection" in run.curves:
        mean, spread = (run[f"neuron_projection{part}"].double for part in ("", "_error"))
        found.append(removers("neuron", mean, spread, n))
    decision = writes_persist(run["write_kept"].double, found)
    return Finding(decision, Figure(("write_removal",), log=False))


@claim(
    "virtual-weights",
    family="G",
    statement="The product of one layer's output weights with a later layer's input weights is "
    "an effective connection between them.",
    source=STREAM_NOTES,
    published="no number",
    needs=("virtual_weights",),
    prompts=1,
    layers=6,
)
def test_virtual_weights(run: Run) -> Finding:
    """Frobenius norm of the product over that of matrices of the same norms and random
    directions: its mean over later reads must be above 1.01. The interval is over layers and
    allows for neighbours that are alike. The rank correlation with the distance in layers is
    reported."""
    scores = run["virtual_weights"].double
    return Finding(connected_beyond_chance(scores), Figure(("virtual_weights",), kind="map"))


@claim(
    "bottleneck",
    family="G",
    statement="The stream is far narrower than the neurons that talk through it.",
    source=STREAM_NOTES,
    published="50 layers: 100 times as many neurons as dimensions before layer 25",
    needs=("activation_rate",),
    prompts=1,
    layers=6,
)
def test_bottleneck(run: Run) -> Finding:
    """Counted from the configuration: hidden neurons before the middle of the layers, and
    after it, per dimension of the stream; at least ten."""
    model = run.model
    assert model.d_mlp is not None
    return Finding(bottleneck(model.n_layers, model.d_model, model.d_mlp))
