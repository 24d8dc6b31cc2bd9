"""The names of all that can be measured; nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from residcheck.backends import Site


@dataclass(frozen=True)
class Quantity:
    """What one curve is: the site it is taken at, and its unit."""

    site: Site
    unit: str
    meaning: str


QUANTITIES: dict[str, Quantity] = {
    "resid_pre_norm": Quantity("resid_pre", "norm", "norm of the stream before the block"),
    "ln1_normalized_norm": Quantity("ln1_out", "norm", "norm of the attention's normalised input"),
    "attn_out_norm": Quantity("attn_out", "norm", "norm of what attention adds"),
    "attn_out_cosine": Quantity("attn_out", "cosine", "cosine of attn_out with the stream"),
    "resid_mid_norm": Quantity("resid_mid", "norm", "norm of the stream between the sublayers"),
    "ln2_normalized_norm": Quantity("ln2_out", "norm", "norm of the MLP's normalised input"),
    "activation_rate": Quantity("mlp_pre", "fraction", "share of neurons above zero"),
    "mlp_post_norm": Quantity("mlp_post", "norm", "norm of what the MLP hands to W_out"),
    "mlp_post_min": Quantity(
        "mlp_post", "activation", "smallest coordinate of what the MLP hands to W_out"
    ),
    "mlp_out_norm": Quantity("mlp_out", "norm", "norm of what the MLP adds"),
    "mlp_out_cosine": Quantity("mlp_out", "cosine", "cosine of mlp_out with the stream"),
    "resid_post_norm": Quantity("resid_post", "norm", "norm of the stream after the block"),
}

PROBES = (
    "bos_spread",
    "padding_spread",
    "padding_shift",
    "centred_mean",
    "centring_logit_shift",
    "rotation_logit_shift",
    "resid_post_fingerprint",
    "logit_fingerprint",
    "batch_shift",
    "processing_shift",
    "reprocessing_shift",
)
OF_PROCESSING = ("processing_shift", "reprocessing_shift")
"""Probes of what a library does to weights, which raw weights cannot have."""
OF_KERNEL = ("padding_spread",)
"""What padding positions hold is the choice of the attention kernel and of the library that makes
its mask: all that they see is masked. What padding does to tokens is ``padding_shift``."""
OF_LIBRARY = ("padding_shift", *OF_KERNEL)
"""Probes of left padding: whether learned positions count it, too, is the library's choice, so that
snapshots of them hold for the backend through which they were taken."""

SAMPLED_AXES = ("prompt", "draw", "neuron")
"""Axes over which a summary averages; heads, matrices, writes and layers it keeps apart."""
MATRICES = ("W_Q", "W_K", "W_V", "W_O", "W_in", "W_gate", "W_out")
"""The order of an axis named ``matrix``."""

Part = Literal["attention", "mlp", "gate", "fed", "z", "mlp_pre", "mlp_post", "stream"]
"""What a statistic is about: a sublayer's weights, the gate of an MLP, an MLP that can be fed
vectors in the place of its normalised input, a site, or the stream, which all models have."""


@dataclass(frozen=True)
class Statistic:
    """What a curve is that is not taken per token in the pass.

    ``parts`` are what a model must have for it.
    An axis named ``write`` counts what is added to the stream, in order: the embedding,
    then two writes a layer, ``attn_out`` and ``mlp_out``.
    """

    parts: tuple[Part, ...]
    dims: tuple[str, ...]
    unit: str
    meaning: str


_A: tuple[Part, ...] = ("attention",)
_M: tuple[Part, ...] = ("mlp",)
_BOTH: tuple[Part, ...] = ("attention", "mlp")
_LAYER = ("layer",)
_PARTS: dict[str, tuple[Part, ...]] = {
    **dict.fromkeys(("W_Q", "W_K", "W_V", "W_O"), _A),
    **dict.fromkeys(("W_in", "W_out"), _M),
    "W_gate": (*_M, "gate"),
}

# Of folded weights: norm gains in the reading matrices, writes centred under LayerNorm,
# value biases in b_O. Those that end in _raw are of the weights as they are stored.
WEIGHTS: dict[str, Statistic] = {
    **{
        f"ov_frobenius{form}": Statistic(
            _A, ("head", "layer"), "norm", "Frobenius norm of a head's W_V W_O"
        )
        for form in ("", "_raw")
    },
    "ov_eigenvalues": Statistic(
        _A, ("head", "layer"), "cosine", "sum of W_OV's eigenvalues over the sum of their sizes"
    ),
    "b_O_norm": Statistic(_A, _LAYER, "norm", "norm of the attention's output bias"),
    **{
        f"{name}_frobenius{form}": Statistic(
            _PARTS[name], _LAYER, "norm", f"Frobenius norm of {name}"
        )
        for form in ("", "_raw")
        for name in MATRICES
    },
    "W_in_W_out_frobenius": Statistic(_M, _LAYER, "norm", "Frobenius norm of W_in W_out"),
    "b_in_W_out_norm": Statistic(_M, _LAYER, "norm", "norm of the input bias through W_out"),
    "b_out_norm": Statistic(_M, _LAYER, "norm", "norm of the MLP's output bias"),
    "neuron_cosine": Statistic(
        _M, ("neuron", "layer"), "cosine", "cosine of a neuron's input and output weights"
    ),
    "virtual_weights": Statistic(
        _BOTH, ("write", "read"), "ratio", "norm of W_write W_read over that of random matrices"
    ),
}
RANDOM_INPUTS: dict[str, Statistic] = {
    "frobenius_gaussian": Statistic(
        _BOTH, ("draw", "matrix", "layer"), "ratio", "|Wx|^2 / |W|_F^2 for Gaussian x"
    ),
    "frobenius_normalized": Statistic(
        _BOTH, ("draw", "matrix", "layer"), "ratio", "the same for x of mean 0 and variance 1"
    ),
    "ov_random_norm": Statistic(
        _A, ("draw", "layer"), "norm", "norm of what all heads' W_OV make of a Gaussian vector"
    ),
    "mlp_random_norm": Statistic(
        ("fed",), ("draw", "layer"), "norm", "norm of what the MLP makes of a Gaussian vector"
    ),
    "activation_rate_random": Statistic(
        ("fed", "mlp_pre"),
        ("draw", "layer"),
        "fraction",
        "share of neurons above zero on Gaussian vectors",
    ),
    "activation_rate_resampled": Statistic(
        ("fed", "mlp_pre"),
        ("draw", "layer"),
        "fraction",
        "the same on resampled vectors of the stream",
    ),
    "activation_rate_shuffled": Statistic(
        ("fed", "mlp_pre"),
        ("draw", "layer"),
        "fraction",
        "the same, each coordinate resampled on its own",
    ),
}
STRUCTURE: dict[str, Statistic] = {
    "write_share": Statistic(
        ("stream",), ("prompt", "write", "layer"), "ratio", "norm of a write over resid_pre's"
    ),
    "write_kept": Statistic(
        ("stream",),
        ("prompt", "write", "layer"),
        "relative projection",
        "what later writes leave of a write along its own direction",
    ),
    "write_removal": Statistic(
        ("stream",),
        ("prompt", "write"),
        "fraction",
        "share of a write's projections on earlier ones that is negative",
    ),
    "head_projection": Statistic(
        (*_A, "z"),
        ("prompt", "head", "layer"),
        "relative projection",
        "a head's output along the stream it is added to, as a share of the stream",
    ),
    "neuron_projection": Statistic(
        (*_M, "mlp_post"),
        ("neuron", "layer"),
        "relative projection",
        "the same of a neuron, over prompts",
    ),
    "neuron_projection_error": Statistic(
        (*_M, "mlp_post"),
        ("neuron", "layer"),
        "relative projection",
        "its standard error over prompts",
    ),
    "resid_post_kurtosis": Statistic(
        ("stream",),
        ("prompt", "position", "layer"),
        "kurtosis",
        "kurtosis of the stream's coordinates at sampled positions",
    ),
    "resid_post_kurtosis_rotated": Statistic(
        ("stream",), ("prompt", "position", "layer"), "kurtosis", "the same after a rotation"
    ),
}
# Per predicted token: position 0 is BOS, which nothing predicts. Horizons count from 1.
_PER_HORIZON = ("prompt", "position", "horizon")
HORIZON: dict[str, Statistic] = {
    "loss": Statistic(
        ("stream",), ("prompt", "position"), "nats", "loss of the model as it is, per token"
    ),
    "horizon_loss": Statistic(
        ("stream",), _PER_HORIZON, "nats", "loss where sublayers read the last k layers only"
    ),
    "horizon_kl": Statistic(
        ("stream",), _PER_HORIZON, "nats", "divergence of its predictions from the full model's"
    ),
    "horizon_top1": Statistic(
        ("stream",), _PER_HORIZON, "fraction", "share of tokens whose likeliest next one stays"
    ),
    "horizon_loss_from_middle": Statistic(
        ("stream",), _PER_HORIZON, "nats", "the loss where only the upper half reads so"
    ),
}
STATISTICS: dict[str, Statistic] = WEIGHTS | RANDOM_INPUTS | STRUCTURE | HORIZON
EVERYTHING = (*QUANTITIES, *PROBES, *STATISTICS)
