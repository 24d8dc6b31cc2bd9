"""What backends over plain transformers modules share: where things are, and the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from residcheck.backends.anatomy import Blocks, Part, dissect
from residcheck.backends.base import Affine, PostNorm, Site, Tap, affine_of, post_norm_of
from residcheck.backends.blockwise import Blockwise
from residcheck.backends.ends import embedding_of, final_norm_of, unembedding_of
from residcheck.backends.layer_weights import LayerWeights
from residcheck.backends.projections import attention_weights, mlp_weights
from residcheck.models import LoadedModel


class Modular(Blockwise):
    """A transformers model whose modules are left as they are; how they are tapped is
    the subclass's: it runs the model."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._model = loaded.model
        self._blocks: Blocks = dissect(loaded.model)
        self.anatomy = self._blocks.anatomy
        self.stack = list(self._blocks.modules)

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
        return f"{self._blocks.parts[site].side} of {self.path(layer, site)}"

    def path(self, layer: int, site: Site) -> str:
        """Path in the model of the module whose input or output the site is."""
        part = self._blocks.parts[site].path
        return f"{self._blocks.path}.{layer}" + (f".{part}" if part else "")


@dataclass(frozen=True)
class Reader:
    """Hands a module's tensor to a tap as ``[batch, position, width]`` and puts back what
    the tap returns; None where it returns None. ``shape`` is that of the tokens, ``device``
    that of the block."""

    part: Part
    tap: Tap
    shape: torch.Size
    device: torch.device

    def output(self, output: Any) -> Any:
        """The same for what a module returns: a tensor, or a tuple or list that begins with it."""
        if not isinstance(output, tuple | list):
            return self.tensor(output)
        replaced = self.tensor(output[0])
        return None if replaced is None else type(output)((replaced, *output[1:]))

    def tensor(self, tensor: Tensor) -> Tensor | None:
        whole = tensor.reshape(*self.shape, -1)  # OPT flattens batch and position
        whole = whole.to(self.device)
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
