"""The ``transformer_lens`` backend: TransformerBridge with raw or processed weights."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from residcheck.backends.anatomy import dissect
from residcheck.backends.base import Affine, EndOfPass, Site, Tap, Taps, affine_of
from residcheck.errors import LoadError, first_line
from residcheck.models import LoadedModel
from residcheck.models.quiet import quiet_libraries

HOOKS: dict[Site, str] = {
    "resid_pre": "hook_resid_pre",
    "ln1_out": "ln1.hook_out",
    "attn_out": "hook_attn_out",
    "resid_mid": "hook_resid_mid",
    "ln2_out": "ln2.hook_out",
    "mlp_pre": "mlp.hook_pre",
    "mlp_out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
}


class LensBackend:
    """Taps a model through TransformerLens' hook points.

    The bridge takes over the modules of ``loaded.model``: use that model no more.
    """

    name = "transformer_lens"
    version = version("transformer-lens")

    def __init__(self, loaded: LoadedModel) -> None:
        self.anatomy = dissect(loaded.model).anatomy
        with quiet_libraries():
            self._bridge = _boot(loaded)

    @torch.inference_mode()
    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        mask: Int[Tensor, "batch pos"],
        taps: Taps,
        *,
        logits: bool,
    ) -> Float[Tensor, "batch pos vocab"] | None:
        hooks = [(self.hook_name(*where), _as_hook(tap)) for where, tap in taps.items()]
        if not logits:
            hooks.append((self.hook_name(self.anatomy.n_layers - 1, "resid_post"), _end_pass))
        try:
            with self._bridge.hooks(fwd_hooks=hooks):
                result: Tensor = self._bridge(tokens, attention_mask=mask, return_type="logits")
        except EndOfPass:
            return None
        return result

    def affine(self, layer: int, site: Site) -> Affine:
        norm = getattr(self._bridge.blocks[layer], HOOKS[site].partition(".")[0])
        return affine_of(norm, self.anatomy.d_model)

    def hook_name(self, layer: int, site: Site) -> str:
        return f"blocks.{layer}.{HOOKS[site]}"


def _boot(loaded: LoadedModel) -> Any:
    try:
        from transformer_lens.model_bridge import TransformerBridge

        bridge = TransformerBridge.boot_transformers(
            str(loaded.model.config._name_or_path or loaded.id),
            hf_model=loaded.model,
            tokenizer=loaded.tokenizer,
            device=loaded.spec.device,
            dtype=getattr(torch, loaded.spec.dtype),
        )
        raw = loaded.spec.processing == "raw"
        bridge.enable_compatibility_mode(disable_warnings=True, no_processing=raw)
    except Exception as error:  # the library raises many kinds for what it does not support
        reason = first_line(error)
        raise LoadError(
            f"TransformerLens {LensBackend.version} cannot bridge {loaded.id}: {reason}",
            "try processing=raw, or backend=transformers, which taps the plain modules",
        ) from error
    return bridge.eval()


def _as_hook(tap: Tap) -> Any:
    return lambda tensor, hook: tap(tensor)


def _end_pass(tensor: Tensor, hook: Any) -> None:
    raise EndOfPass
