"""A model in TransformerLens, whichever of its classes it is."""

from __future__ import annotations

from typing import Any

import torch

from .asked import ATTENTION, FINAL, MLP, SITES, Arrays


class Lens:
    """A model in TransformerLens, through hooks and weights as its users get at them."""

    def __init__(self, model: Any) -> None:
        self.model = model.eval()
        self.layers = len(model.blocks)
        blocks = [f"blocks.{layer}.{site}" for layer in range(self.layers) for site in SITES]
        self.names = [*blocks, *FINAL]

    def cached(self, ids: Any) -> Arrays:
        """The same hooks as ``run_with_cache`` gives them."""
        _, cache = self.model.run_with_cache(ids)
        return {name: cache[name] for name in self.names if name in cache}

    def loss(self, ids: Any) -> Any:
        return self.model(ids, return_type="loss")

    def run(self, ids: Any, mask: Any, hooked: bool) -> tuple[Any, Arrays]:
        seen: Arrays = {}

        def hook_of(name: str) -> Any:
            def note(tensor: Any, hook: Any) -> None:
                seen[name] = tensor.detach().clone()

            return note

        there = [name for name in self.names if name in self.model.hook_dict] if hooked else []
        given = {} if mask is None else {"attention_mask": mask}
        with self.model.hooks(fwd_hooks=[(name, hook_of(name)) for name in there]):
            return self.model(ids, return_type="logits", **given), seen

    def weights(self) -> Arrays:
        found: Arrays = {}
        for layer, block in enumerate(self.model.blocks):
            for part, names in (("attn", ATTENTION), ("mlp", MLP)):
                for name in names:
                    with quiet(found, f"blocks.{layer}.{part}.{name}"):
                        found[f"blocks.{layer}.{part}.{name}"] = getattr(getattr(block, part), name)
        for name in ("W_E", "W_U", "b_U"):
            with quiet(found, name):
                found[name] = getattr(self.model, name)
        for name in (*ATTENTION, *MLP):
            with quiet(found, name):
                for layer, matrix in enumerate(getattr(self.model, name)):
                    found[f"stacked.{layer}.{name}"] = matrix
        return {name: value for name, value in found.items() if torch.is_tensor(value)}


class quiet:  # noqa: N801
    """Leaves out of ``found`` what a library raises on: it is missing then."""

    def __init__(self, found: Arrays, name: str) -> None:
        self.found, self.name = found, name

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        return isinstance(error, Exception)
