"""A tokenizer for models of no language: a token for each byte, and one to begin with."""

from __future__ import annotations

from functools import cache
from typing import Any

BOS = 0
VOCABULARY = 257


@cache
def tokenizer() -> Any:
    """The tokenizer, made in memory."""
    from tokenizers import ByteLevelBPETokenizer, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": BOS} | {letter: 1 + i for i, letter in enumerate(letters)}
    byte_level = ByteLevelBPETokenizer(vocabulary, [])
    marks = dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<s>")
    # TransformerLens makes tokenizers anew, from their folder, that do not begin with BOS.
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level._tokenizer, name_or_path="bytes", add_bos_token=True, **marks
    )
