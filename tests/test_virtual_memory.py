"""What virtual weights hold while they are computed, counted tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from residcheck.backends import Affine, AttentionWeights, LayerWeights, MLPWeights
from residcheck.weights.canonical import fold
from residcheck.weights.virtual import reading, virtual_weights, writing

LAYERS, HEADS, D, HIDDEN = 20, 4, 64, 270  # there is room for an odd number of readers


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def a_layer(apart: bool) -> LayerWeights:
    """As libraries store them: the heads' columns side by side, or head after head."""
    reads = [random(D, HEADS, D // HEADS).movedim(1, 0) for _ in range(3)]
    if apart:
        reads = [w.contiguous() for w in reads]
    attention = AttentionWeights(*reads, W_O=random(HEADS, D // HEADS, D))
    return LayerWeights(attention, MLPWeights(random(D, HIDDEN), random(HIDDEN, D)))


def most_held(compute: Callable[[], Any]) -> int:
    """Bytes of the tensors that ``compute`` makes, at most at a time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        compute()
    assert profiled.profiler is not None
    events = profiled.profiler.kineto_results.events()
    sizes = [event.nbytes() for event in events if event.name() == "[memory]"]
    return int(np.cumsum([0, *sizes]).max())


@pytest.mark.parametrize("apart", [False, True], ids=["side by side", "apart"])
@pytest.mark.parametrize("copied", [False, True], ids=["views", "copies"])
def test_less_than_one_layer_is_held(apart: bool, copied: bool) -> None:
    """Beside the layer at hand, where that is made for the purpose. And no less than three
    quarters, as the less is held, the more often all layers are gone through."""
    stored, ones = a_layer(apart), Affine(torch.ones(D), torch.zeros(D))

    def layer(n: int) -> LayerWeights:
        return fold(stored, ones, ones, centre=True) if copied else stored

    size = 4 * sum(w.numel() for w in chain(*writing(stored), *reading(stored)))
    held = most_held(lambda: virtual_weights(layer, LAYERS, False)) - most_held(lambda: layer(0))
    assert 0.75 * size < held <= size
