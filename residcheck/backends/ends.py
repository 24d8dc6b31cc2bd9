"""Both ends of the stream in a plain transformers model: embedding, final norm, unembedding."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from residcheck.backends.projections import linear
from residcheck.errors import UnsupportedModelError

FINAL_NORM = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f")


def embedding_scale(model: Any) -> float:
    """What embeddings are multiplied with: by the module itself (Gemma, where it holds the
    factor in the model's dtype) or by the model (Granite)."""
    module = model.get_input_embeddings()
    scale = getattr(module, "embed_scale", 1.0)
    if isinstance(scale, Tensor):
        scale = scale.to(module.weight.dtype).item()
    multiplier = getattr(model.config.get_text_config(), "embedding_multiplier", 1.0)
    return float(scale) * float(multiplier)


def embedding_of(model: Any) -> Float[Tensor, "vocab d_model"]:
    """Embeddings as they enter the stream; a copy only where they are scaled.

    Raises:
        UnsupportedModelError: embeddings of another width, projected to the stream's.
    """
    weight: Tensor = model.get_input_embeddings().weight.detach()
    config = model.config.get_text_config()
    if weight.shape[1] != config.hidden_size:
        raise UnsupportedModelError(
            f"{config.model_type} projects embeddings of width {weight.shape[1]} to the "
            f"stream's {config.hidden_size}",
            "embeddings of the stream's own width are needed here",
        )
    scale = embedding_scale(model)
    return weight if scale == 1.0 else weight * scale


def unembedding_of(
    model: Any,
) -> tuple[Float[Tensor, "d_model vocab"], Float[Tensor, " vocab"] | None]:
    return linear(model.get_output_embeddings())


def final_norm_name(model: Any, blocks: str) -> str | None:
    """Path of the norm after the last block, beside the list of blocks at ``blocks``."""
    parent = blocks.rpartition(".")[0]
    around = model.get_submodule(parent)
    found = next((n for n in FINAL_NORM if getattr(around, n, None) is not None), None)
    return None if found is None else f"{parent}.{found}" if parent else found


def final_norm_of(model: Any, blocks: str) -> nn.Module | None:
    name = final_norm_name(model, blocks)
    module: nn.Module | None = None if name is None else model.get_submodule(name)
    return module
