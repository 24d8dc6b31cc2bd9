"""Virtual weights: what one sublayer's output weights are to a later one's input weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from residcheck.backends.layer_weights import LayerWeights
from residcheck.curves import Floats


def writing(weights: LayerWeights) -> list[list[Float[Tensor, "*head d_model source"]]]:
    """What a layer's two sublayers write with: W_O of all heads, and W_out, transposed."""
    attention, mlp = weights.attention, weights.mlp
    assert attention is not None
    assert mlp is not None
    return [[attention.W_O.mT], [mlp.W_out.mT]]


def reading(weights: LayerWeights) -> list[list[Float[Tensor, "*head d_model target"]]]:
    """What they read with: W_Q, W_K and W_V of all heads; W_in and the gate."""
    attention, mlp = weights.attention, weights.mlp
    assert attention is not None
    assert mlp is not None
    into_mlp = [mlp.W_in] if mlp.W_gate is None else [mlp.W_in, mlp.W_gate]
    return [[attention.W_Q, attention.W_K, attention.W_V], into_mlp]


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

    Only a block of the readers' Gram matrices is held, and the writers' are made again for
    every block. Together with what it takes to make one, the tensors held are at most the
    size of one layer's weights, unless the two readers of a layer are more than that. Beside
    them there is what ``layer_weights`` makes: nothing where it returns views of the model, a
    layer where it returns copies, as folded weights are. (SmolLM2 135M, a layer of 14.2 MB:
    13.3 MB on stored weights, 20.6 MB on folded ones, of which only the readers are copies.)
    """
    scores = np.full((2 * n_layers, 2 * n_layers), np.nan)
    for block in _blocks(layer_weights, n_layers):
        _fill(scores, block, layer_weights, parallel, centred)
        block.clear()  # before the next one is made
    return scores


@dataclass(frozen=True)
class Gram:
    """A symmetric matrix: its upper triangle, off-diagonal entries times the root of 2, so
    that inner products of triangles are those of the matrices; and its trace."""

    triangle: Float[Tensor, " entry"]
    trace: float
    d_model: int

    @classmethod
    def of(cls, matrices: list[Float[Tensor, "*head d_model width"]]) -> Gram:
        """Of all columns of all heads of ``matrices``."""
        d_model = matrices[0].shape[-2]
        product = matrices[0].new_zeros(d_model, d_model)
        for matrix in matrices:  # one by one: side by side they would be a copy of all
            columns = matrix if matrix.ndim == 2 else matrix.transpose(0, 1).flatten(1)
            product.addmm_(columns, columns.mT)
        del columns
        diagonal = product.diagonal().clone()
        product.mul_(2**0.5).diagonal().copy_(diagonal)
        # from views of the rows: indices of all entries would take four times the triangle
        triangle = torch.cat([row[n:] for n, row in enumerate(product.unbind())])
        return cls(triangle, float(diagonal.sum(dtype=torch.float64)), d_model)

    def to(self, device: torch.device) -> Gram:
        """The same on ``device``; layers of a spread model have each their own."""
        return replace(self, triangle=self.triangle.to(device))


def _later(read: int, write: int, parallel: bool) -> bool:
    """In a parallel block the MLP does not read what its own attention writes."""
    return read // 2 > write // 2 if parallel else read > write


def _fill(
    scores: Floats,
    block: dict[int, Gram],
    layer_weights: Callable[[int], LayerWeights],
    parallel: bool,
    centred: bool,
) -> None:
    """Set the scores of a block of readers, with all earlier writes."""
    device = next(iter(block.values())).triangle.device
    for write, gram in _grams(writing, layer_weights, range(max(block) // 2 + 1)):
        gram = gram.to(device)
        for read, reader in block.items():
            if _later(read, write, parallel):
                scores[write, read] = _composition(gram, reader, centred)


def _blocks(
    layer_weights: Callable[[int], LayerWeights], n_layers: int
) -> Iterator[dict[int, Gram]]:
    block: dict[int, Gram] = {}
    room = _room(layer_weights(0))
    for read, gram in _grams(reading, layer_weights, range(n_layers)):
        first = next(iter(block.values()), gram)
        block[read] = gram.to(first.triangle.device)
        if len(block) == room:
            yield block
            block = {}
    if block:
        yield block


def _room(weights: LayerWeights) -> int:
    """How many triangles are held, so that all is smaller than one layer's weights.

    In the making of another there are a square product, as large as two, and the triangle
    packed from it, or before that a copy of one matrix, where its heads are not side by
    side in memory; and the triangle made before is still there. An even number, both readers
    of a layer: else copies for the second would wait while the writers are gone through.
    """
    every = [w for sublayer in (*writing(weights), *reading(weights)) for w in sublayer]
    triangle = every[0].shape[-2] * (every[0].shape[-2] + 1) // 2
    copy = max((w.numel() for w in every if w.ndim == 3), default=0)
    making = 3 * triangle + max(triangle, copy)
    room = (sum(w.numel() for w in every) - making) // triangle
    return max(2, room - room % 2)


def _grams(
    side: Callable[[LayerWeights], list[list[Tensor]]],
    layer_weights: Callable[[int], LayerWeights],
    layers: range,
) -> Iterator[tuple[int, Gram]]:
    for layer in layers:
        sublayers = side(layer_weights(layer))
        while sublayers:  # each is let go of before the next layer is made
            sublayer = 2 - len(sublayers)
            yield 2 * layer + sublayer, Gram.of(sublayers.pop(0))


def _composition(writer: Gram, reader: Gram, centred: bool) -> float:
    """Of Gram matrices: tr(W R) is |A B|^2, and the traces are the norms squared."""
    product = float(torch.dot(writer.triangle, reader.triangle))
    alone = writer.trace * reader.trace
    shared = writer.d_model - centred
    return (max(product, 0.0) / alone * shared) ** 0.5 if alone > 0 else float("nan")
