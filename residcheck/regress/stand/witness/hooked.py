"""HookedTransformer, of transformer-lens 2 and 3."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch

from .lens import Lens

# Architectures that HookedTransformer knows under fixed names only, with the sizes in its code.
# The code of such a name is run with the sizes of the model at hand.
OFFICIAL = {
    "gemma": "google/gemma-2b",
    "gemma2": "google/gemma-2-2b",
    "gemma3_text": "google/gemma-3-270m",
    "llama3": "meta-llama/Llama-3.1-8B",
}


def hooked(folder: str, dtype: str) -> Iterator[tuple[str, Any]]:
    """HookedTransformer's own loading path, of a folder in the place of a hub name."""
    import transformer_lens
    from transformer_lens import loading_from_pretrained as loading
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=getattr(torch, dtype))
    config = model.config
    kind = "llama3" if rope_of(config).get("rope_type") == "llama3" else config.model_type
    name = OFFICIAL.get(kind)
    convert = loading.convert_hf_model_config
    if name is None:
        loading.get_official_model_name = lambda given: given
    else:
        loading.convert_hf_model_config = lambda given, **more: sized(convert(name, **more), config)
        loading.get_official_model_name = lambda given: name
    kwargs = {"hf_model": model, "device": "cpu", "dtype": getattr(torch, dtype)}
    kwargs["tokenizer"] = AutoTokenizer.from_pretrained(folder)
    cls, where = transformer_lens.HookedTransformer, name or folder
    made = cls.from_pretrained_no_processing(where, **kwargs)
    yield "raw", Lens(made)
    yield "processed", Lens(cls.from_pretrained(where, **kwargs))
    made.process_weights_()
    with suppress(KeyError):  # 2.x finds no gains a second time, and changes nothing then
        made.process_weights_()
    yield "twice", Lens(made)


def rope_of(config: Any) -> dict[str, Any]:
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return rope.get("full_attention", rope) | (  # type: ignore[no-any-return]
        {"rope_local": rope["sliding_attention"]["rope_theta"]} if "full_attention" in rope else {}
    )


def sized(known: dict[str, Any], config: Any) -> dict[str, Any]:
    """A fixed configuration with the sizes and constants of another model of its kind."""
    rope, layers = rope_of(config), config.num_hidden_layers
    heads = config.num_attention_heads
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * layers
    theta = rope.get("rope_theta", getattr(config, "rope_theta", None))
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    own = {
        "d_model": config.hidden_size,
        "d_head": width,
        "n_heads": heads,
        "d_mlp": config.intermediate_size,
        "n_layers": layers,
        "n_ctx": config.max_position_embeddings,
        "eps": config.rms_norm_eps,
        "d_vocab": config.vocab_size,
        "rotary_dim": width,
        "rotary_base": theta,
        "rotary_base_local": rope.get("rope_local", getattr(config, "rope_local_base_freq", None)),
        "n_key_value_heads": config.num_key_value_heads,
        "window_size": getattr(config, "sliding_window", None),
        "attn_types": ["local" if kind.startswith("sliding") else "global" for kind in kinds],
        "attn_scores_soft_cap": getattr(config, "attn_logit_softcapping", None) or -1.0,
        "output_logits_soft_cap": getattr(config, "final_logit_softcapping", None) or -1.0,
        "NTK_by_parts_low_freq_factor": rope.get("low_freq_factor"),
        "NTK_by_parts_high_freq_factor": rope.get("high_freq_factor"),
        "NTK_by_parts_factor": rope.get("factor"),
        "NTK_original_ctx_len": rope.get("original_max_position_embeddings"),
    }
    if config.model_type == "gemma2" and "attn_types" in known:
        own["attn_types"] = known["attn_types"][:layers]  # the library's own order
    # What the kind needs of these is what its fixed configuration sets.
    always = ("n_key_value_heads", "output_logits_soft_cap")
    return known | {k: v for k, v in own.items() if k in known or (k in always and v)}
