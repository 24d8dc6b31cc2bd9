"""Statistics of weights, against explicit products in float64 and closed forms.

No expected value here comes from a Gram matrix: every product is multiplied out with
numpy, and what a model stores is read from the plain modules of transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny import LAYERS, Tiny, load_double
from torch import Tensor

from residcheck.backends import AttentionWeights, LayerWeights, MLPWeights, open_backend
from residcheck.models import ModelSpec, load
from residcheck.names import MATRICES
from residcheck.tolerances import tolerance
from residcheck.weights import virtual
from residcheck.weights.canonical import canonical, fold
from residcheck.weights.gaussian import attention_on_gaussian, matrix
from residcheck.weights.norms import (
    neuron_cosine,
    ov_eigenvalue_sign,
    ov_frobenius,
    product_frobenius,
    w_in_w_out_frobenius,
)
from residcheck.weights.statistics import folded_statistics, raw_statistics
from residcheck.weights.virtual import virtual_weights

FLOAT32, FLOAT64 = tolerance("float32"), tolerance("float64")
BOTH_BACKENDS = pytest.mark.parametrize("backend", ["transformer_lens", "transformers"])
# d_model, heads, value heads, d_head, d_mlp: wide as models are; grouped values; heads and
# MLPs wider and narrower than the stream
SHAPES = [(40, 4, 4, 5, 90), (40, 6, 2, 5, 90), (7, 4, 1, 12, 30), (24, 2, 2, 8, 10)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def block(shape: tuple[int, ...], seed: int = 0, gated: bool = False) -> LayerWeights:
    d, heads, values, width, hidden = shape
    attention = AttentionWeights(
        W_Q=random(heads, d, width, seed=seed + 1),
        W_K=random(values, d, width, seed=seed + 2),
        W_V=random(values, d, width, seed=seed + 3),
        W_O=random(heads, width, d, seed=seed + 4),
    )
    mlp = MLPWeights(
        W_in=random(d, hidden, seed=seed + 5),
        W_out=random(hidden, d, seed=seed + 6),
        W_gate=random(d, hidden, seed=seed + 7) if gated else None,
    )
    return LayerWeights(attention, mlp)


def attention_of(weights: LayerWeights) -> AttentionWeights:
    assert weights.attention is not None
    return weights.attention


def mlp_of(weights: LayerWeights) -> MLPWeights:
    assert weights.mlp is not None
    return weights.mlp


def big_ov(attention: AttentionWeights) -> list[Any]:
    """Every query head's d_model x d_model product; neighbours share a value head."""
    values, writers = attention.W_V.numpy(), attention.W_O.numpy()
    shared = len(writers) // len(values)
    return [values[h // shared] @ writers[h] for h in range(len(writers))]


@shapes
def test_ov_norms_are_those_of_the_big_products(shape: tuple[int, ...]) -> None:
    attention = attention_of(block(shape))
    right = [np.linalg.norm(product) for product in big_ov(attention)]
    assert ov_frobenius(attention).numpy() == pytest.approx(right, rel=FLOAT64.product)


@shapes
def test_mlp_product_norms_are_those_of_the_big_products(shape: tuple[int, ...]) -> None:
    mlp = mlp_of(block(shape))
    right = np.linalg.norm(mlp.W_in.numpy() @ mlp.W_out.numpy())
    assert w_in_w_out_frobenius(mlp) == pytest.approx(right, rel=FLOAT64.product)
    found = float(product_frobenius(mlp.W_in, mlp.W_out))
    assert found == pytest.approx(right, rel=FLOAT64.product)


@shapes
def test_eigenvalue_signs_are_those_of_the_big_products(shape: tuple[int, ...]) -> None:
    attention = attention_of(block(shape))
    eigenvalues = [np.linalg.eigvals(product) for product in big_ov(attention)]
    right = [e.sum().real / np.abs(e).sum() for e in eigenvalues]
    assert ov_eigenvalue_sign(attention).numpy() == pytest.approx(right, abs=1e-9)


def head(factor: Tensor) -> AttentionWeights:
    """One head of width 4 that writes ``factor`` of what it reads, in its own space."""
    space = torch.linalg.qr(random(20, 4, seed=3)).Q
    nothing = torch.zeros(1, 20, 4, dtype=torch.float64)
    return AttentionWeights(nothing, nothing, space[None], (factor @ space.mT)[None])


@pytest.mark.parametrize(
    ("factor", "sign"),
    [
        (torch.eye(4), 1.0),
        (0.01 * torch.eye(4), 1.0),
        (-torch.eye(4), -1.0),
        (torch.diag(torch.tensor([1.0, 1.0, 1.0, -1.0])), 0.5),
        (torch.tensor([[0.0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 2], [0, 0, -2, 0]]), 0.0),
        (torch.zeros(4, 4), 0.0),
    ],
    ids=["copies", "copies a little", "erases", "three of four", "turns", "does nothing"],
)
def test_the_sign_of_constructed_heads(factor: Tensor, sign: float) -> None:
    """The eigenvalues of such a head are those of ``factor``, and zeros."""
    found = ov_eigenvalue_sign(head(factor.double()))
    assert found.item() == pytest.approx(sign, abs=1e-12)


@pytest.mark.parametrize("gated", [False, True])
def test_neuron_cosines(gated: bool) -> None:
    """Neuron by neuron, of the gate's weights where there is a gate."""
    mlp = mlp_of(block(SHAPES[0], gated=gated))
    mlp.W_out[3] = -5 * (mlp.W_gate if mlp.W_gate is not None else mlp.W_in)[:, 3]
    reading = (mlp.W_gate if mlp.W_gate is not None else mlp.W_in).numpy()
    writing = mlp.W_out.numpy()
    right = [
        reading[:, i] @ writing[i] / np.linalg.norm(reading[:, i]) / np.linalg.norm(writing[i])
        for i in range(len(writing))
    ]
    assert neuron_cosine(mlp).numpy() == pytest.approx(right, abs=1e-12)
    assert right[3] == pytest.approx(-1.0)


def columns(heads: Tensor) -> list[Any]:
    return list(heads.numpy())


def virtual_by_hand(layers: list[LayerWeights], parallel: bool) -> Any:
    """Every product of a write and a later read, multiplied out."""
    writers, readers = [], []
    for layer in layers:
        attention, mlp = attention_of(layer), mlp_of(layer)
        writers += [np.concatenate(columns(attention.W_O)), mlp.W_out.numpy()]
        heads = (attention.W_Q, attention.W_K, attention.W_V)
        readers.append(np.concatenate([m for w in heads for m in columns(w)], axis=1))
        gate = [] if mlp.W_gate is None else [mlp.W_gate.numpy()]
        readers.append(np.concatenate([mlp.W_in.numpy(), *gate], axis=1))
    scores = np.full((len(writers), len(readers)), np.nan)
    for i, a in enumerate(writers):
        for j, b in enumerate(readers):
            if j // 2 > i // 2 or (j == i + 1 and i % 2 == 0 and not parallel):
                chance = np.linalg.norm(a) * np.linalg.norm(b) / np.sqrt(a.shape[1])
                scores[i, j] = np.linalg.norm(a @ b) / chance
    return scores


def some_layers(shape: tuple[int, ...], n: int = 4, gated: bool = False) -> list[LayerWeights]:
    return [block(shape, seed=10 * n, gated=gated) for n in range(n)]


@pytest.mark.parametrize("parallel", [False, True], ids=["sequential", "parallel"])
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@shapes
def test_virtual_weights_are_those_of_the_big_products(
    shape: tuple[int, ...], gated: bool, parallel: bool
) -> None:
    """NaN, too, exactly where a read is not later."""
    layers = some_layers(shape, gated=gated)
    found = virtual_weights(layers.__getitem__, len(layers), parallel)
    right = virtual_by_hand(layers, parallel)
    assert np.array_equal(np.isnan(found), np.isnan(right))
    assert found == pytest.approx(right, rel=FLOAT64.product, nan_ok=True)


def test_virtual_weights_do_not_depend_on_how_many_are_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layers = some_layers(SHAPES[1])
    tables = []
    for room in (1, 2, 3, 5, 100):
        monkeypatch.setattr(virtual, "_room", lambda weights, room=room: room)
        tables.append(virtual_weights(layers.__getitem__, len(layers), False))
    for table in tables[1:]:
        assert np.array_equal(table, tables[0], equal_nan=True)


@pytest.mark.parametrize("centred", [False, True])
def test_virtual_weights_of_random_matrices_are_at_chance(centred: bool) -> None:
    """Gaussian matrices have no direction of their own: the square's expectation is exactly
    1, ``d tr(I/d I/d)``. Every repeat is one independent draw of its mean over pairs."""
    squares = []
    for repeat in range(60):
        layers = [block((16, 2, 2, 4, 24), seed=100 * repeat + 10 * n) for n in range(3)]
        if centred:
            layers = [fold(layer, None, None, centre=True) for layer in layers]
        scores = virtual_weights(layers.__getitem__, 3, False, centred=centred)
        squares.append(np.nanmean(scores**2))
    error = np.std(squares, ddof=1) / np.sqrt(len(squares))
    assert error < 0.01
    assert abs(np.mean(squares) - 1) < 4 * error


@BOTH_BACKENDS
@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_virtual_weights_of_a_model_are_those_of_its_canonical_weights(
    family: str, backend: str, tiny: Tiny
) -> None:
    """GPT-2's and GPT-NeoX's have mean zero and share 47 of 48 dimensions."""
    opened = open_backend(load(ModelSpec(str(tiny(family))).with_options(backend=backend)))
    found = folded_statistics(opened, ["virtual_weights"])["virtual_weights"].values
    layers = [canonical(opened, n) for n in range(LAYERS)]
    chance = 1.0 if family == "llama" else (47 / 48) ** 0.5
    right = chance * virtual_by_hand(layers, parallel=family == "neox")
    assert found == pytest.approx(right, rel=FLOAT32.token, nan_ok=True)


def test_a_reader_of_just_what_was_written_is_far_above_chance() -> None:
    """One direction of d: written by all sources and read by all targets, sqrt(d); read by
    none, 0."""
    d = 16
    one = torch.zeros(d, dtype=torch.float64)
    one[2] = 1
    other = one.roll(1)

    def layer(n: int) -> LayerWeights:
        write = one if n == 0 else other
        read = one[:, None].expand(2, d, 3)
        attention = AttentionWeights(read, read, read, write.expand(2, 3, d))
        return LayerWeights(attention, MLPWeights(one[:, None].expand(d, 5), write.expand(5, d)))

    scores = virtual_weights(layer, 3, False)
    assert scores[0, 1:] == pytest.approx(np.full(5, np.sqrt(d)))
    assert scores[2, 3:] == pytest.approx(np.zeros(3))


def test_matrices_are_the_heads_side_by_side_or_stacked() -> None:
    """As the products of a vector with each head show: |xW|^2 is the sum over heads."""
    layer = block(SHAPES[1], gated=True)
    attention, mlp = attention_of(layer), mlp_of(layer)
    x, z = random(40, seed=7).numpy(), random(30, seed=8).numpy()
    for name in ("W_Q", "W_K", "W_V"):
        found = matrix(layer, name)
        assert found is not None
        right = sum(np.sum((x @ head) ** 2) for head in columns(getattr(attention, name)))
        assert np.sum((x @ found.numpy()) ** 2) == pytest.approx(right)
    stacked = matrix(layer, "W_O")
    assert stacked is not None
    heads = zip(z.reshape(6, 5), columns(attention.W_O), strict=True)
    assert z @ stacked.numpy() == pytest.approx(sum(part @ head for part, head in heads))
    for name in ("W_in", "W_gate", "W_out"):
        assert matrix(layer, name) is getattr(mlp, name)
    assert matrix(LayerWeights(None, None), "W_O") is None


@shapes
def test_attention_on_vectors_is_the_sum_of_the_big_products(shape: tuple[int, ...]) -> None:
    attention = attention_of(block(shape))
    x = random(11, shape[0], seed=9)
    right = sum(x.numpy() @ product for product in big_ov(attention))
    found = attention_on_gaussian(attention, x).numpy()
    assert np.linalg.norm(found - right) <= FLOAT64.product * np.linalg.norm(right)


def _gpt2(block: Any, x: Tensor) -> Any:
    return block.attn.c_proj(block.attn.c_attn(x).chunk(3, dim=-1)[2])


def _neox(block: Any, x: Tensor) -> Any:
    packed = block.attention.query_key_value(x)
    values = packed.view(*x.shape[:-1], 4, 3, -1)[..., 2, :].flatten(-2)
    return block.attention.dense(values)


def _llama(block: Any, x: Tensor) -> Any:
    values = block.self_attn.v_proj(x).unflatten(-1, (2, -1))
    return block.self_attn.o_proj(values.repeat_interleave(2, dim=-2).flatten(-2))


Attention = Callable[[Any, Tensor], Any]
# family: blocks, first norm, what attention makes of a vector that all its heads read
BY_HAND: dict[str, tuple[str, str, Attention]] = {
    "gpt2": ("transformer.h", "ln_1", _gpt2),
    "neox": ("gpt_neox.layers", "input_layernorm", _neox),
    "llama": ("model.layers", "input_layernorm", _llama),
    "gemma2": ("model.layers", "input_layernorm", _llama),
    "granite": ("model.layers", "input_layernorm", _llama),
}


@BOTH_BACKENDS
@pytest.mark.parametrize("family", BY_HAND)
@torch.no_grad()
def test_attention_on_gaussian_inputs_is_what_the_plain_modules_make(
    family: str, backend: str, tiny: Tiny
) -> None:
    """A head whose pattern rests on one token passes on that token's value. What the modules
    make of zeros, by their biases, is subtracted."""
    path, norm, attend = BY_HAND[family]
    model = load_double(tiny(family))
    columns = []
    for layer in model.get_submodule(path):
        x = random(256, 48, seed=1)
        first = layer.get_submodule(norm)
        if family in ("gpt2", "neox"):
            x = x - x.mean(dim=-1, keepdim=True)
        x = x / x.square().mean(dim=-1, keepdim=True).sqrt()
        gain = 1 + first.weight if family == "gemma2" else first.weight
        written = attend(layer, x * gain) - attend(layer, torch.zeros_like(x))
        if family == "gemma2":
            written = layer.post_attention_layernorm(written)
        if family == "granite":
            written = 0.3 * written  # the multiplier in tiny.FAMILIES
        if family in ("gpt2", "neox"):
            written = written - written.mean(dim=-1, keepdim=True)
        columns.append(written.norm(dim=-1).numpy())
    opened = open_backend(load(ModelSpec(str(tiny(family))).with_options(backend=backend)))
    found = folded_statistics(opened, ["ov_random_norm"])["ov_random_norm"]
    assert found.dims == ("draw", "layer")
    assert found.values == pytest.approx(np.stack(columns, axis=-1), rel=FLOAT32.token)


def test_norms_of_stored_weights_are_those_of_the_plain_modules(tiny: Tiny) -> None:
    opened = open_backend(load(ModelSpec(str(tiny("llama"))).with_options(backend="transformers")))
    found = raw_statistics(opened, [f"{name}_frobenius_raw" for name in MATRICES])
    modules = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj", "down_proj")
    for layer, block in enumerate(load_double(tiny("llama")).model.layers):
        for name, module in zip(MATRICES, modules, strict=True):
            part = block.self_attn if hasattr(block.self_attn, module) else block.mlp
            right = np.linalg.norm(getattr(part, module).weight.detach().numpy())
            values = found[f"{name}_frobenius_raw"].values
            assert values.shape == (LAYERS,)
            assert values[layer] == pytest.approx(right, rel=FLOAT32.token), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stored_heads_are_multiplied_out_in_float32_at_least(dtype: str, tiny: Tiny) -> None:
    """Llama's heads one by one, two queries to a value; the weights rounded as they are loaded."""
    spec = ModelSpec(str(tiny("llama"))).with_options(backend="transformers", dtype=dtype)
    found = raw_statistics(open_backend(load(spec)), ["ov_frobenius_raw"])["ov_frobenius_raw"]
    for layer, block in enumerate(load_double(tiny("llama")).model.layers):
        rounded = (w.weight.detach().to(getattr(torch, dtype)).double() for w in
                   (block.self_attn.v_proj, block.self_attn.o_proj))  # fmt: skip
        values, output = (w.numpy() for w in rounded)
        for head in range(4):
            value = values[12 * (head // 2) : 12 * (head // 2 + 1)]
            right = np.linalg.norm(output[:, 12 * head : 12 * (head + 1)] @ value)
            assert found.values[head, layer] == pytest.approx(right, rel=FLOAT32.token)


@BOTH_BACKENDS
def test_norms_of_folded_weights_and_biases(backend: str, tiny: Tiny) -> None:
    """GPT-2's matrices by hand: gains and biases of the norms in what reads through them,
    columns of mean zero there and rows of mean zero in what writes."""
    names = ["W_in_frobenius", "W_out_frobenius", "W_K_frobenius", "b_O_norm"]
    names += ["b_in_W_out_norm", "b_out_norm"]
    opened = open_backend(load(ModelSpec(str(tiny("gpt2"))).with_options(backend=backend)))
    found = folded_statistics(opened, names)
    assert found.keys() == set(names)
    for n, block in enumerate(load_double(tiny("gpt2")).transformer.h):
        p = {name: value.detach().numpy() for name, value in block.named_parameters()}
        keys, values = (p["attn.c_attn.weight"][:, 48 * i : 48 * (i + 1)] for i in (1, 2))
        into = p["ln_2.weight"][:, None] * p["mlp.c_fc.weight"]
        keys = p["ln_1.weight"][:, None] * keys
        writes = p["mlp.c_proj.weight"] - p["mlp.c_proj.weight"].mean(axis=1, keepdims=True)
        b_v = p["attn.c_attn.bias"][96:] + p["ln_1.bias"] @ values
        b_o = p["attn.c_proj.bias"] + b_v @ p["attn.c_proj.weight"]
        b_in = p["mlp.c_fc.bias"] + p["ln_2.bias"] @ p["mlp.c_fc.weight"]
        right = {
            "W_in_frobenius": into - into.mean(axis=0),
            "W_K_frobenius": keys - keys.mean(axis=0),
            "W_out_frobenius": writes,
            "b_O_norm": b_o - b_o.mean(),
            "b_in_W_out_norm": b_in @ writes,
            "b_out_norm": p["mlp.c_proj.bias"] - p["mlp.c_proj.bias"].mean(),
        }
        for name, expected in right.items():
            size = np.linalg.norm(expected)
            assert found[name].values[n] == pytest.approx(size, rel=FLOAT32.token), name
