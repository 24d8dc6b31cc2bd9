"""The tokenizer of the trained controls: byte-level BPE, learnt from their own corpus."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

MARK = "<|endoftext|>"
"""Begins every window and every document."""


def learn(texts: Iterable[str], vocabulary: int) -> Any:
    """A ``tokenizers.Tokenizer`` of GPT-2's kind; the same texts give the same tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[MARK],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def wrapped(tokenizer: Any) -> Any:
    """``tokenizer`` as transformers has them; BOS and EOS are :data:`MARK`."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=MARK,
        eos_token=MARK,
        unk_token=MARK,
        clean_up_tokenization_spaces=False,
    )
