"""Virtual weights: what one sublayer's output weights are to a later one's input weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from residcheck.backends.layer_weights import LayerWeights
from residcheck.curves import Floats


def writing(weights: LayerWeights) -> list[Float[Tensor, "source d_model"]]:
    """What a layer's two sublayers write with: rows of W_O of all heads, and W_out."""
    attention, mlp = weights.attention, weights.mlp
    assert attention is not None
    assert mlp is not None
    return [attention.W_O.flatten(0, 1), mlp.W_out]


def reading(weights: LayerWeights) -> list[Float[Tensor, "d_model target"]]:
    """What they read with: columns of W_Q, W_K and W_V of all heads; W_in and the gate."""
    attention, mlp = weights.attention, weights.mlp
    assert attention is not None
    assert mlp is not None
    heads = [attention.W_Q, attention.W_K, attention.W_V]
    into_heads = torch.cat([w.transpose(0, 1).flatten(1) for w in heads], dim=1)
    into_mlp = mlp.W_in if mlp.W_gate is None else torch.cat([mlp.W_in, mlp.W_gate], dim=1)
    return [into_heads, into_mlp]


def virtual_weights(
    layer_weights: Callable[[int], LayerWeights],
    n_layers: int,
    parallel: bool,
    *,
    centred: bool = False,
) -> Floats:
    """Composition of every write with every later read: ``[2 * layers, 2 * layers]``.

    ``|W_write W_read|_F`` over what matrices of the same sizes and random directions give,
    ``|W_write|_F |W_read|_F / sqrt(d_model)``: 1 is no connection beyond chance (Elhage et
    al. 2021 on composition, with chance divided out). NaN where the read is not later.
    ``centred`` weights, of mean zero over d_model, share a space of one dimension less.

    Only a block of the readers' Gram matrices is held, of the size of one layer's weights;
    the writers' are made again for every block.
    """
    scores = np.full((2 * n_layers, 2 * n_layers), np.nan)
    for block in _blocks(layer_weights, n_layers):
        layers = range(max(block) // 2 + 1)
        for write, gram in _grams(writing, layer_weights, layers, transpose=True):
            for read, reader in block.items():
                if _later(read, write, parallel):
                    scores[write, read] = _composition(gram, reader, centred)
    return scores


@dataclass(frozen=True)
class Gram:
    """A symmetric matrix: its upper triangle, off-diagonal entries times the root of 2, so
    that inner products of triangles are those of the matrices; and its trace."""

    triangle: Float[Tensor, " entry"]
    trace: float
    d_model: int

    @classmethod
    def of(cls, product: Float[Tensor, "d d"]) -> Gram:
        d_model = len(product)
        rows, columns = torch.triu_indices(d_model, d_model, device=product.device)
        triangle = product[rows, columns] * 2**0.5
        triangle[rows == columns] = product.diagonal()
        return cls(triangle, float(product.diagonal().sum(dtype=torch.float64)), d_model)


def _later(read: int, write: int, parallel: bool) -> bool:
    """In a parallel block the MLP does not read what its own attention writes."""
    return read // 2 > write // 2 if parallel else read > write


def _blocks(
    layer_weights: Callable[[int], LayerWeights], n_layers: int
) -> Iterator[dict[int, Gram]]:
    block: dict[int, Gram] = {}
    room = _room(layer_weights(0))
    for read, gram in _grams(reading, layer_weights, range(n_layers), transpose=False):
        block[read] = gram
        if len(block) == room:
            yield block
            block = {}
    if block:
        yield block


def _room(weights: LayerWeights) -> int:
    """How many triangles are smaller than one layer's weights; two products are in the making."""
    size = sum(part.numel() for part in (*writing(weights), *reading(weights)))
    d_model = writing(weights)[0].shape[1]
    return max(1, 2 * size // d_model**2 - 4)


def _grams(
    side: Callable[[LayerWeights], list[Tensor]],
    layer_weights: Callable[[int], LayerWeights],
    layers: range,
    *,
    transpose: bool,
) -> Iterator[tuple[int, Gram]]:
    for layer in layers:
        for sublayer, matrix in enumerate(side(layer_weights(layer))):
            product = matrix.mT @ matrix if transpose else matrix @ matrix.mT
            yield 2 * layer + sublayer, Gram.of(product)


def _composition(writer: Gram, reader: Gram, centred: bool) -> float:
    """Of Gram matrices: tr(W R) is |A B|^2, and the traces are the norms squared."""
    product = float(torch.dot(writer.triangle, reader.triangle))
    alone = writer.trace * reader.trace
    shared = writer.d_model - centred
    return (max(product, 0.0) / alone * shared) ** 0.5 if alone > 0 else float("nan")
