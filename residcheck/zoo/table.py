"""Which families and models there are: data only.

``FAMILIES`` are configurations as small as they can be; ``SETTINGS`` are those with what makes
faults show: windows shorter than the prompts, caps and scales far from their defaults, biases
wherever there can be some.
"""

from __future__ import annotations

from typing import Any

LAYERS = 3
_GPT2: dict[str, Any] = {"n_embd": 48, "n_layer": LAYERS, "n_head": 4, "n_positions": 256}
_PLAIN: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
_GROUPED = _PLAIN | {"num_key_value_heads": 2}
_HEADS = _GROUPED | {"head_dim": 12}
_NO_MLP = {k: v for k, v in _PLAIN.items() if k != "intermediate_size"}
_FALCON = {k: v for k, v in _NO_MLP.items() if k != "max_position_embeddings"}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_DENSE_FIRST = {"mlp_only_layers": [0], "num_experts": 4, "moe_intermediate_size": 32}

_NEO: dict[str, Any] = {"hidden_size": 48, "num_layers": LAYERS, "num_heads": 4}
_NEO |= {"attention_types": [[["global", "local", "global"], 1]], "window_size": 16}
_NEO |= {"max_position_embeddings": 256}
_KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
_KINDS_AND_WINDOW = {"sliding_window": 8, "layer_types": _KINDS}
_DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 10000.0}

# family: the configuration class of transformers, and its arguments
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", _GPT2),
    "gpt_neo": ("GPTNeoConfig", _NEO),
    "openai_gpt": ("OpenAIGPTConfig", _GPT2),
    "gptj": ("GPTJConfig", _GPT2 | {"rotary_dim": 8}),
    "codegen": ("CodeGenConfig", _GPT2 | {"n_embd": 64, "rotary_dim": 8}),
    "neox": ("GPTNeoXConfig", _PLAIN),
    "neox_sequential": ("GPTNeoXConfig", _PLAIN | {"use_parallel_residual": False}),
    "opt": ("OPTConfig", _NO_MLP | {"ffn_dim": 96, "word_embed_proj_dim": 48}),
    "bloom": ("BloomConfig", {"hidden_size": 48, "n_layer": LAYERS, "n_head": 4}),
    "falcon": ("FalconConfig", _FALCON),
    "falcon_new": ("FalconConfig", _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "mpt": ("MptConfig", {"d_model": 48, "n_layers": LAYERS, "n_heads": 4, "max_seq_len": 256}),
    "llama": ("LlamaConfig", _GROUPED),
    "mistral": ("MistralConfig", _GROUPED | {"sliding_window": 16}),
    "mixtral": ("MixtralConfig", _GROUPED | _EXPERTS),
    "qwen2": ("Qwen2Config", _GROUPED),
    "qwen3": ("Qwen3Config", _HEADS),
    "gemma": ("GemmaConfig", _HEADS),
    "gemma2": ("Gemma2Config", _HEADS | {"query_pre_attn_scalar": 12}),
    "gemma3": ("Gemma3TextConfig", _HEADS | {"query_pre_attn_scalar": 12} | _KINDS_AND_WINDOW),
    "phi": ("PhiConfig", _PLAIN),
    "phi3": ("Phi3Config", _GROUPED),
    "stablelm": ("StableLmConfig", _GROUPED | {"partial_rotary_factor": 0.5}),
    "stablelm_parallel": (
        "StableLmConfig",
        _GROUPED | {"partial_rotary_factor": 0.5, "use_parallel_residual": True},
    ),
    "olmo": ("OlmoConfig", _GROUPED),
    "olmo2": ("Olmo2Config", _GROUPED),
    "olmo3": ("Olmo3Config", _GROUPED | _KINDS_AND_WINDOW),
    "granite": (
        "GraniteConfig",
        _GROUPED | {"residual_multiplier": 0.3, "embedding_multiplier": 3.0},
    ),
    "cohere": ("CohereConfig", _GROUPED),
    "gpt_oss": ("GptOssConfig", _HEADS | _EXPERTS),
    "glm4": ("Glm4Config", _HEADS),
    "starcoder2": ("Starcoder2Config", _GROUPED),
    "nemotron": ("NemotronConfig", _GROUPED),
    "apertus": ("ApertusConfig", _GROUPED | {"rope_parameters": _DEFAULT_ROPE}),
    "qwen3_moe_dense_first": ("Qwen3MoeConfig", _HEADS | _DENSE_FIRST),
}

_WINDOW = {"sliding_window": 8}
_FAR_ROPE = {"rope_type": "default", "rope_theta": 100_000.0}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# name: the family it is of, and what is set otherwise there
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in FAMILIES},
    "gpt_neo": ("gpt_neo", {"window_size": 8}),
    "falcon_biased": ("falcon", {"bias": True, "multi_query": False}),
    "falcon_alibi": ("falcon", {"alibi": True}),
    "llama": ("llama", {"rope_parameters": _FAR_ROPE}),
    "llama_biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama_long": ("llama", {"rope_parameters": _LLAMA3}),
    "mistral": ("mistral", _WINDOW),
    "qwen2": ("qwen2", _WINDOW | {"use_sliding_window": True, "max_window_layers": 1}),
    "gemma2": (
        "gemma2",
        _WINDOW | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0},
    ),
    "gemma3": ("gemma3", _WINDOW | {"final_logit_softcapping": 5.0}),
    "phi_normed": ("phi", {"qk_layernorm": True}),
    "phi3": ("phi3", _WINDOW),
    "stablelm": ("stablelm", {"qk_layernorm": True, "use_qkv_bias": True}),
    "granite": ("granite", {"attention_multiplier": 0.2, "logits_scaling": 2.0}),
    "cohere_normed": ("cohere", {"use_qk_norm": True}),
    "gpt_oss": ("gpt_oss", _WINDOW),
    "starcoder2": ("starcoder2", _WINDOW),
    "qwen3_moe_dense_first": ("qwen3_moe_dense_first", {"num_experts_per_tok": 2}),
}

# What is held against other versions of the libraries: rotary bases are other ones there, too.
_HALF = {"rope_parameters": {"rope_type": "default", "rope_theta": 3000.0}}
_HALF["rope_parameters"]["partial_rotary_factor"] = 0.5  # a quarter of 12 is no number of pairs
MODELS: dict[str, tuple[str, dict[str, Any]]] = SETTINGS | {
    "neox": ("neox", _HALF),
    "neox_sequential": ("neox_sequential", _HALF),
    "gpt2_inverse": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "qwen2_full": ("qwen2", {}),
}
