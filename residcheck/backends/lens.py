"""The ``transformer_lens`` backend: TransformerBridge with raw or processed weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from residcheck.backends.anatomy import dissect
from residcheck.backends.base import (
    Affine,
    EndOfPass,
    PostNorm,
    Site,
    Sublayer,
    Tap,
    Taps,
    affine_of,
    post_norm_of,
)
from residcheck.backends.blockwise import Blockwise, end_pass
from residcheck.backends.ends import embedding_scale
from residcheck.backends.layer_weights import AttentionWeights, LayerWeights, MLPWeights
from residcheck.errors import LoadError, first_line
from residcheck.models import LoadedModel
from residcheck.models.quiet import quiet_libraries

HOOKS: dict[Site, str] = {
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
OPTIONAL: tuple[Site, ...] = ("z", "mlp_post")  # absent or silent for some architectures
# Of the second names, versions before 4.3 have the norms after OLMo 2's sublayers.
POST_NORMS: dict[Site, tuple[str, str]] = {
    "attn_out": ("ln1_post", "ln1"),
    "mlp_out": ("ln2_post", "ln2"),
}


class LensBackend(Blockwise):
    """Taps a model through TransformerLens' hook points.

    The bridge takes over the modules of ``loaded.model``: use that model no more.
    """

    name = "transformer_lens"
    version = version("transformer-lens")

    def __init__(self, loaded: LoadedModel) -> None:
        blocks = dissect(loaded.model)
        self.anatomy, self._post_norms = blocks.anatomy, blocks.post_norms
        self._embedding_scale = embedding_scale(loaded.model)
        with quiet_libraries():
            self._bridge = _boot(loaded)
        self.stack = list(self._bridge.blocks)
        self.anatomy = replace(
            self.anatomy,
            missing={**self._silent(loaded.device), **self.anatomy.missing},
            missing_weights={**self._unreadable(), **self.anatomy.missing_weights},
        )

    @torch.inference_mode()
    def run(
        self,
        tokens: Int[Tensor, "batch pos"],
        mask: Int[Tensor, "batch pos"],
        taps: Taps,
        last: int | None,
    ) -> Float[Tensor, "batch pos vocab"] | None:
        hooks = [
            (self.hook_name(*where), _as_hook(tap, self.device(where[0])))
            for where, tap in taps.items()
        ]
        if last is not None:
            hooks.append((self.hook_name(last, "resid_post"), end_pass))
        try:
            with self._bridge.hooks(fwd_hooks=hooks):
                result: Tensor = self._bridge(tokens, attention_mask=mask, return_type="logits")
        except EndOfPass:
            return None
        return result

    def _silent(self, device: str) -> dict[Site, str]:
        """Optional sites whose hooks a pass over one token does not reach in every block."""
        layers = range(self.anatomy.n_layers)
        wanted = {(n, site) for n in layers for site in OPTIONAL if self.anatomy.has(site)}
        known = set(self._bridge.hook_dict)
        there = {place for place in wanted if self.hook_name(*place) in known}
        fired: set[tuple[int, Site]] = set()

        def note(place: tuple[int, Site]) -> Tap:
            return lambda tensor: fired.add(place)

        token = torch.zeros(1, 1, dtype=torch.long, device=device)
        taps = {place: note(place) for place in there}
        try:
            self.forward(token, torch.ones_like(token), taps, logits=False)
        except Exception:  # the identity gate runs the model again, and says why it cannot
            fired = there
        reason = f"TransformerLens {self.version} does not fire {{}} for this architecture"
        return {site: reason.format(HOOKS[site]) for _, site in wanted - fired}

    def _unreadable(self) -> dict[Sublayer, str]:
        reasons: dict[Sublayer, str] = {}
        for sublayer, read in _READ.items():
            for layer, block in enumerate(self._bridge.blocks):
                try:
                    read(block)
                except Exception as error:  # of many kinds, for what it does not support
                    reason = f"TransformerLens {self.version} gives none at layer {layer}: "
                    reasons[sublayer] = reason + first_line(error)
                    break
        return reasons

    def weights(self, layer: int) -> LayerWeights:
        block, without = self._bridge.blocks[layer], self.anatomy.missing_weights
        return LayerWeights(
            None if "attention" in without else _attention_weights(block),
            None if "mlp" in without else _mlp_weights(block),
        )

    def post_norm(self, layer: int, site: Site) -> PostNorm | None:
        block, (after, perhaps) = self._bridge.blocks[layer], POST_NORMS[site]
        norm = getattr(block, after, None)
        if norm is None:
            other = getattr(block, perhaps, None)
            wraps = getattr(other, "name", None)  # what the library took it from
            norm = other if wraps is not None and wraps == self._post_norms.get(site) else None
        return None if norm is None else post_norm_of(norm, self.anatomy.d_model)

    def embedding(self) -> Float[Tensor, "vocab d_model"]:
        weight: Tensor = self._bridge.W_E.detach()
        return weight if self._embedding_scale == 1.0 else weight * self._embedding_scale

    def unembedding(
        self,
    ) -> tuple[Float[Tensor, "d_model vocab"], Float[Tensor, " vocab"] | None]:
        return self._bridge.W_U.detach(), self._bridge.b_U.detach()

    def final_norm(self) -> Affine | None:
        norm = getattr(self._bridge, "ln_final", None)
        return None if norm is None else affine_of(norm, self.anatomy.d_model)

    def affine(self, layer: int, site: Site) -> Affine:
        norm = getattr(self._bridge.blocks[layer], HOOKS[site].partition(".")[0])
        return affine_of(norm, self.anatomy.d_model)

    def process_again(self) -> None:
        try:
            with quiet_libraries():
                self._bridge.enable_compatibility_mode(disable_warnings=True)
        except Exception as error:
            raise LoadError(
                f"TransformerLens {self.version} cannot process weights twice: {first_line(error)}"
            ) from error

    def hook_name(self, layer: int, site: Site) -> str:
        return f"blocks.{layer}.{HOOKS[site]}"


def _boot(loaded: LoadedModel) -> Any:
    try:
        from transformer_lens.model_bridge import TransformerBridge

        bridge = TransformerBridge.boot_transformers(
            str(loaded.model.config._name_or_path or loaded.id),
            hf_model=loaded.model,
            tokenizer=loaded.tokenizer,
            device=loaded.device,
            dtype=getattr(torch, loaded.spec.torch_dtype),
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


def _attention_weights(block: Any) -> AttentionWeights:
    names = ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O")
    return AttentionWeights(**{name: _detached(block.attn, name) for name in names})


def _mlp_weights(block: Any) -> MLPWeights:
    names = ("W_in", "W_out", "W_gate", "b_in", "b_gate", "b_out")
    return MLPWeights(**{name: _detached(block.mlp, name) for name in names})


_READ: dict[Sublayer, Callable[[Any], object]] = {
    "attention": _attention_weights,
    "mlp": _mlp_weights,
}


def _detached(part: Any, name: str) -> Any:
    """A weight, or a bias or gate that may not be there."""
    found = getattr(part, name, None) if name[0] == "b" else getattr(part, name)
    return None if found is None else found.detach()


def _as_hook(tap: Tap, device: torch.device) -> Any:
    def hook(tensor: Tensor, hook: Any) -> Tensor | None:
        flat = tensor.flatten(2).to(device)  # hook_z has the heads apart
        replaced = tap(flat)
        return None if replaced is None else replaced.reshape(tensor.shape)

    return hook
