"""What the viewer shows is what plain transformers computes in float64, by hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import BOS, LAYERS, Tiny, layers_by_hand, load_double, tokenizer

from residcheck.corpus import shipped
from residcheck.models import ModelSpec
from residcheck.view.layers import EMBED
from residcheck.view.viewing import View, view

TEXT = "The miller counted his sacks: 12, then 13.\n“Café”, she said 🙂."
HEADS, D_HEAD, WIDTH = 4, 12, 48
LAYER_NORM = ("gpt2", "neox")
BOUND = 2e-5  # of the largest value: float32 over a few layers
both_backends = pytest.mark.parametrize("backend", ["transformer_lens", "transformers"])
families = pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])


def seen(tiny: Tiny, family: str, backend: str, direction: str, **options: Any) -> View:
    spec = ModelSpec(str(tiny(family)), backend=backend)
    return view(spec, TEXT, direction, **options)


@cache
def _model(folder: str) -> Any:
    return load_double(folder)


def by_hand(tiny: Tiny, family: str, text: str = TEXT, tokens: int = 10_000) -> list[Any]:
    ids = [BOS, *tokenizer()(text, add_special_tokens=False)["input_ids"]][:tokens]
    return layers_by_hand(_model(str(tiny(family))), ids)


def centred(family: str, x: np.ndarray) -> np.ndarray:
    return x - x.mean(-1, keepdims=True) if family in LAYER_NORM else x


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x)


def assert_values(found: View, family: str, streams: list[Any], vector: np.ndarray) -> None:
    """``found`` is the dot product and cosine of ``streams`` with the unit ``vector``."""
    rows = centred(family, np.stack([x.numpy() for x in streams]))
    dot = rows @ unit(centred(family, vector))
    assert found.values.dot.shape == dot.shape
    assert np.abs(found.values.dot - dot).max() < BOUND * np.abs(dot).max()
    cosine = dot / np.linalg.norm(rows, axis=-1)
    assert np.abs(found.values.cosine - cosine).max() < BOUND


def random_vector(folder: Path) -> tuple[str, np.ndarray]:
    vector = np.random.default_rng(5).normal(size=WIDTH) + 0.4
    np.save(folder / "v.npy", vector)
    return f"file:{folder / 'v.npy'}", vector


@both_backends
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "neox"])
def test_values_at_every_layer(tiny: Tiny, tmp_path: Path, family: str, backend: str) -> None:
    direction, vector = random_vector(tmp_path)
    found = seen(tiny, family, backend, direction)
    layers = by_hand(tiny, family)
    assert found.layers == (EMBED, *range(LAYERS))
    assert found.centred == (family in LAYER_NORM)
    assert_values(found, family, [layers[0].pre, *(x.post for x in layers)], vector)


@both_backends
@pytest.mark.parametrize(
    ("site", "part"),
    [("resid_pre", "pre"), ("resid_mid", "mid"), ("attn_out", "attn"), ("mlp_out", "mlp")],
)
def test_values_at_other_sites(
    tiny: Tiny, tmp_path: Path, backend: str, site: str, part: str
) -> None:
    direction, vector = random_vector(tmp_path)
    found = seen(tiny, "llama", backend, direction, site=site, layers="0,2")
    streams = [getattr(layer, part) for layer in by_hand(tiny, "llama")]
    assert found.layers == (0, 2)
    assert_values(found, "llama", [streams[0], streams[2]], vector)


def test_float64_model_is_seen_in_float64(tiny: Tiny, tmp_path: Path) -> None:
    direction, vector = random_vector(tmp_path)
    spec = ModelSpec(str(tiny("gpt2")), dtype="float64", backend="transformers")
    found = view(spec, TEXT, direction, layers="1-2")
    rows = centred("gpt2", np.stack([x.post.numpy() for x in by_hand(tiny, "gpt2")[1:]]))
    dot = rows @ unit(centred("gpt2", vector))
    assert np.abs(found.values.dot - dot).max() < 1e-12 * np.abs(dot).max()


def _gain(family: str, norm: Any) -> np.ndarray:
    weight = norm.weight.detach().numpy()
    return np.asarray(weight + 1 if family == "gemma3" else weight)


def _unembedding(family: str, model: Any) -> np.ndarray:
    norm = model.transformer.ln_f if family == "gpt2" else model.model.norm
    return np.asarray(model.lm_head.weight.detach().numpy() * _gain(family, norm))


def _block(family: str, model: Any, layer: int) -> Any:
    return (model.transformer.h if family == "gpt2" else model.model.layers)[layer]


def _head(family: str, model: Any, layer: int, head: int) -> np.ndarray:
    """W_V W_O of a head as one matrix, with all gains, and what LayerNorm takes away."""
    block = _block(family, model, layer)
    if family == "gpt2":
        columns = slice(2 * WIDTH + head * D_HEAD, 2 * WIDTH + (head + 1) * D_HEAD)
        reads = block.attn.c_attn.weight.detach().numpy()[:, columns]
        writes = block.attn.c_proj.weight.detach().numpy()[head * D_HEAD : (head + 1) * D_HEAD]
        gained = _gain(family, block.ln_1)[:, None] * reads
        return np.asarray((gained - gained.mean(0)) @ centred(family, writes))
    rows = slice(head // 2 * D_HEAD, (head // 2 + 1) * D_HEAD)
    reads = block.self_attn.v_proj.weight.detach().numpy()[rows].T
    columns = slice(head * D_HEAD, (head + 1) * D_HEAD)
    writes = block.self_attn.o_proj.weight.detach().numpy()[:, columns].T
    if family == "gemma3":
        writes = writes * _gain(family, block.post_attention_layernorm)
    return np.asarray(_gain(family, block.input_layernorm)[:, None] * reads @ writes)


def assert_direction(found: View, family: str, vector: np.ndarray) -> None:
    assert np.allclose(found.direction.vector, unit(centred(family, vector)), atol=BOUND)


@both_backends
@families
def test_token_and_difference(tiny: Tiny, family: str, backend: str) -> None:
    the, of = (tokenizer().convert_tokens_to_ids(word) for word in ("Ġthe", "Ġof"))
    rows = _unembedding(family, _model(str(tiny(family))))
    mean = rows.mean(0) if backend == "transformer_lens" else 0
    found = seen(tiny, family, backend, "token: the")
    assert "“␣the”" in found.direction.title
    assert any("mean over the vocabulary" in n for n in found.direction.notes) == (
        backend == "transformer_lens"
    )
    assert_direction(found, family, rows[the] - mean)
    assert_direction(seen(tiny, family, backend, "diff: the|of"), family, rows[the] - rows[of])


@both_backends
@families
def test_head(tiny: Tiny, family: str, backend: str) -> None:
    found = seen(tiny, family, backend, "head:1.3")
    matrix = _head(family, _model(str(tiny(family))), 1, 3)
    _, sizes, right = np.linalg.svd(matrix)
    vector = right[0] * np.sign(right[0][np.abs(right[0]).argmax()])
    assert_direction(found, family, vector)
    assert f"{sizes[0] ** 2 / (sizes**2).sum():.0%}" in found.direction.notes[0]
    assert found.direction.layer == 1


@both_backends
@families
def test_neuron(tiny: Tiny, family: str, backend: str) -> None:
    block = _block(family, _model(str(tiny(family))), 2)
    if family == "gpt2":
        vector = block.mlp.c_proj.weight.detach().numpy()[7]
    else:
        vector = block.mlp.down_proj.weight.detach().numpy()[:, 7]
    if family == "gemma3":
        vector = vector * _gain(family, block.post_feedforward_layernorm)
    assert_direction(seen(tiny, family, backend, "neuron:2.7"), family, vector)


@both_backends
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_principal_component(tiny: Tiny, family: str, backend: str) -> None:
    texts = shipped().texts
    streams = [by_hand(tiny, family, text, 128) for text in texts[:: len(texts) // 12][:12]]
    rows = centred(family, np.concatenate([layers[1].post.numpy()[1:] for layers in streams]))
    _, sizes, right = np.linalg.svd(rows - rows.mean(0))
    found = seen(tiny, family, backend, "pc:1.2")
    vector = right[1] * np.sign(right[1][np.abs(right[1]).argmax()])
    assert np.allclose(found.direction.vector, vector, atol=2e-4)
    assert f"{sizes[1] ** 2 / (sizes**2).sum():.1%} of the variance" in found.direction.notes[0]
    assert f"{len(rows):,} tokens" in found.direction.notes[0]


def _as_safetensors(path: Path, vector: np.ndarray) -> None:
    from safetensors.torch import save_file

    save_file({"v": torch.from_numpy(vector)[None]}, path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("v.npy", lambda path, vector: np.save(path, vector)),
        ("v.json", lambda path, vector: path.write_text(str(list(map(float, vector))))),
        ("v.txt", lambda path, vector: path.write_text("\n".join(map(repr, map(float, vector))))),
        ("v.csv", lambda path, vector: path.write_text(",".join(map(repr, map(float, vector))))),
        ("v.safetensors", _as_safetensors),
    ],
)
def test_every_kind_of_file(
    tiny: Tiny, tmp_path: Path, name: str, write: Callable[[Path, np.ndarray], None]
) -> None:
    vector = np.random.default_rng(6).normal(size=WIDTH)
    write(tmp_path / name, vector)
    found = seen(tiny, "llama", "transformers", f"file:{tmp_path / name}")
    assert_direction(found, "llama", vector)


def test_extremes_are_each_tokens_own(tiny: Tiny, tmp_path: Path) -> None:
    direction, _ = random_vector(tmp_path)
    found = seen(tiny, "llama", "transformers", direction)
    largest = found.extremes(4, largest=True)
    assert [one.dot for one in largest] == sorted((one.dot for one in largest), reverse=True)
    assert len({one.position for one in largest}) == 4
    assert largest[0].dot == found.values.dot[:, 1:].max()
    smallest = found.extremes(1, largest=False)[0]
    assert smallest.dot == found.values.dot[:, 1:].min()
    row = found.layers.index(smallest.layer)
    assert found.values.dot[row, smallest.position] == smallest.dot
    assert found.pieces[smallest.position].label == smallest.label
