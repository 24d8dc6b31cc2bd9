"""Tiny random models of many families, saved as anyone would save a model.

Gains lie far from 1 and biases far from 0, so that a hook on the wrong side of a norm
or a forgotten bias shows. Every model comes with a byte-level tokenizer of ``VOCAB``
tokens, learnt from the first of residcheck's passages.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from residcheck.corpus import shipped

VOCAB = 512
BOS, EOS, PAD = 0, 1, 2
LAYERS = 3
MODELS: Callable[..., Path]

_IDS: dict[str, Any] = {
    "vocab_size": VOCAB,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}
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
_MAMBA = {"hidden_size": 48, "num_hidden_layers": LAYERS, "state_size": 8}

# family: the configuration class of transformers, and its arguments
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", _GPT2),
    "gpt_neo": (
        "GPTNeoConfig",
        {
            "hidden_size": 48,
            "num_layers": 4,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 2]],
            "max_position_embeddings": 256,
            "window_size": 16,
        },
    ),
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
    "gemma3": (
        "Gemma3TextConfig",
        _HEADS
        | {
            "query_pre_attn_scalar": 12,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "phi": ("PhiConfig", _PLAIN),
    "phi3": ("Phi3Config", _GROUPED),
    "stablelm": ("StableLmConfig", _GROUPED | {"partial_rotary_factor": 0.5}),
    "stablelm_parallel": (
        "StableLmConfig",
        _GROUPED | {"partial_rotary_factor": 0.5, "use_parallel_residual": True},
    ),
    "olmo": ("OlmoConfig", _GROUPED),
    "olmo2": ("Olmo2Config", _GROUPED),
    "granite": (
        "GraniteConfig",
        _GROUPED | {"residual_multiplier": 0.3, "embedding_multiplier": 3.0},
    ),
    "cohere": ("CohereConfig", _GROUPED),
    "gpt_oss": ("GptOssConfig", _HEADS | _EXPERTS),
    "glm4": ("Glm4Config", _HEADS),
    "starcoder2": ("Starcoder2Config", _GROUPED),
    "nemotron": ("NemotronConfig", _GROUPED),
    "mamba": ("MambaConfig", _MAMBA),
    "bert": ("BertConfig", _PLAIN),
    "t5": ("T5Config", {"d_model": 48, "num_layers": 2, "num_heads": 4, "d_kv": 12, "d_ff": 96}),
}
_CLASSES = {"bert": "BertForMaskedLM", "t5": "T5ForConditionalGeneration"}


def config_of(family: str, **overrides: Any) -> Any:
    name, arguments = FAMILIES[family]
    return getattr(transformers, name)(**(_IDS | arguments | overrides))


def new_model(family: str, **overrides: Any) -> Any:
    """A model in memory, the same numbers every time."""
    torch.manual_seed(1)
    config = config_of(family, **overrides)
    if family in _CLASSES:
        model = getattr(transformers, _CLASSES[family])(config)
    else:
        model = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.3 if parameter.ndim == 1 else 0.08
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def build(family: str, folder: Path, **overrides: Any) -> Path:
    """Save a tiny model of ``family`` with its tokenizer in ``folder``."""
    new_model(family, **overrides).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    bpe = ByteLevelBPETokenizer()
    marks = ["<s>", "</s>", "<pad>"]
    texts = shipped().texts[:8]
    bpe.train_from_iterator(texts, VOCAB, special_tokens=marks, show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
