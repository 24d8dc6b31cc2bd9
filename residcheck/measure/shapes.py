"""Which hooks and weights there are, and how their axes lie: facts that are compared exactly."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

import torch
from jaxtyping import Int
from torch import Tensor

from residcheck.backends import SITES, Backend, Tap, Taps
from residcheck.names import MATRICES

NONE = "none"


def shapes(backend: Backend, tokens: Int[Tensor, "batch pos"]) -> dict[str, str]:
    """Shape of what every site's tap sees, and of every weight as the library hands it out.

    ``{"resid_post": "batch x pos x 576", "W_in": "576 x 1536", "W_gate": "none", ...}``; where
    layers differ, ``"layers 0-3: 576 x 96; layers 4-5: 576 x 48"``. Weights are in the layout
    of :mod:`residcheck.backends.layer_weights`, so that a transposed matrix shows.
    """
    return _of_sites(backend, tokens) | _of_weights(backend) | _of_ends(backend)


def _of_sites(backend: Backend, tokens: Int[Tensor, "batch pos"]) -> dict[str, str]:
    anatomy = backend.anatomy
    there = [site for site in SITES if anatomy.has(site)]
    found: dict[str, list[str]] = {site: [NONE] * anatomy.n_layers for site in SITES}

    def noting(site: str, layer: int) -> Tap:
        def note(x: Tensor) -> None:
            said = [str(size) for size in x.shape]
            if x.shape[:2] == tokens.shape:
                said[:2] = ["batch", "pos"]
            found[site][layer] = " x ".join(said)

        return note

    layers = range(anatomy.n_layers)
    taps: Taps = {(n, site): noting(site, n) for n in layers for site in there}
    backend.forward(tokens, torch.ones_like(tokens), taps, logits=False)
    return {site: _by_layer(said) for site, said in found.items()}


def _of_weights(backend: Backend) -> dict[str, str]:
    found: dict[str, list[str]] = {name: [] for name in MATRICES}
    for layer in range(backend.anatomy.n_layers):
        weights = backend.weights(layer)
        for name in MATRICES:
            part = weights.attention if name in ("W_Q", "W_K", "W_V", "W_O") else weights.mlp
            found[name].append(_shape(getattr(part, name, None)))
    return {name: _by_layer(said) for name, said in found.items()}


def _of_ends(backend: Backend) -> dict[str, str]:
    ends: dict[str, Callable[[], Tensor]] = {
        "W_E": backend.embedding,
        "W_U": lambda: backend.unembedding()[0],
    }
    found = {}
    for name, read in ends.items():
        try:
            found[name] = _shape(read())
        except Exception:  # of many kinds: a library that cannot give it has none
            found[name] = NONE
    return found


def _shape(tensor: Tensor | None) -> str:
    return NONE if tensor is None else " x ".join(str(size) for size in tensor.shape)


def _by_layer(said: list[str]) -> str:
    """One shape where all layers have it; else each with its layers."""
    runs: list[tuple[str, list[int]]] = []
    for shape, group in groupby(enumerate(said), key=lambda pair: pair[1]):
        runs.append((shape, [layer for layer, _ in group]))
    if len(runs) == 1:
        return runs[0][0]
    return "; ".join(f"{_layers(places)}: {shape}" for shape, places in runs)


def _layers(places: list[int]) -> str:
    first, last = places[0], places[-1]
    return f"layer {first}" if first == last else f"layers {first}-{last}"
