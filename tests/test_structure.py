"""What becomes of what was written, against all activations of one prompt in float64.

The plain model of transformers runs in float64 with two modules of each block watched:
the one that writes for the heads and the one that writes for the neurons. All else is
worked out here with numpy, from sums and differences of vectors.
"""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import DEFAULT, Mock

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import BOS, LAYERS, Tiny, load_double, tokenizer
from torch import Tensor

from residcheck.backends import Taps
from residcheck.corpus import Prompts, shipped
from residcheck.curves import Run
from residcheck.measure import MeasurementInterrupted, measure, open_session, run_session
from residcheck.measure.structure import sampled_positions
from residcheck.models import ModelSpec
from residcheck.names import STRUCTURE
from residcheck.seeds import random_rotation
from residcheck.tolerances import tolerance

BACKENDS = ("transformer_lens", "transformers")
both_backends = pytest.mark.parametrize("backend", BACKENDS)
FLOAT32, FLOAT64 = tolerance("float32"), tolerance("float64")
MAX_TOKENS, D, HEADS = 24, 48, 4
# With 24 tokens a prompt, 16 of its 23 ordinary positions: 1 + 22 i / 15, rounded.
SAMPLED = [1, 2, 4, 5, 7, 8, 10, 11, 13, 14, 16, 17, 19, 20, 22, 23]
TEXTS = ("a", "One.", *shipped().texts[10:13], "A few words more.", shipped().texts[30])
PROMPTS = Prompts("some passages", TEXTS)
NAMES = tuple(STRUCTURE)


@dataclass(frozen=True)
class Where:
    """Names in the plain model: blocks, what writes for heads and for neurons, post-norms."""

    blocks: str
    heads: str
    neurons: str
    post_norms: tuple[str, str] | None = None
    scale: float = 1.0
    parallel: bool = False
    centred: bool = False


_LLAMA = ("model.layers", "self_attn.o_proj", "mlp.down_proj")
_SANDWICH = ("post_attention_layernorm", "post_feedforward_layernorm")
WHERE = {
    "gpt2": Where("transformer.h", "attn.c_proj", "mlp.c_proj", centred=True),
    "llama": Where(*_LLAMA),
    "neox": Where(
        "gpt_neox.layers", "attention.dense", "mlp.dense_4h_to_h", parallel=True, centred=True
    ),
    "gemma2": Where(*_LLAMA, post_norms=_SANDWICH),
    "granite": Where(*_LLAMA, scale=0.3),  # the multiplier in tiny.FAMILIES
    "glm4": Where(*_LLAMA, post_norms=("post_self_attn_layernorm", "post_mlp_layernorm")),
}
families = pytest.mark.parametrize("family", WHERE)


def ids_of(text: str) -> list[int]:
    return [BOS, *tokenizer()(text, add_special_tokens=False)["input_ids"]][:MAX_TOKENS]


LENGTHS = [len(ids_of(text)) for text in TEXTS]


def positions_of(length: int) -> list[int]:
    """The sampled ordinary positions; all of them where there are no more than 16."""
    if length == MAX_TOKENS:
        return SAMPLED
    assert length <= 17
    return list(range(1, length))


def measured(folder: Path, backend: str = "transformers", **options: Any) -> Run:
    spec = ModelSpec(str(folder)).with_options(backend=backend, **options.pop("spec", {}))
    given: dict[str, Any] = {"prompts": PROMPTS, "max_tokens": MAX_TOKENS, "names": NAMES}
    return measure(spec, **(given | options))


def vector(x: Tensor) -> Any:
    return x.detach().double().numpy()


