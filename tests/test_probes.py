"""The experiments beside the pass: BOS, padding, and centring."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny import BOS, LAYERS, PAD, Tiny, layers_by_hand, load_double, tokenizer

from residcheck.backends import open_backend
from residcheck.claim import all_claims
from residcheck.corpus import Prompts, shipped
from residcheck.curves import Run
from residcheck.measure import measure
from residcheck.measure.probes import centring_probe, padding_probe
from residcheck.measure.tokens import encode
from residcheck.models import ModelSpec, load
from residcheck.stats import Outcome
from residcheck.tolerances import tolerance

BACKENDS = ("transformer_lens", "transformers")
both_backends = pytest.mark.parametrize("backend", BACKENDS)
FLOAT32 = tolerance("float32")
PROMPTS = Prompts("some passages", shipped().texts[10:14])
NAMES = ("bos_spread", "padding_spread", "centred_mean", "centring_logit_shift")
TOKENS, PADDING, PROMPTS_COMPARED = 8, 4, 3  # what the probe is documented to look at
# A mean of d terms, each rounded to a unit of the largest, is off by at most that unit; it
# is divided by the norm over the root of d, which the largest term may exceed that many times.
ROUNDINGS = 48**0.5
# Means of random streams are some hundredths of their norm; ten times less is still far
# above the 1e-7 of a centred stream.
UNCENTRED = 1e-3


def probed(tiny: Tiny, family: str, prompts: Prompts = PROMPTS, **options: Any) -> Run:
    spec = ModelSpec(str(tiny(family))).with_options(**options)
    return measure(spec, prompts, max_tokens=24, names=NAMES)


def compared_ids(prompts: Prompts = PROMPTS) -> list[list[int]]:
    texts = tokenizer()(list(prompts.texts), add_special_tokens=False)["input_ids"]
    return [[BOS, *ids][:TOKENS] for ids in texts][:PROMPTS_COMPARED]


def spreads_by_hand(tiny: Tiny, family: str) -> np.ndarray:
    """Largest distance from the first prompt's stream, over its norm: position x layer.

    From the hidden states that plain transformers returns, which are the streams after
    every block but the last. (In float32: in float64, transformers' softmax of positions
    that attend to nothing is NaN.)
    """
    model = load_double(tiny(family)).float()
    rows = compared_ids()
    tokens = torch.tensor([[PAD] * PADDING + ids for ids in rows])
    mask = torch.tensor([[0] * PADDING + [1] * len(ids) for ids in rows])
    with torch.no_grad():
        output = model(tokens, attention_mask=mask, output_hidden_states=True)
    streams = torch.stack(output.hidden_states[1:LAYERS], dim=-1).double().numpy()
    distance = np.sqrt(((streams - streams[:1]) ** 2).sum(axis=2)).max(axis=0)
    return distance / np.sqrt((streams[0] ** 2).sum(axis=1))


@both_backends
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "neox", "bloom", "opt"])
def test_bos_is_the_same_in_every_prompt(family: str, backend: str, tiny: Tiny) -> None:
    spread = probed(tiny, family, backend=backend)["bos_spread"].values
    assert spread.shape == (LAYERS,)
    assert (spread >= 0).all()
    assert spread.max() <= FLOAT32.unit


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox", "opt"])
def test_spreads_are_those_of_the_hidden_states_of_the_model(family: str, tiny: Tiny) -> None:
    expected = spreads_by_hand(tiny, family)
    run = probed(tiny, family, backend="transformers", attention="eager")
    padding, bos = run["padding_spread"].values, run["bos_spread"].values
    assert padding.shape == (PADDING, LAYERS)
    assert expected[:PADDING].min() > 0.1  # eager attention of padding sees all positions
    relative = np.abs(padding[:, :-1] / expected[:PADDING] - 1)
    assert relative.max() <= FLOAT32.token
    assert np.abs(bos[:-1] - expected[PADDING]).max() <= FLOAT32.unit


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_padding_that_sees_only_padding_is_the_same_in_every_prompt(
    family: str, tiny: Tiny
) -> None:
    run = probed(tiny, family, backend="transformers", attention="sdpa")
    assert run["padding_spread"].values.max() <= FLOAT32.unit


def test_bos_that_sees_the_text_is_not_the_same(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(ModelSpec(str(tiny("llama")), backend="transformers", attention="eager"))
    encoded = encode(PROMPTS, loaded.tokenizer, loaded.model.config, 24)
    monkeypatch.setattr(
        "transformers.models.llama.modeling_llama.create_causal_mask",
        lambda inputs_embeds, **_: torch.zeros(1, 1, *[inputs_embeds.shape[1]] * 2),
    )
    spread = padding_probe(open_backend(loaded), encoded, "cpu")["bos_spread"].values
    assert spread.min() > 0.1


def test_padding_that_attention_makes_nan_is_nan_and_no_damage(tiny: Tiny) -> None:
    spec = ModelSpec(str(tiny("llama")), backend="transformers", dtype="float64", attention="eager")
    names = ("bos_spread", "padding_spread", "resid_post_norm")
    run = measure(spec, Prompts("x", shipped().texts[:8]), max_tokens=24, names=names)
    assert np.isfinite(run["resid_post_norm"].mean).all()  # prompts of the pass are padded behind
    assert np.isnan(run["padding_spread"].values).all()
    assert run["bos_spread"].values[0] == 0
    assert np.isnan(run["bos_spread"].values[1:]).all()  # zero times NaN
    (bos_constant,) = (claim for claim in all_claims() if claim.id == "bos-constant")
    assert bos_constant.evaluate(run).outcome is Outcome.INCONCLUSIVE


@both_backends
@pytest.mark.parametrize("family", ["llama", "neox", "opt", "bloom"])
def test_padding_moves_no_token_where_positions_do_not_count_it(
    family: str, backend: str, tiny: Tiny
) -> None:
    run = measure(
        ModelSpec(str(tiny(family)), backend=backend),
        PROMPTS,
        max_tokens=24,
        names=["padding_shift"],
    )
    assert run["padding_shift"].values.shape == (LAYERS,)
    assert run["padding_shift"].values.max() <= FLOAT32.token


def test_padding_moves_tokens_of_plain_gpt2_and_not_of_the_bridge(tiny: Tiny) -> None:
    shifts = {
        backend: measure(
            ModelSpec(str(tiny("gpt2")), backend=backend),
            PROMPTS,
            max_tokens=24,
            names=["padding_shift"],
        )["padding_shift"].values
        for backend in ("transformers", "transformer_lens")
    }
    assert shifts["transformers"].min() > 0.1
    assert shifts["transformer_lens"].max() <= FLOAT32.token


@both_backends
def test_prompts_that_are_all_alike_have_no_spread_to_measure(backend: str, tiny: Tiny) -> None:
    run = probed(tiny, "llama", Prompts("x", PROMPTS.texts[:1] * 3), backend=backend)
    assert np.isnan(run["bos_spread"].values).all()
    assert np.isnan(run["padding_spread"].values).all()


def means_by_hand(tiny: Tiny, family: str, ids: list[list[int]]) -> np.ndarray:
    """Largest ``|mean| sqrt(d) / norm`` of the stream after each block."""
    model = load_double(tiny(family))
    shares = []
    for row in ids:
        posts = torch.stack([layer.post for layer in layers_by_hand(model, row)])
        shares.append(posts.mean(-1).abs() * posts.shape[-1] ** 0.5 / posts.norm(dim=-1))
    return torch.stack(shares).amax(dim=(0, 2)).numpy()


def gate_rows(prompts: Prompts = PROMPTS) -> list[list[int]]:
    """The two rows of 16 tokens that the gate reads: BOS and 15 tokens of text each."""
    texts = tokenizer()(list(prompts.texts), add_special_tokens=False)["input_ids"]
    text = [token for ids in texts for token in ids[:23]]
    return [[BOS, *text[:15]], [BOS, *text[15:30]]]


@both_backends
@pytest.mark.parametrize("family", ["gpt2", "neox", "opt", "stablelm", "olmo"])
def test_centring_leaves_no_mean_and_the_same_logits(family: str, backend: str, tiny: Tiny) -> None:
    run = probed(tiny, family, backend=backend)
    assert run["centred_mean"].values.shape == (LAYERS,)
    assert run["centred_mean"].values.max() <= ROUNDINGS * FLOAT32.unit
    assert run["centring_logit_shift"].values.shape == (1,)
    assert float(run["centring_logit_shift"].values[0]) <= FLOAT32.logits


@pytest.mark.parametrize("family", ["gpt2", "neox"])
def test_weights_said_to_be_centred_that_are_not_show(
    family: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    process = TransformerBridge.enable_compatibility_mode

    def without_centring(self: Any, **options: Any) -> None:
        process(self, **options, center_writing_weights=False)

    monkeypatch.setattr(TransformerBridge, "enable_compatibility_mode", without_centring)
    found = probed(tiny, family)["centred_mean"].values
    expected = means_by_hand(tiny, family, gate_rows())
    assert expected.min() > UNCENTRED
    assert np.abs(found / expected - 1).max() <= FLOAT32.token


def test_centring_a_model_that_reads_the_mean_changes_its_logits(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(ModelSpec(str(tiny("gpt2")), backend="transformers"))
    for block in loaded.model.transformer.h:  # as if GPT-2 had RMSNorm
        block.ln_1.forward = lambda x, norm=block.ln_1: x * norm.weight
    tokens = torch.tensor(gate_rows())
    curves = centring_probe(open_backend(loaded), tokens, centred_weights=False)
    assert float(curves["centring_logit_shift"].values[0]) > 100 * FLOAT32.logits


@both_backends
@pytest.mark.parametrize("family", ["llama", "gemma3", "olmo2"])
def test_a_model_that_does_not_centre_says_so(family: str, backend: str, tiny: Tiny) -> None:
    run = probed(tiny, family, backend=backend)
    assert set(run.curves) == {"bos_spread", "padding_spread"}
    for name in ("centred_mean", "centring_logit_shift"):
        assert "does not subtract the mean" in run.model.missing[name]
