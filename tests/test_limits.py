"""What may be asked of a measurement, and models that read only a few tokens."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import BOS, LAYERS, Tiny, by_hand, tokenizer

from residcheck.backends import anatomy
from residcheck.corpus import Prompts, shipped
from residcheck.errors import GateError, UsageError
from residcheck.measure import EVERYTHING, QUANTITIES, measure, open_session, run_session
from residcheck.models import ModelSpec
from residcheck.tolerances import tolerance

both_backends = pytest.mark.parametrize("backend", ["transformer_lens", "transformers"])
TOKEN = tolerance("float32").token
MAX_TOKENS = 24
TEXTS = shipped().texts[10:14]
PROMPTS = Prompts("some passages", TEXTS)


def spec_of(folder: Path, backend: str = "transformers") -> ModelSpec:
    return ModelSpec(str(folder), backend=backend)


def ids_of(text: str, limit: int) -> list[int]:
    return [BOS, *tokenizer()(text, add_special_tokens=False)["input_ids"]][:limit]


@both_backends
@pytest.mark.parametrize(
    ("family", "option"),
    [
        ("gpt2", "n_positions"),
        ("opt", "max_position_embeddings"),
        ("llama", "max_position_embeddings"),
        ("mpt", "max_seq_len"),
    ],
)
@pytest.mark.parametrize("positions", [2, 3, 8])
def test_models_of_few_positions_are_measured(
    positions: int, family: str, option: str, backend: str, tiny: Tiny
) -> None:
    folder = tiny(family, **{option: positions})
    run = measure(
        spec_of(folder, backend), PROMPTS, names=(*QUANTITIES, "bos_spread", "padding_spread")
    )
    assert run["resid_post_norm"].values.shape == (len(TEXTS), positions, LAYERS)
    if family in ("gpt2", "llama"):
        for prompt, text in enumerate(TEXTS):
            expected = by_hand(folder, ids_of(text, positions))
            for name, right in expected.items():
                found = run[name].values[prompt, : len(right)]
                assert np.allclose(found, right, rtol=TOKEN, atol=TOKEN), name
    room = positions > 2  # for padding, BOS and a token of text
    assert np.isfinite(run["bos_spread"].values).all() == room
    assert run["padding_spread"].values.shape == (max(1, min(4, positions - 2)), LAYERS)
    assert np.isfinite(run["padding_spread"].values).all() == room


@pytest.mark.parametrize("positions", [2, 8])
def test_hooks_of_models_of_few_positions_are_checked(
    positions: int, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anatomy, "_post_norms", lambda block: (None, None))
    with pytest.raises(GateError, match="layer 0: resid_pre"):
        measure(spec_of(tiny("gemma3", max_position_embeddings=positions)), PROMPTS)


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_without_prompts_is_refused(size: int, tiny: Tiny) -> None:
    with pytest.raises(UsageError, match=f"batch-size {size} measures nothing") as caught:
        measure(ModelSpec("never-loaded/model"), PROMPTS, batch_size=size)
    assert "at least 1" in caught.value.hint
    session = open_session(spec_of(tiny("llama")), PROMPTS, MAX_TOKENS)
    with pytest.raises(UsageError):
        run_session(session, batch_size=size)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["resid_post_nrom"], "unknown curve 'resid_post_nrom'; did you mean 'resid_post_norm'?"),
        (["mlp_out_norm", "attn_cosine"], "'attn_cosine'; did you mean 'attn_out_cosine'?"),
        (["xyzzy"], "unknown curve 'xyzzy'$"),
        ("resid_norm", "unknown curve 'resid_norm'; did you mean 'resid_"),
    ],
)
def test_a_curve_that_there_is_none_of_is_refused(names: Any, said: str, tiny: Tiny) -> None:
    with pytest.raises(UsageError) as caught:
        measure(ModelSpec("never-loaded/model"), PROMPTS, names=names)
    assert re.search(said.replace("?", r"\?"), caught.value.message)
    assert all(name in caught.value.hint for name in EVERYTHING)
    session = open_session(spec_of(tiny("llama")), PROMPTS, MAX_TOKENS)
    with pytest.raises(UsageError):
        run_session(session, names)
