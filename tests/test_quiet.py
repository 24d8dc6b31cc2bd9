"""Runs that differ in nothing that matters raise no alarm; ``nox -s quiet`` makes many more."""

from __future__ import annotations

import pytest
import torch
from proof.quiet import KINDS, TOKENS, LeftPadded, counts_padding, pair

from residcheck.backends import open_backend
from residcheck.measure.tokens import pad
from residcheck.models import load

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("kind", KINDS)
def test_two_runs_are_the_same(kind: str) -> None:
    found = pair(kind, "llama", "transformers")
    assert found is not None
    assert not found.alarms
    assert found.margin <= 1


def test_positions_of_gpt2_count_padding_in_plain_transformers_only() -> None:
    assert counts_padding("gpt2", "transformers")
    assert pair("padding on the left", "gpt2", "transformers") is None
    assert not counts_padding("gpt2", "transformer_lens")
    found = pair("padding on the left", "gpt2", "transformer_lens")
    assert found is not None
    assert not found.alarms


def test_padding_is_moved_to_the_left_and_back() -> None:
    from proof.cells import spec_of

    backend = LeftPadded(open_backend(load(spec_of("llama", "transformers"))))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Inner:
        def forward(self, tokens: torch.Tensor, mask: torch.Tensor, taps: object, *, logits: bool):
            seen.append((tokens, mask))

    backend.inner = Inner()
    backend.forward(*pad([(1, 5, 6), (1, 7)], 2, "right", 5), {}, logits=False)
    backend.forward(*pad([(1, 5, 6), (1, 7)], 2, "left", 5), {}, logits=False)
    assert TOKENS > 5
    for tokens, mask in seen:
        assert tokens.tolist() == [[2, 2, 1, 5, 6], [2, 2, 2, 1, 7]]
        assert mask.tolist() == [[0, 0, 1, 1, 1], [0, 0, 0, 1, 1]]
