"""TransformerBridge, of transformer-lens 3 and 4."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from .lens import Lens


def bridge(folder: str, dtype: str) -> Iterator[tuple[str, Any]]:
    """TransformerBridge: raw as it boots, then processed by its compatibility mode."""
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_transformers(folder, device="cpu", dtype=getattr(torch, dtype))
    yield "raw", Lens(model)
    for processing in ("processed", "twice"):
        model.enable_compatibility_mode(disable_warnings=True)
        yield processing, Lens(model)