class ByHand:
    """One prompt: streams, writes, and what every head and neuron adds, all of them kept."""

    def __init__(self, family: str, folder: Path, ids: list[int]) -> None:
        self.where = WHERE[family]
        model = load_double(folder)
        blocks = list(model.get_submodule(self.where.blocks))
        seen: dict[tuple[int, str], Tensor] = {}

        def keep(n: int, name: str) -> Any:
            return lambda module, args: seen.update({(n, name): args[0][0]})

        for n, block in enumerate(blocks):
            block.register_forward_pre_hook(keep(n, "stream"))
            for name in (self.where.heads, self.where.neurons):
                block.get_submodule(name).register_forward_pre_hook(keep(n, name))
        with torch.no_grad():
            model(torch.tensor([ids]), use_cache=False)
            self.stream = self._centred(seen[0, "stream"])
            self.writes = [self.stream]
            self.heads, self.neurons = [], []
            for n, block in enumerate(blocks):
                z, hidden = seen[n, self.where.heads], seen[n, self.where.neurons]
                if n:
                    entered = self._centred(seen[n, "stream"])
                    assert entered == pytest.approx(sum(self.writes), rel=1e-6, abs=1e-6)
                before = sum(self.writes)
                self.writes.append(self._whole(block, 0, z))
                self.heads.append(self._along(before, self._by_head(block, z)))
                before = before if self.where.parallel else sum(self.writes)
                self.writes.append(self._whole(block, 1, hidden))
                self.neurons.append(self._along(before, self._by_neuron(block, hidden)))
        self.entering = [sum(self.writes[: 1 + 2 * n]) for n in range(LAYERS)]
        self.leaving = [sum(self.writes[: 3 + 2 * n]) for n in range(LAYERS)]

    def _centred(self, x: Tensor) -> Any:
        found = vector(x)
        return found - found.mean(-1, keepdims=True) if self.where.centred else found

    def _whole(self, block: Any, part: int, x: Tensor) -> Any:
        """What a sublayer adds, by its own modules."""
        written = block.get_submodule((self.where.heads, self.where.neurons)[part])(x)
        if self.where.post_norms:
            written = block.get_submodule(self.where.post_norms[part])(written)
        return self._centred(self.where.scale * written)

    def _parts(self, block: Any, part: int, x: Tensor, parts: list[Any]) -> list[Any]:
        """What each part of what a sublayer writes adds: under a post-norm, at the scale that
        the norm gives to the whole, found from what comes out of it."""
        written = [vector(p) for p in parts]
        if self.where.post_norms:
            whole = block.get_submodule((self.where.heads, self.where.neurons)[part])(x)
            after = block.get_submodule(self.where.post_norms[part])(whole)
            written = [p * vector(after / whole) for p in written]
        return [self._centred(torch.from_numpy(self.where.scale * p)) for p in written]

    def _by_head(self, block: Any, z: Tensor) -> list[Any]:
        """Without the value biases: every pattern passes them on alike, as a constant."""
        module, z_without = block.get_submodule(self.where.heads), z - value_bias(block)
        apart = []
        for head in range(HEADS):
            alone, width = torch.zeros_like(z), z.shape[-1] // HEADS
            mine = slice(head * width, (head + 1) * width)
            alone[:, mine] = z_without[:, mine]
            apart.append(module(alone) - module(torch.zeros_like(z)))
        return self._parts(block, 0, z, apart)

    def _by_neuron(self, block: Any, hidden: Tensor) -> list[Any]:
        module = block.get_submodule(self.where.neurons)
        alone = torch.eye(hidden.shape[-1]).double()[:, None] * hidden
        apart = module(alone) - module(torch.zeros_like(hidden))
        return self._parts(block, 1, hidden, list(apart))

    def _along(self, stream: Any, parts: list[Any]) -> Any:
        """``[part, position]``: the share of the stream that each adds along it."""
        size = (stream**2).sum(-1)
        return np.stack([(part * stream).sum(-1) / size for part in parts])

    def quantities(self, chosen: list[int]) -> dict[str, Any]:
        n = len(self.writes)
        share, kept = np.full((n, LAYERS), np.nan), np.full((n, LAYERS), np.nan)
        removal = np.full(n, np.nan)
        for w, write in enumerate(self.writes):
            own = write[chosen]
            after = sum(self.writes[: w + 1])[chosen]
            for layer in range(-(-w // 2), LAYERS):
                stream = self.entering[layer][chosen]
                share[w, layer] = np.mean(size(own) / size(stream))
                added = ((stream - after) * own).sum(-1)
                kept[w, layer] = 1 + added.sum() / (own**2).sum()
            cosines = [
                (own * old[chosen]).sum(-1) / size(own) / size(old[chosen])
                for old in self.writes[:w]
            ]
            if cosines:
                table = np.stack(cosines)
                removal[w] = -table[table < 0].sum() / np.abs(table).sum()
        return {
            "write_share": share,
            "write_kept": kept,
            "write_removal": removal,
            "head_projection": np.stack(self.heads, -1)[:, chosen].mean(axis=1),
            "neuron_projection": np.stack(self.neurons, -1)[:, chosen].mean(axis=1),
        }


def size(x: Any) -> Any:
    return np.sqrt((x**2).sum(-1))


def value_bias(block: Any) -> Any:
    """What values are of a vector that the first norm makes of a constant: a LayerNorm's
    bias. Of all heads side by side; grouped values are repeated."""
    if hasattr(block, "attn"):
        return block.attn.c_attn(block.ln_1.bias)[2 * D :]
    if hasattr(block, "attention"):
        packed = block.attention.query_key_value(block.input_layernorm.bias)
        return packed.view(HEADS, 3, -1)[:, 2].flatten()
    bias = block.self_attn.v_proj.bias
    return 0 if bias is None else bias.view(2, -1).repeat_interleave(2, dim=0).flatten()


@both_backends
@families
def test_every_quantity_is_that_of_the_hand_computation(
    family: str, backend: str, tiny: Tiny
) -> None:
    run = measured(tiny(family), backend)
    neurons = []
    for prompt, text in enumerate(TEXTS):
        ids = ids_of(text)
        right = ByHand(family, tiny(family), ids).quantities(positions_of(len(ids)))
        neurons.append(right.pop("neuron_projection"))
        for name, expected in right.items():
            found = run[name].values[prompt]
            assert found.shape == expected.shape, name
            close = pytest.approx(expected, rel=FLOAT32.token, abs=FLOAT32.curve, nan_ok=True)
            assert found == close, (name, prompt)
    mean, error = np.mean(neurons, axis=0), np.std(neurons, axis=0, ddof=1) / np.sqrt(len(TEXTS))
    assert run["neuron_projection"].values == pytest.approx(mean, rel=FLOAT32.token, abs=1e-6)
    assert run["neuron_projection_error"].values == pytest.approx(error, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("family", [f for f in WHERE if f != "glm4"])
def test_heads_and_bias_together_are_what_attention_adds(family: str, tiny: Tiny) -> None:
    """Their projections on the stream: of all heads, and of what the modules write of a
    constant. (GLM 4 has biases before a post-norm, whose share the hand computation of
    every head has.)"""
    run = measured(tiny(family))
    for prompt, text in enumerate(TEXTS):
        hand = ByHand(family, tiny(family), ids_of(text))
        blocks = load_double(tiny(family)).get_submodule(hand.where.blocks)
        chosen = positions_of(LENGTHS[prompt])
        for n, block in enumerate(blocks):
            stream, attn = hand.entering[n], hand.writes[1 + 2 * n]
            values = torch.zeros(1, D).double() + value_bias(block)
            rest = hand._centred(block.get_submodule(hand.where.heads)(values))
            along = ((attn - rest) * stream).sum(-1) / (stream**2).sum(-1)
            found = run["head_projection"].values[prompt, :, n].sum()
            assert found == pytest.approx(along[chosen].mean(), abs=FLOAT32.token)


@pytest.mark.parametrize("length", [2, 3, 16, 17, 18, 40, 128])
def test_sampled_positions_are_spread_over_the_ordinary_ones(length: int) -> None:
    index, valid = sampled_positions([length, 128], torch.device("cpu"))
    assert index.shape == valid.shape == (2, 17)
    chosen = index[0][valid[0]].tolist()
    assert chosen[0] == 0
    assert chosen == sorted(set(chosen))
    assert (chosen[1], chosen[-1]) == (1, length - 1)
    assert len(chosen) == 1 + min(16, length - 1)
    assert length == 2 or np.ptp(np.diff(chosen[1:])) <= 1


@both_backends
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_kurtosis_is_that_of_scipy(family: str, backend: str, tiny: Tiny) -> None:
    """At position 0 and the sampled ones; rotated by the QR of numpy, its signs fixed."""
    run = measured(tiny(family), backend)
    gaussian = torch.randn(D, D, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    q, r = np.linalg.qr(gaussian.numpy())
    rotation = q * np.sign(np.diagonal(r))
    for prompt, text in enumerate(TEXTS):
        hand = ByHand(family, tiny(family), ids_of(text))
        chosen = [0, *positions_of(LENGTHS[prompt])]
        streams = np.stack([stream[chosen] for stream in hand.leaving], axis=1)
        curves = {"resid_post_kurtosis": streams, "resid_post_kurtosis_rotated": streams @ rotation}
        for name, x in curves.items():
            found = run[name].values[prompt]
            right = stats.kurtosis(x, axis=-1, fisher=False)
            assert found[: len(chosen)] == pytest.approx(right, rel=FLOAT32.token), name
            assert np.isnan(found[len(chosen) :]).all()


def test_the_rotation_is_orthogonal_and_of_no_special_basis() -> None:
    rotation = random_rotation(64).numpy()
    assert rotation @ rotation.T == pytest.approx(np.eye(64), abs=1e-12)
    assert np.abs(rotation).max() < 6 / np.sqrt(64)


def test_a_float64_model_gives_float64_curves(tiny: Tiny) -> None:
    run = measured(tiny("gpt2"), spec={"dtype": "float64"})
    for prompt, text in enumerate(TEXTS):
        hand = ByHand("gpt2", tiny("gpt2"), ids_of(text))
        right = hand.quantities(positions_of(LENGTHS[prompt]))
        del right["neuron_projection"]
        for name, expected in right.items():
            assert run[name].values.dtype == np.float64
            close = pytest.approx(expected, rel=FLOAT64.token, abs=FLOAT64.token, nan_ok=True)
            assert run[name].values[prompt] == close, name


@both_backends
@pytest.mark.parametrize("limit", [2, 3])
def test_prompts_of_two_and_three_tokens(limit: int, backend: str, tiny: Tiny) -> None:
    run = measured(tiny("neox"), backend, max_tokens=limit)
    for prompt, text in enumerate(TEXTS):
        ids = ids_of(text)[:limit]
        right = ByHand("neox", tiny("neox"), ids).quantities(list(range(1, len(ids))))
        del right["neuron_projection"]
        for name, expected in right.items():
            close = pytest.approx(expected, rel=FLOAT32.token, abs=FLOAT32.curve, nan_ok=True)
            assert run[name].values[prompt] == close, name


def test_one_prompt_has_means_of_neurons_and_no_errors(tiny: Tiny) -> None:
    run = measured(tiny("llama"), prompts=Prompts("one", TEXTS[2:3]))
    assert np.isfinite(run["neuron_projection"].values).all()
    assert np.isnan(run["neuron_projection_error"].values).all()


@both_backends
def test_a_prompt_gives_the_same_alone_and_in_any_batch(backend: str, tiny: Tiny) -> None:
    spec = ModelSpec(str(tiny("gemma2"))).with_options(backend=backend)
    session = open_session(spec, PROMPTS, MAX_TOKENS)
    alone, pairs = (run_session(session, NAMES, batch_size) for batch_size in (1, 3))
    for name, curve in alone.curves.items():
        close = pytest.approx(curve.values, rel=FLOAT32.token, abs=FLOAT32.curve, nan_ok=True)
        assert pairs[name].values == close, name


def test_a_pass_cut_short_keeps_the_prompts_that_were_done(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModelSpec(str(tiny("llama"))).with_options(backend="transformers")
    done = sorted(sorted(range(len(TEXTS)), key=lambda i: -LENGTHS[i])[:4])  # the longest first
    whole = run_session(open_session(spec, PROMPTS, MAX_TOKENS), NAMES, batch_size=2)
    those = Prompts("done", tuple(TEXTS[i] for i in done))
    alone = run_session(open_session(spec, those, MAX_TOKENS), NAMES, batch_size=2)
    session = open_session(spec, PROMPTS, MAX_TOKENS)
    effects = [DEFAULT, DEFAULT, KeyboardInterrupt]
    forward = Mock(wraps=session.backend.forward, side_effect=effects)
    monkeypatch.setattr(session.backend, "forward", forward)
    with pytest.raises(MeasurementInterrupted) as caught:
        run_session(session, NAMES, batch_size=2)
    run = caught.value.run
    assert run is not None
    assert (run.complete, run.prompts.count) == (False, 4)
    assert run.curves.keys() == whole.curves.keys()
    for name, curve in run.curves.items():
        per_prompt = curve.dims[0] == "prompt"  # of neurons: over the prompts that were done
        right = whole[name].values[done] if per_prompt else alone[name].values
        assert curve.values == pytest.approx(right, rel=FLOAT32.token, abs=1e-6, nan_ok=True), name


@both_backends
def test_no_whole_tensor_outlives_its_tap(
    backend: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recorder holds rows of sampled positions until the pass ends, and nothing else."""
    spec = ModelSpec(str(tiny("llama"))).with_options(backend=backend)
    session = open_session(spec, PROMPTS, MAX_TOKENS)
    forward, seen, alive = session.backend.forward, [], []

    def watched(tokens: Tensor, mask: Tensor, taps: Taps, *, logits: bool) -> Tensor | None:
        def watch(tap: Any) -> Any:
            def note(x: Tensor) -> Any:
                seen.append(weakref.ref(x.untyped_storage()))
                alive.append(sum(ref() is not None for ref in seen))
                return tap(x)

            return note

        return forward(tokens, mask, {w: watch(t) for w, t in taps.items()}, logits=logits)

    monkeypatch.setattr(session.backend, "forward", watched)
    run_session(session, NAMES, batch_size=4)
    gc.collect()
    assert len(seen) == 2 * LAYERS * 7  # batches, layers, sites
    assert sum(ref() is not None for ref in seen) == 0
    assert max(alive) <= 7  # the sites of one block; not one more for each layer or batch
