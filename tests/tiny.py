"""Tiny random models of many families, and what is in their streams, worked out by hand.

Gains lie far from 1 and biases far from 0, so that a hook on the wrong side of a norm
or a forgotten bias shows. Every model comes with a byte-level tokenizer of ``VOCAB``
tokens, learnt from the first of residcheck's passages.

:func:`by_hand` is the tests' own measurement: float64, the plain transformers modules
called one after another with masks written out here, and numpy for the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import torch
import transformers
from torch import Tensor
from torch.nn.functional import gelu, silu

from residcheck import zoo
from residcheck.curves import Run
from residcheck.names import OF_PROCESSING
from residcheck.zoo import BOS as BOS
from residcheck.zoo import EOS as EOS
from residcheck.zoo import FAMILIES as FAMILIES
from residcheck.zoo import PAD as PAD
from residcheck.zoo import VOCAB as VOCAB
from residcheck.zoo import config_of as config_of
from residcheck.zoo import tokenizer as tokenizer
from residcheck.zoo.table import LAYERS as LAYERS

Tiny = Callable[..., Path]  # the fixture: family and overrides to the model's folder

_BERT = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
# Models that residcheck does not measure: the configuration class, its arguments, the model's.
_OTHERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "mamba": (
        "MambaConfig",
        {"hidden_size": 48, "num_hidden_layers": LAYERS, "state_size": 8},
        "MambaForCausalLM",
    ),
    "rwkv": ("RwkvConfig", {"hidden_size": 64, "num_hidden_layers": LAYERS}, "RwkvForCausalLM"),
    "bert": ("BertConfig", _BERT, "BertForMaskedLM"),
    "t5": (
        "T5Config",
        {"d_model": 48, "num_layers": 2, "num_heads": 4, "d_kv": 12, "d_ff": 96},
        "T5ForConditionalGeneration",
    ),
}


def new_model(family: str, **overrides: Any) -> Any:
    """A model in memory, the same numbers every time."""
    if family not in _OTHERS:
        return zoo.new_model(family, **overrides)
    name, arguments, model = _OTHERS[family]
    config = getattr(transformers, name)(**(zoo.IDS | arguments | overrides))
    return zoo.randomised(config, getattr(transformers, model))


def build(family: str, folder: Path, **overrides: Any) -> Path:
    """Save a tiny model of ``family`` with its tokenizer in ``folder``."""
    new_model(family, **overrides).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def build_gguf(path: Path) -> None:
    """The tiny Llama as llama.cpp writes it: other names, query and key rows permuted."""
    model, tokens = new_model("llama"), tokenizer()
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    vocabulary = json.loads(tokens.backend_tokenizer.to_str())["model"]
    facts = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "head_count": config.num_attention_heads,
        "head_count_kv": config.num_key_value_heads,
        "layer_norm_rms_eps": config.rms_norm_eps,
        "rope_freq_base": 10_000.0,
        "vocab_size": VOCAB,
        "tokenizer_model": "gpt2",
        "token_list": sorted(vocabulary["vocab"], key=vocabulary["vocab"].__getitem__),
        "token_merges": [" ".join(merge) for merge in vocabulary["merges"]],
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }
    for name, value in facts.items():
        getattr(writer, f"add_{name}")(value)
    for name, tensor in model.state_dict().items():
        part = name.removesuffix(".weight").rpartition(".")[2]
        values, heads = tensor.numpy(), {"q_proj": 4, "k_proj": 2}.get(part)
        if heads:
            halves = values.reshape(heads, 2, -1, values.shape[1])
            values = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
        number = next((f"blk.{p}." for p in name.split(".") if p.isdigit()), "")
        writer.add_tensor(f"{number}{_GGUF_NAMES[part]}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


_GGUF_NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "o_proj": "attn_output",
    **{f"{x}_proj": f"attn_{x}" for x in "qkv"},
    **{f"{x}_proj": f"ffn_{x}" for x in ("gate", "up", "down")},
}


def architectural(run: Run) -> dict[str, str]:
    """What a run lacks since the model has it not, whatever the library does to weights."""
    return {name: why for name, why in run.model.missing.items() if name not in OF_PROCESSING}


class Layer(NamedTuple):
    """One block's tensors, ``[position, width]``; ``mid`` is None in parallel blocks."""

    pre: Tensor
    attn: Tensor
    mid: Tensor | None
    hidden: Tensor
    handed: Tensor  # to W_out
    mlp: Tensor
    post: Tensor


def by_hand(source: Path | str, ids: list[int]) -> dict[str, np.ndarray]:
    """Every curve of one prompt of ``ids``: name to ``[position, layer]``, in float64."""
    model = load_double(source)
    layers = layers_by_hand(model, ids)
    return quantities(layers, model.config)


def load_double(source: Path | str) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float64, attn_implementation="eager"
    ).eval()


@torch.no_grad()
def layers_by_hand(model: Any, ids: list[int]) -> list[Layer]:
    walk = _WALKS[model.config.model_type]
    return [
        Layer(*(None if x is None else x[0].double() for x in layer))
        for layer in walk(model, torch.tensor([ids]))
    ]


def _causal(n: int, window: int | None = None) -> Tensor:
    """What is added to attention scores: nothing, or the least number where the key is
    later than the query or ``window`` or more positions before it."""
    query, key = torch.arange(n)[:, None], torch.arange(n)[None, :]
    hidden = key > query
    if window is not None:
        hidden = hidden | (query - key >= window)
    mask = torch.zeros(n, n, dtype=torch.float64)
    return mask.masked_fill(hidden, torch.finfo(torch.float64).min)[None, None]


