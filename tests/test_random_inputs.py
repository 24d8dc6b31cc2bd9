"""What MLPs make of drawn inputs, against the plain modules fed by hand in float64.

Every draw is made here again from its seed; the plain model's own norm module normalises
it, gain and bias included, and its own modules make of it what they make.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import BOS, LAYERS, Tiny, load_double, tokenizer
from torch import Tensor

from residcheck.corpus import Prompts, shipped
from residcheck.curves import Run
from residcheck.measure import measure
from residcheck.models import ModelSpec
from residcheck.tolerances import tolerance
from residcheck.weights.gaussian import squared_ratios

both_backends = pytest.mark.parametrize("backend", ["transformer_lens", "transformers"])
FLOAT32 = tolerance("float32")
DRAWS, D, MAX_TOKENS = 256, 48, 24
TEXTS = ("a", "One.", *shipped().texts[10:14], "A few words more.")
NORM = "mlp_random_norm"
RATES = tuple(f"activation_rate_{kind}" for kind in ("random", "resampled", "shuffled"))


@dataclass(frozen=True)
class Where:
    """Names in the plain model: blocks, the norm before the MLP, the hidden layer (the
    gate's, where there is one), what comes after the MLP."""

    blocks: str
    norm: str
    hidden: str
    mlp: str = "mlp"
    post_norm: str | None = None
    scale: float = 1.0
    centred: bool = False


_AFTER, _GATE = "post_attention_layernorm", "mlp.gate_proj"
WHERE = {
    "gpt2": Where("transformer.h", "ln_2", "mlp.c_fc", centred=True),
    "gptj": Where("transformer.h", "ln_1", "mlp.fc_in", centred=True),
    "cohere": Where("model.layers", "input_layernorm", _GATE, centred=True),
    "neox": Where("gpt_neox.layers", _AFTER, "mlp.dense_h_to_4h", centred=True),
    "neox_sequential": Where("gpt_neox.layers", _AFTER, "mlp.dense_h_to_4h", centred=True),
    "opt": Where("model.decoder.layers", "final_layer_norm", "fc1", mlp="", centred=True),
    "llama": Where("model.layers", _AFTER, _GATE),
    "gemma2": Where(
        "model.layers", "pre_feedforward_layernorm", _GATE, post_norm="post_feedforward_layernorm"
    ),
    "granite": Where("model.layers", _AFTER, _GATE, scale=0.3),  # the multiplier in tiny.FAMILIES
    "mixtral": Where("model.layers", _AFTER, ""),
}
families = pytest.mark.parametrize("family", WHERE)


def ids_of(text: str) -> list[int]:
    return [BOS, *tokenizer()(text, add_special_tokens=False)["input_ids"]][:MAX_TOKENS]


def measured(folder: Path, backend: str, **options: Any) -> Run:
    spec = ModelSpec(str(folder)).with_options(backend=backend)
    given: dict[str, Any] = {"max_tokens": MAX_TOKENS, "names": (NORM, *RATES)} | options
    return measure(spec, Prompts("some", TEXTS), **given)


class ByHand:
    """One family's plain model in float64."""

    def __init__(self, family: str, folder: Path) -> None:
        self.where, self.family = WHERE[family], family
        self.model = load_double(folder)
        if family == "mixtral":  # its faster kernels do not know float64
            self.model.set_experts_implementation("eager")
        self.blocks = list(self.model.get_submodule(self.where.blocks))

    @torch.no_grad()
    def rate(self, layer: int, x: Tensor) -> Any:
        block = self.blocks[layer]
        read = block.get_submodule(self.where.norm)(x)
        return (block.get_submodule(self.where.hidden)(read) > 0).double().mean(-1).numpy()

    @torch.no_grad()
    def norm(self, layer: int, x: Tensor) -> Any:
        block = self.blocks[layer]
        read = block.get_submodule(self.where.norm)(x)
        if self.where.mlp:
            made = block.get_submodule(self.where.mlp)(read[None])[0]
        else:  # OPT has no MLP module
            made = block.fc2(block.activation_fn(block.fc1(read)))
        if self.where.post_norm:
            made = block.get_submodule(self.where.post_norm)(made)
        made = self.where.scale * made
        if self.where.centred:
            made = made - made.mean(-1, keepdim=True)
        return made.norm(dim=-1).numpy()

    @torch.no_grad()
    def streams(self) -> list[Tensor]:
        """What each MLP's norm takes in at positions 1 to 6 of the prompts, one after another:
        the stream after attention, or before it in a parallel block. Under LayerNorm only
        what is left without the mean is the stream: it matters where coordinates mix."""
        found: list[list[Tensor]] = [[] for _ in self.blocks]
        for layer, block in enumerate(self.blocks):
            norm = block.get_submodule(self.where.norm)
            rows = found[layer]
            norm.register_forward_pre_hook(lambda m, args, rows=rows: rows.append(args[0]))
        for text in TEXTS:
            self.model(torch.tensor([ids_of(text)]), use_cache=False)
        streams = [torch.cat([x.reshape(-1, D)[1:7] for x in rows]) for rows in found]
        centred = self.where.centred
        return [x - x.mean(-1, keepdim=True) if centred else x for x in streams]


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian() -> Tensor:
    return torch.randn(DRAWS, D, generator=drawn(1)).double()


def assert_rates(found: Any, right: Any, neurons: int) -> None:
    """A neuron within rounding of zero may fall on either side of it."""
    off = np.abs(found - right) * neurons
    assert off.max() <= 1.01
    assert (off > 0.5).mean() < 0.002


@both_backends
@families
def test_gaussian_inputs_are_fed_as_to_the_plain_modules(
    family: str, backend: str, tiny: Tiny
) -> None:
    run, hand = measured(tiny(family), backend), ByHand(family, tiny(family))
    assert run[NORM].dims == ("draw", "layer")
    assert run[NORM].values.shape == (DRAWS, LAYERS)
    for layer in range(LAYERS):
        right = hand.norm(layer, gaussian())
        assert run[NORM].values[:, layer] == pytest.approx(right, rel=FLOAT32.token)
        if family != "mixtral":
            found = run["activation_rate_random"].values[:, layer]
            assert_rates(found, hand.rate(layer, gaussian()), run.model.d_mlp or 0)


@both_backends
@pytest.mark.parametrize("family", [name for name in WHERE if name != "mixtral"])
def test_resampled_vectors_are_real_streams_of_their_layer(
    family: str, backend: str, tiny: Tiny
) -> None:
    """Positions 1 to 6 of every prompt, and of a prompt of two tokens its only one; shuffled,
    each coordinate is from a row of its own."""
    run, hand = measured(tiny(family), backend), ByHand(family, tiny(family))
    streams = hand.streams()
    n = sum(min(6, len(ids_of(text)) - 1) for text in TEXTS)
    assert {len(x) for x in streams} == {n}
    rows = torch.randint(n, (DRAWS,), generator=drawn(2))
    cells = torch.randint(n, (DRAWS, D), generator=drawn(3))
    for layer, real in enumerate(streams):
        inputs = {"resampled": real[rows], "shuffled": real.gather(0, cells)}
        for kind, x in inputs.items():
            found = run[f"activation_rate_{kind}"]
            assert found.values.shape == (DRAWS, LAYERS)
            right = hand.rate(layer, x)
            assert_rates(found.values[:, layer], right, run.model.d_mlp or 0)


@pytest.mark.parametrize("family", ["gpt2", "neox"])
def test_a_resampled_rate_is_one_that_a_real_pass_has(family: str, tiny: Tiny) -> None:
    """Each draw's rate is that of some token of the first seven positions in the pass."""
    names = (NORM, *RATES, "activation_rate")
    run = measured(tiny(family), "transformers", names=names)
    real, found = (run[name].values for name in ("activation_rate", "activation_rate_resampled"))
    for layer in range(LAYERS):
        there = real[:, 1:7, layer]
        distance = np.abs(found[:, None, layer] - there[np.isfinite(there)]).min(axis=1)
        assert distance.max() <= 1.01 / (run.model.d_mlp or 1)
        assert (distance > 1e-6).mean() < 0.01


@pytest.mark.parametrize("family", ["gpt2", "cohere", "gemma2"])
def test_both_backends_and_two_runs_give_the_same(family: str, tiny: Tiny) -> None:
    plain, again, lens = (
        measured(tiny(family), backend)
        for backend in ("transformers", "transformers", "transformer_lens")
    )
    assert set(plain.curves) == set(lens.curves) == {NORM, *RATES}
    for name, curve in plain.curves.items():
        assert np.array_equal(curve.values, again[name].values)
    assert lens[NORM].values == pytest.approx(plain[NORM].values, rel=FLOAT32.token)
    for name in RATES:
        assert_rates(lens[name].values, plain[name].values, plain.model.d_mlp or 0)


def test_gaussian_draws_do_not_depend_on_the_prompts(tiny: Tiny) -> None:
    one = measured(tiny("llama"), "transformers")
    spec = ModelSpec(str(tiny("llama"))).with_options(backend="transformers")
    other = measure(spec, Prompts("other", TEXTS[3:]), max_tokens=9, names=(NORM, *RATES))
    assert other[NORM].values == pytest.approx(one[NORM].values, rel=FLOAT32.token)
    assert not np.allclose(other[RATES[1]].values, one[RATES[1]].values)


@both_backends
def test_a_mixture_of_experts_has_norms_and_no_rates(backend: str, tiny: Tiny) -> None:
    run = measured(tiny("mixtral"), backend)
    assert set(run.curves) == {NORM}
    for name in RATES:
        assert "mixture of experts" in run.model.missing[name]


def sphere_mean(w: Any) -> float:
    """Mean of |xw|^2 over x = sqrt(d) e, e an orthonormal basis of the vectors of mean 0:
    as that of the uniform distribution on their sphere, whose second moments are alike."""
    d = len(w)
    basis = np.linalg.svd(np.ones((1, d)))[2][1:]
    return float(np.mean(np.sum((np.sqrt(d) * basis @ w) ** 2, axis=1)))


KINDS = ("Gaussian", "normalised")


@pytest.mark.parametrize("kind", KINDS)
def test_squared_ratios_are_the_draws_over_their_expectation(kind: str) -> None:
    """Draw by draw with numpy."""
    w = 2 + torch.randn(40, 30, generator=drawn(5)).double()
    found = squared_ratios(w, 50)[KINDS.index(kind)].numpy()
    x, table = torch.randn(50, 40, generator=drawn(1)).double().numpy(), w.numpy()
    expected = np.sum(table**2)
    if kind == "normalised":
        x = (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True)
        expected = sphere_mean(table)
    assert found == pytest.approx(np.sum((x @ table) ** 2, axis=1) / expected, rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("constant", [0.0, 3.0])
@pytest.mark.parametrize("shape", [(64, 200), (64, 16), (200, 64)], ids=str)
def test_squared_ratios_have_mean_one(shape: tuple[int, int], constant: float, kind: str) -> None:
    """With a constant added, vectors of mean zero see next to nothing of the norm: without
    that in the expectation the mean would be near 0.1."""
    w = constant + torch.randn(shape, generator=drawn(6))
    ratios = squared_ratios(w, 2000)[KINDS.index(kind)].numpy()
    error = ratios.std(ddof=1) / np.sqrt(len(ratios))
    assert abs(ratios.mean() - 1) < 4 * error
    if constant:
        table = w.double().numpy()
        assert sphere_mean(table) < 0.12 * np.sum(table**2)
