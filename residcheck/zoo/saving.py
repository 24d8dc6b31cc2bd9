"""A model of the zoo as a folder that old and new versions of transformers read alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from residcheck.zoo.building import IDS, config_of, new_model, tokenizer
from residcheck.zoo.table import FAMILIES, MODELS

_FURTHER = 0.3
"""Rotary bases are so much smaller than the default of their architecture: a library that
falls back on a default shows."""


_TOKENIZER = "PreTrainedTokenizerFast"  # transformers 5 writes a name that 4 does not know


def save(name: str, folder: Path) -> None:
    """Write configuration, safetensors weights and tokenizer of the model ``name``.

    Raises:
        KeyError: no model of that name.
    """
    family, overrides = MODELS[name]
    model = new_model(family, **overrides, **_further(family, overrides))
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    _rewrite(folder / "config.json", _as_of_old)
    _rewrite(folder / "tokenizer_config.json", lambda _: {"tokenizer_class": _TOKENIZER})


def arguments_of(name: str, *, old: bool = False) -> tuple[str, dict[str, Any]]:
    """The configuration class of a model of the zoo, and what to call it with.

    Args:
        old: for transformers 4.
    """
    family, overrides = MODELS[name]
    kind, arguments = FAMILIES[family]
    found = IDS | arguments | overrides | _further(family, overrides)
    return kind, found | (_as_of_old(found | {"model_type": family}) if old else {})


def _further(family: str, overrides: dict[str, Any]) -> dict[str, Any]:
    if "rope_parameters" in overrides:
        return {}
    rope = _far(getattr(config_of(family, **overrides), "rope_parameters", None))
    return {"rope_parameters": rope} if rope else {}


def _rewrite(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    document |= change(document)
    path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _far(rope: dict[str, Any] | None) -> dict[str, Any] | None:
    if not rope:
        return None
    if "rope_theta" in rope:
        return rope | {"rope_theta": _FURTHER * rope["rope_theta"]}
    return {kind: _far(inner) for kind, inner in rope.items()}


def _as_of_old(config: dict[str, Any]) -> dict[str, Any]:
    """What transformers 4 calls what 5 writes: it ignores ``rope_parameters`` silently."""
    old: dict[str, Any] = {}
    if "dtype" in config:
        old["torch_dtype"] = config["dtype"]
    if config.get("model_type") == "gpt2":  # as the hub's own configurations have it
        old["n_ctx"] = config["n_positions"]
    if config.get("model_type") == "qwen3_moe" and "num_local_experts" in config:
        old["num_experts"] = config["num_local_experts"]
    if config.get("model_type") == "apertus":  # 4 scales as Llama 3 does unless told not to
        old["rope_scaling"] = None
    rope = config.get("rope_parameters")
    if not rope:
        return old
    if "rope_theta" not in rope:  # one base for each kind of layer: Gemma 3
        old["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    kinds = config.get("layer_types", [])
    if "full_attention" in kinds[1:]:  # Gemma 3 and OLMo 3 once counted: every so many layers
        old["sliding_window_pattern"] = kinds.index("full_attention") + 1
    old["rope_theta"] = old["rotary_emb_base"] = rope["rope_theta"]
    if "partial_rotary_factor" in rope:
        old["partial_rotary_factor"] = old["rotary_pct"] = rope["partial_rotary_factor"]
    if rope["rope_type"] != "default":
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        old["rope_scaling"] = scaling
    return old