def _walk_gpt2(model: Any, ids: Tensor) -> Iterator[tuple[Tensor, ...]]:
    parts, n = model.transformer, ids.shape[1]
    h = parts.wte(ids) + parts.wpe(torch.arange(n))
    for block in parts.h:
        attn = block.attn(block.ln_1(h), attention_mask=_causal(n))[0]
        mid = h + attn
        read = block.ln_2(mid)
        mlp = block.mlp(read)
        hidden = block.mlp.c_fc(read)
        yield h, attn, mid, hidden, gelu(hidden, approximate="tanh"), mlp, mid + mlp
        h = mid + mlp


def _walk_llama(model: Any, ids: Tensor) -> Iterator[tuple[Tensor, ...]]:
    parts, n = model.model, ids.shape[1]
    h = parts.embed_tokens(ids)
    turns = parts.rotary_emb(h, torch.arange(n)[None])
    for block in parts.layers:
        read = block.input_layernorm(h)
        attn = block.self_attn(read, position_embeddings=turns, attention_mask=_causal(n))[0]
        mid = h + attn
        read = block.post_attention_layernorm(mid)
        mlp = block.mlp(read)
        hidden = block.mlp.gate_proj(read)
        yield h, attn, mid, hidden, silu(hidden) * block.mlp.up_proj(read), mlp, mid + mlp
        h = mid + mlp


def _walk_gemma3(model: Any, ids: Tensor) -> Iterator[tuple[Tensor, ...]]:
    parts, n = model.model, ids.shape[1]
    h = parts.embed_tokens(ids)  # times the root of d_model: the module does that itself
    for block, kind in zip(parts.layers, model.config.layer_types, strict=True):
        window = model.config.sliding_window if kind == "sliding_attention" else None
        turns = parts.rotary_emb(h, torch.arange(n)[None], kind)
        read, mask = block.input_layernorm(h), _causal(n, window)
        written = block.self_attn(read, position_embeddings=turns, attention_mask=mask)[0]
        attn = block.post_attention_layernorm(written)
        mid = h + attn
        read = block.pre_feedforward_layernorm(mid)
        mlp = block.post_feedforward_layernorm(block.mlp(read))
        hidden = block.mlp.gate_proj(read)
        handed = gelu(hidden, approximate="tanh") * block.mlp.up_proj(read)
        yield h, attn, mid, hidden, handed, mlp, mid + mlp
        h = mid + mlp


def _walk_neox(model: Any, ids: Tensor) -> Iterator[tuple[Tensor | None, ...]]:
    parts, n = model.gpt_neox, ids.shape[1]
    h = parts.embed_in(ids)
    turns = parts.rotary_emb(h, torch.arange(n)[None])
    for block in parts.layers:
        read = block.input_layernorm(h)
        attn = block.attention(read, attention_mask=_causal(n), position_embeddings=turns)[0]
        mid = None if model.config.use_parallel_residual else h + attn
        read = block.post_attention_layernorm(h if mid is None else mid)
        mlp = block.mlp(read)
        hidden = block.mlp.dense_h_to_4h(read)
        yield h, attn, mid, hidden, gelu(hidden), mlp, h + attn + mlp
        h = h + attn + mlp


_WALKS: dict[str, Callable[[Any, Tensor], Any]] = {
    "gpt2": _walk_gpt2,
    "llama": _walk_llama,
    "gemma3_text": _walk_gemma3,
    "gpt_neox": _walk_neox,
}


def quantities(layers: list[Layer], config: Any) -> dict[str, np.ndarray]:
    """What residcheck's curves are defined to be, from one prompt's tensors."""
    centred = config.model_type in ("gpt2", "gpt_neox")  # LayerNorm; the others have RMSNorm
    names = ("layer_norm_epsilon", "layer_norm_eps", "rms_norm_eps")
    eps = next(getattr(config, name) for name in names if hasattr(config, name))
    columns: dict[str, list[np.ndarray]] = {}
    for layer in layers:
        pre, attn, mid, hidden, handed, mlp, post = (
            None if x is None else x.numpy() for x in layer
        )
        before = pre if mid is None else mid
        if centred:
            pre, attn, mlp, post, before = (
                x - x.mean(-1, keepdims=True) for x in (pre, attn, mlp, post, before)
            )
        row = {
            "resid_pre_norm": _norm(pre),
            "ln1_normalized_norm": _norm(_normalised(pre, eps)),
            "attn_out_norm": _norm(attn),
            "attn_out_cosine": (attn * pre).sum(-1) / _norm(attn) / _norm(pre),
            "resid_mid_norm": _norm(before),
            "ln2_normalized_norm": _norm(_normalised(before, eps)),
            "activation_rate": (hidden > 0).mean(-1),
            "mlp_post_norm": _norm(handed),
            "mlp_post_min": handed.min(-1),
            "mlp_out_norm": _norm(mlp),
            "mlp_out_cosine": (mlp * before).sum(-1) / _norm(mlp) / _norm(before),
            "resid_post_norm": _norm(post),
        }
        if mid is None:
            del row["resid_mid_norm"]
        for name, column in row.items():
            columns.setdefault(name, []).append(column)
    return {name: np.stack(column, axis=-1) for name, column in columns.items()}


def _norm(x: np.ndarray) -> np.ndarray:
    return np.sqrt((x**2).sum(-1))


def _normalised(x: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
