"""Tiny models in memory: the same numbers every time."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from residcheck.corpus import shipped
from residcheck.zoo.table import FAMILIES

VOCAB = 512
BOS, EOS, PAD = 0, 1, 2
IDS: dict[str, Any] = {
    "vocab_size": VOCAB,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}


def config_of(family: str, **overrides: Any) -> Any:
    """The configuration of a family's tiny model."""
    name, arguments = FAMILIES[family]
    return getattr(transformers, name)(**(IDS | arguments | overrides))


def new_model(family: str, **overrides: Any) -> Any:
    """A model in memory, the same numbers every time."""
    return randomised(config_of(family, **overrides), transformers.AutoModelForCausalLM.from_config)


def randomised(config: Any, build: Any) -> Any:
    """The model that ``build`` makes of ``config``, with gains far from 1 and biases from 0."""
    torch.manual_seed(1)
    model = build(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.3 if parameter.ndim == 1 else 0.08
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of ``VOCAB`` tokens, learnt from the first of the passages."""
    bpe = ByteLevelBPETokenizer()
    marks = ["<s>", "</s>", "<pad>"]
    texts = shipped().texts[:8]
    bpe.train_from_iterator(texts, VOCAB, special_tokens=marks, show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
