"""Defects planted in TransformerLens 4: run by a process of its own, nothing of residcheck.

``python plants.py PLANT witness`` serves as the witness does, ``python plants.py PLANT
benchmark FOLDER`` runs TransformerLens' own verification. Its suite passes with each of these.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

TEXT = "The stream is a sum."


def _alias(hook: str, other: str) -> Callable[[], None]:
    def plant() -> None:
        from transformer_lens.model_bridge.generalized_components.block import BlockBridge

        BlockBridge.hook_aliases = BlockBridge.hook_aliases | {hook: other}

    return plant


def _zero_values() -> None:
    from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge

    true = AttentionBridge.W_V.fget
    AttentionBridge.W_V = property(lambda self: torch.zeros_like(true(self)))


def _booted(change: Callable[[Any], None]) -> Callable[[], None]:
    """Changes every bridge as it is handed out."""

    def plant() -> None:
        from transformer_lens.model_bridge import TransformerBridge

        boot = TransformerBridge.boot_transformers

        def booted(*args: Any, **kwargs: Any) -> Any:
            bridge = boot(*args, **kwargs)
            change(bridge)
            return bridge

        TransformerBridge.boot_transformers = staticmethod(booted)

    return plant


def _flip(bridge: Any) -> None:
    bridge.cfg.default_prepend_bos = not bridge.cfg.default_prepend_bos


def _epsilon(bridge: Any) -> None:
    bridge.cfg.eps = 1e-6
    for module in bridge.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6


def _not_centred() -> None:
    from transformer_lens.weight_processing import ProcessWeights

    ProcessWeights.center_writing_weights = staticmethod(lambda state, *args, **kwargs: state)


def _relu() -> None:
    from transformers.activations import ACT2FN

    ACT2FN["gelu_new"] = torch.nn.ReLU


PLANTS: dict[str, tuple[str, Callable[[], None]]] = {
    "none": ("nothing", lambda: None),
    "attn-out-is-resid-mid": (
        "hook_attn_out is an alias of resid_mid",
        _alias("hook_attn_out", "ln2.hook_in"),
    ),
    "mlp-out-is-resid-post": (
        "hook_mlp_out is an alias of resid_post",
        _alias("hook_mlp_out", "hook_out"),
    ),
    "resid-post-is-resid-pre": (
        "hook_resid_post is the block's input",
        _alias("hook_resid_post", "hook_in"),
    ),
    "w-v-zero": ("W_V returns zeros", _zero_values),
    "bos-flipped": ("the default of prepending BOS is the other way round", _booted(_flip)),
    "not-centred": ("center_writing_weights does nothing", _not_centred),
    "epsilon": ("epsilon of LayerNorm 1e-6 in the place of 1e-5", _booted(_epsilon)),
    "upstream-relu": ("transformers computes ReLU where GELU was meant", _relu),
}


def main() -> None:
    name, what, *rest = sys.argv[1:]
    PLANTS[name][1]()
    if what == "benchmark":
        sys.argv = ["main_benchmark", "--model", rest[0]]
        runpy.run_module("transformer_lens.benchmarks.main_benchmark", run_name="__main__")
        return
    sys.path.insert(0, str(Path(__file__).with_name("stand")))
    from witness.lens import Lens  # type: ignore[import-not-found]
    from witness.serving import serve  # type: ignore[import-not-found]

    weights = Lens.weights
    Lens.weights = lambda self: weights(self) | {"text": self.model.to_tokens(TEXT)}
    serve()


if __name__ == "__main__":
    main()
