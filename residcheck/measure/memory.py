"""How many prompts run together, and what happens when they were too many."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch

from residcheck.backends import Anatomy
from residcheck.errors import LoadError
from residcheck.horizon import USEFUL_TOKENS, block_bytes
from residcheck.measure.structure import POSITIONS
from residcheck.names import QUANTITIES

DEFAULT_BATCH_SIZE = 8
"""Prompts per forward pass where free memory is not known."""
_SHARE = 0.5  # of what is free: estimates leave out workspaces and what fragments

Free = Callable[[str], int | None]


def free_memory(device: str) -> int | None:
    """Bytes that can still be had on ``device``: what is free, and what torch holds unused.

    None for a device that cannot be asked, or that shares its memory with everything else.
    """
    if not device.startswith("cuda"):
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def budget(devices: Iterable[str], free: Free = free_memory) -> int | None:
    """Bytes to take on each of ``devices``, so that the fullest has room; None if unknown."""
    found = [free(device) for device in devices]
    known = [size for size in found if size is not None]
    return int(min(known) * _SHARE) if len(known) == len(found) else None


def prompts_that_fit(memory: int, per_prompt: int, tokens: int) -> int:
    """The size of a batch of prompts of ``tokens``, within ``memory`` and of use."""
    return max(1, min(memory // per_prompt, USEFUL_TOKENS // tokens))


def pass_bytes(anatomy: Anatomy, dtype: torch.dtype, tokens: int) -> int:
    """Bytes that one prompt of ``tokens`` takes in an instrumented pass.

    One block is at work at a time. What stays until the pass ends: keys and values, which
    libraries cache unasked; the recorded scalars; and the sampled writes with the products
    of all pairs of them, which are made several times over.
    """
    wide, layers = torch.promote_types(dtype, torch.float32).itemsize, anatomy.n_layers
    writes = 2 * layers + 1
    recorder = 4 * anatomy.d_model * wide
    cache = 2 * layers * anatomy.n_kv_heads * anatomy.d_head * dtype.itemsize
    scalars = len(QUANTITIES) * layers * wide
    per_sample = 2 * writes * anatomy.d_model + 4 * writes**2
    neurons = layers * (anatomy.d_mlp or 4 * anatomy.d_model)
    per_token = block_bytes(anatomy, dtype, tokens) + recorder + cache + scalars
    return tokens * per_token + ((POSITIONS + 1) * per_sample + neurons) * wide


def fits(work: Callable[[], object], device: str) -> bool:
    """Run ``work``; False if ``device`` ran out of memory, which is then given back."""
    try:
        work()
    except torch.OutOfMemoryError:
        pass  # the exception holds the frames of the pass, and they its tensors: let go of it
    else:
        return True
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    return False


def in_pieces(
    items: Sequence[int], size: int, take: Callable[[Sequence[int]], object], device: str
) -> None:
    """``take`` all items, at most ``size`` at a time.

    When the device runs out of memory the piece that failed is taken again in halves, and so
    are the pieces after it; ``take`` must keep nothing of a piece that failed.

    Raises:
        torch.OutOfMemoryError: one item by itself is too much.
    """
    start = 0
    while start < len(items):
        piece = items[start : start + size]
        if len(piece) == 1:
            take(piece)
        elif not fits(partial(take, piece), device):
            size = (len(piece) + 1) // 2
            continue
        start += len(piece)


def out_of_memory(device: str, tokens: int) -> LoadError:
    """What to say when nothing smaller can be tried."""
    return LoadError(
        f"{device} ran out of memory, down to one prompt of {tokens} tokens at a time",
        "use a smaller --max-tokens, or dtype=bf16, or spread the model with --device auto",
    )
