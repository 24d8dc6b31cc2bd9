"""transformers, through residcheck's plain backend."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import torch

from .asked import PLAIN_SITES, Arrays, tokens


class Plain:
    """A model in transformers, through residcheck's plain backend."""

    def __init__(self, model: Any, folder: str) -> None:
        from residcheck.backends.plain import PlainBackend
        from residcheck.models import LoadedModel, ModelSpec

        spec = ModelSpec(folder).with_options(backend="transformers")
        self.model = model.eval()
        self.backend = PlainBackend(LoadedModel(folder, "", model, None, spec))
        self.layers = self.backend.anatomy.n_layers

    def run(self, ids: Any, mask: Any, hooked: bool) -> tuple[Any, Arrays]:
        seen: Arrays = {}
        anatomy = self.backend.anatomy

        def tap_of(name: str) -> Any:
            def note(tensor: Any) -> None:
                seen[name] = tensor.detach().clone()

            return note

        taps = {
            (layer, site): tap_of(f"blocks.{layer}.{name}")
            for layer in range(self.layers)
            for site, name in PLAIN_SITES.items()
            if hooked and anatomy.has(site)  # type: ignore[arg-type]
        }
        with positions(self.model, mask):
            ones = torch.ones_like(ids) if mask is None else mask
            return self.backend.forward(ids, ones, taps, logits=True), seen  # type: ignore[arg-type]

    def weights(self) -> Arrays:
        found: Arrays = {}
        for layer in range(self.layers):
            both = self.backend.weights(layer)
            for part, given in (("attn", both.attention), ("mlp", both.mlp)):
                for name, value in ({} if given is None else vars(given)).items():
                    if torch.is_tensor(value):
                        found[f"blocks.{layer}.{part}.{name}"] = value
            for number, site in ((1, "ln1_out"), (2, "ln2_out")):
                if self.backend.anatomy.has(site):  # type: ignore[arg-type]
                    affine = self.backend.affine(layer, site)  # type: ignore[arg-type]
                    found[f"blocks.{layer}.ln{number}.w"] = affine.gain
                    found[f"blocks.{layer}.ln{number}.b"] = affine.bias
        found["W_E"] = self.backend.embedding()
        found["W_U"], bias = self.backend.unembedding()
        final = self.backend.final_norm()
        if bias is not None:
            found["b_U"] = bias
        if final is not None:
            found |= {"ln_final.w": final.gain, "ln_final.b": final.bias}
        return found

    def anatomy(self) -> dict[str, Any]:
        kept = "model_type norm norm_eps parallel gated n_layers d_model n_heads n_kv_heads d_head"
        anatomy = self.backend.anatomy
        missing = {"missing": sorted(anatomy.missing), "dark": sorted(anatomy.missing_weights)}
        return {name: getattr(anatomy, name) for name in kept.split()} | missing

    def gate(self) -> str:
        """What residcheck's identity gate says; empty if it lets the model through."""
        from residcheck.errors import ResidcheckError
        from residcheck.measure import gate
        from residcheck.tolerances import tolerance

        ids = tokens()
        with torch.inference_mode():
            reference = self.model(input_ids=ids, use_cache=False).logits
        row = tolerance(str(self.model.dtype).removeprefix("torch."))
        if row is tolerance("float64"):
            row = tolerance("float32")  # norms and eager attention compute in float32 at most
        try:
            gate.check(self.backend, ids, reference, row)
        except ResidcheckError as error:
            return str(error).splitlines()[0]
        return ""


class positions:  # noqa: N801
    """Within: a padded batch's position ids are handed to the model, as ``generate`` does."""

    def __init__(self, model: Any, mask: Any) -> None:
        self.model, self.mask, self.handle = model, mask, None

    def __enter__(self) -> None:
        import inspect

        takes = "position_ids" in inspect.signature(self.model.forward).parameters
        if self.mask is None or not takes:
            return
        ids = (self.mask.cumsum(-1) - 1).clamp_min(0)

        def add(module: Any, args: Any, kwargs: Any) -> Any:
            return args, kwargs | {"position_ids": ids}

        self.handle = self.model.register_forward_pre_hook(add, with_kwargs=True)

    def __exit__(self, *error: Any) -> None:
        if self.handle is not None:
            self.handle.remove()  # type: ignore[unreachable]


def plain(folder: str, dtype: str) -> Iterator[tuple[str, Any]]:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    more = {"attn_implementation": "eager", "torch_dtype": getattr(torch, dtype)}
    major = int(importlib.import_module("transformers").__version__.split(".")[0])
    if major >= 5 and any("expert" in key for key in config.to_dict()):
        more["experts_implementation"] = "eager"  # the grouped kernel knows no float64
    yield "raw", Plain(AutoModelForCausalLM.from_pretrained(folder, **more), folder)
