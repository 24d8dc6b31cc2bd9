"""The ``transformers`` backend: forward hooks on the plain modules, nothing between."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
import transformers
from jaxtyping import Float, Int
from torch import Tensor, nn

from residcheck.backends.anatomy import Blocks, Part, dissect
from residcheck.backends.base import (
    Affine,
    EndOfPass,
    PostNorm,
    Site,
    Tap,
    Taps,
    affine_of,
    post_norm_of,
)
from residcheck.backends.blockwise import Blockwise, end_pass
from residcheck.backends.ends import embedding_of, final_norm_of, unembedding_of
from residcheck.backends.layer_weights import LayerWeights
from residcheck.backends.projections import attention_weights, mlp_weights
from residcheck.models import LoadedModel


class PlainBackend(Blockwise):
    """Taps a transformers model through PyTorch's module hooks."""

    name = "transformers"
    version = transformers.__version__

    def __init__(self, loaded: LoadedModel) -> None:
        self._model = loaded.model
        self._blocks: Blocks = dissect(loaded.model)
        self.anatomy = self._blocks.anatomy
        self.stack = list(self._blocks.modules)

    @torch.inference_mode()
    def run(
        self,
        tokens: Int[Tensor, "batch pos"],
        mask: Int[Tensor, "batch pos"],
        taps: Taps,
        last: int | None,
    ) -> Float[Tensor, "batch pos vocab"] | None:
        with ExitStack() as hooks:
            for (layer, site), tap in taps.items():
                hooks.callback(self._attach(layer, site, tap, tokens.shape).remove)
            if last is not None:
                hooks.callback(self.stack[last].register_forward_hook(end_pass).remove)
            try:
                output = self._model(input_ids=tokens, attention_mask=mask, use_cache=False)
            except EndOfPass:
                return None
        result: Tensor = output.logits
        return result

    def _attach(self, layer: int, site: Site, tap: Tap, shape: torch.Size) -> Any:
        part = self._blocks.parts[site]
        module = self._blocks.modules[layer].get_submodule(part.path)
        read = _Reader(part, tap, shape)
        if part.side == "input":
            return module.register_forward_pre_hook(read.on_input, with_kwargs=True)
        return module.register_forward_hook(read.on_output)

    def affine(self, layer: int, site: Site) -> Affine:
        return affine_of(self._norm(layer, site), self.anatomy.d_model)

    def _norm(self, layer: int, site: Site) -> nn.Module:
        return self._blocks.modules[layer].get_submodule(self._blocks.parts[site].path)

    def weights(self, layer: int) -> LayerWeights:
        block, names, anatomy = self._blocks.modules[layer], self._blocks.names, self.anatomy
        attention = mlp = None
        if "attention" not in anatomy.missing_weights:
            size = (anatomy.n_heads, anatomy.model_type)
            attention = attention_weights(block, names["attention"], *size)
        if "mlp" not in anatomy.missing_weights:
            mlp = mlp_weights(block, names["mlp"])
        return LayerWeights(attention, mlp)

    def post_norm(self, layer: int, site: Site) -> PostNorm | None:
        name = self._blocks.post_norms.get(site)
        if name is None:
            return None
        norm = self._blocks.modules[layer].get_submodule(name)
        return post_norm_of(norm, self.anatomy.d_model)

    def embedding(self) -> Float[Tensor, "vocab d_model"]:
        return embedding_of(self._model)

    def unembedding(
        self,
    ) -> tuple[Float[Tensor, "d_model vocab"], Float[Tensor, " vocab"] | None]:
        return unembedding_of(self._model)

    def final_norm(self) -> Affine | None:
        norm = final_norm_of(self._model, self._blocks.path)
        return None if norm is None else affine_of(norm, self.anatomy.d_model)

    def process_again(self) -> None:
        """Plain modules have raw weights, and keep them."""

    def hook_name(self, layer: int, site: Site) -> str:
        part = self._blocks.parts[site]
        where = f"{self._blocks.path}.{layer}" + (f".{part.path}" if part.path else "")
        return f"{part.side} of {where}"


class _Reader:
    """Hands a module's tensor to a tap as ``[batch, position, width]`` and puts back
    what the tap returns."""

    def __init__(self, part: Part, tap: Tap, shape: torch.Size) -> None:
        self.part, self.tap, self.shape = part, tap, shape

    def on_input(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            replaced = self._read(args[0])
            return None if replaced is None else ((replaced, *args[1:]), kwargs)
        replaced = self._read(kwargs["hidden_states"])
        return None if replaced is None else (args, kwargs | {"hidden_states": replaced})

    def on_output(self, module: nn.Module, args: Any, output: Any) -> Any:
        if not isinstance(output, tuple):
            return self._read(output)
        replaced = self._read(output[0])
        return None if replaced is None else (replaced, *output[1:])

    def _read(self, tensor: Tensor) -> Tensor | None:
        whole = tensor.reshape(*self.shape, -1)  # OPT flattens batch and position
        seen, rest = whole, None
        if self.part.share > 1:
            seen, rest = whole.tensor_split([whole.shape[-1] // self.part.share], dim=-1)
        if self.part.scale != 1.0:
            seen = seen * self.part.scale
        replaced = self.tap(seen)
        if replaced is None:
            return None
        if self.part.scale != 1.0:
            replaced = replaced / self.part.scale
        if rest is not None:
            replaced = torch.cat([replaced, rest], dim=-1)
        return replaced.reshape(tensor.shape)
