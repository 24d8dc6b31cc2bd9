"""The names of all that can be measured; nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    "mlp_out_norm": Quantity("mlp_out", "norm", "norm of what the MLP adds"),
    "mlp_out_cosine": Quantity("mlp_out", "cosine", "cosine of mlp_out with the stream"),
    "resid_post_norm": Quantity("resid_post", "norm", "norm of the stream after the block"),
}

PROBES = ("bos_spread", "padding_spread", "centred_mean", "centring_logit_shift")
EVERYTHING = (*QUANTITIES, *PROBES)
