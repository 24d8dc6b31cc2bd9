"""What every witness is asked: the batch, the dtypes, and the names of what it may answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

PAD, PADDED = 2, 5
ROWS, LENGTH, VOCAB = 2, 24, 512
SITES = (
    "hook_resid_pre",
    "ln1.hook_scale",
    "ln1.hook_normalized",
    "attn.hook_z",
    "hook_attn_out",
    "hook_resid_mid",
    "ln2.hook_scale",
    "ln2.hook_normalized",
    "mlp.hook_pre",
    "mlp.hook_post",
    "hook_mlp_out",
    "hook_resid_post",
)
FINAL = ("ln_final.hook_scale", "ln_final.hook_normalized")
ATTENTION = ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O")
MLP = ("W_in", "W_gate", "W_out", "b_in", "b_out")
DTYPES = ("float32", "float64")
PROCESSINGS = ("raw", "processed", "twice")
PLAIN_SITES = {
    "resid_pre": "hook_resid_pre",
    "ln1_out": "ln1.hook_out",
    "z": "attn.hook_z",
    "attn_out": "hook_attn_out",
    "resid_mid": "hook_resid_mid",
    "ln2_out": "ln2.hook_out",
    "mlp_pre": "mlp.hook_pre",
    "mlp_post": "mlp.hook_post",
    "mlp_out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
}
Arrays = dict[str, Any]


def tokens() -> Any:
    """``[row, position]``: longer than every window of the zoo, the first one BOS."""
    ids = np.random.RandomState(7).randint(3, VOCAB, (ROWS, LENGTH))
    ids[:, 0] = 0
    return torch.tensor(ids)


def padded(side: str) -> tuple[Any, Any]:
    """The batch with the first row cut by ``PADDED`` tokens and padded, and its mask."""
    ids, kept = tokens(), LENGTH - PADDED
    mask, filling = torch.ones_like(ids), torch.full((PADDED,), PAD)
    if side == "left":
        ids[0] = torch.cat([filling, ids[0, :kept]])
        mask[0, :PADDED] = 0
    else:
        ids[0] = torch.cat([ids[0, :kept], filling])
        mask[0, kept:] = 0
    return ids, mask
