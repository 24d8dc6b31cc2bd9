"""The instrumented pass, against streams worked out by hand (``tiny.by_hand``)."""

from __future__ import annotations

import gc
import hashlib
import struct
import weakref
from pathlib import Path
from typing import Any
from unittest.mock import DEFAULT, Mock

import numpy as np
import pytest
import torch
from tiny import BOS, EOS, LAYERS, Tiny, by_hand, load_double, new_model, tokenizer
from torch import Tensor

from residcheck.backends import Taps
from residcheck.corpus import Prompts, shipped
from residcheck.curves import Run
from residcheck.errors import LoadError, NonFiniteError, UsageError
from residcheck.measure import (
    QUANTITIES,
    MeasurementInterrupted,
    measure,
    open_session,
    run_session,
)
from residcheck.measure.recorder import Recorder
from residcheck.models import ModelSpec
from residcheck.names import PROBES
from residcheck.tolerances import Tolerance, tolerance

BACKENDS = ("transformer_lens", "transformers")
both_backends = pytest.mark.parametrize("backend", BACKENDS)
FLOAT32 = tolerance("float32")
MAX_TOKENS = 24
TEXTS = ("One.", *shipped().texts[10:13], "A few words more.", shipped().texts[30])
PROMPTS = Prompts("some passages", TEXTS)


def spec_of(folder: Path, backend: str = "transformers", **options: str) -> ModelSpec:
    return ModelSpec(str(folder)).with_options(backend=backend, **options)


def measured(folder: Path, backend: str = "transformers", **options: Any) -> Run:
    defaults = {"prompts": PROMPTS, "max_tokens": MAX_TOKENS, "names": (*QUANTITIES, *PROBES)}
    options = defaults | options
    return measure(spec_of(folder, backend, **options.pop("spec", {})), **options)


def ids_of(text: str, first: int = BOS, limit: int = MAX_TOKENS) -> list[int]:
    return [first, *tokenizer()(text, add_special_tokens=False)["input_ids"]][:limit]


LENGTHS = [len(ids_of(text)) for text in TEXTS]


def assert_matches(run: Run, prompt: int, expected: dict[str, Any], bounds: Tolerance) -> None:
    """Curves of one prompt: norms relative to their size, the others as they are."""
    assert run.curves.keys() & QUANTITIES.keys() == set(expected)
    for name, right in expected.items():
        found = run[name].values[prompt, : len(right)]
        scale = right if run[name].unit in ("norm", "activation") else 1.0
        assert np.abs((found - right) / scale).max() <= bounds.token, name


@both_backends
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "neox", "neox_sequential"])
def test_every_curve_is_that_of_the_hand_computation(family: str, backend: str, tiny: Tiny) -> None:
    run = measured(tiny(family), backend)
    for prompt, text in enumerate(TEXTS):
        assert_matches(run, prompt, by_hand(tiny(family), ids_of(text)), FLOAT32)


def test_a_float64_model_gives_float64_curves(tiny: Tiny) -> None:
    # Of the families here only GPT-2 has no step in transformers that is always float32.
    run = measured(tiny("gpt2"), spec={"dtype": "float64"})
    assert {c.values.dtype for c in run.curves.values()} == {np.dtype("float64")}
    for prompt, text in enumerate(TEXTS):
        assert_matches(run, prompt, by_hand(tiny("gpt2"), ids_of(text)), tolerance("float64"))


@both_backends
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_gives_the_same_curves_more_coarsely(
    dtype: str, backend: str, tiny: Tiny
) -> None:
    run = measured(tiny("llama"), backend, spec={"dtype": dtype})
    assert {c.values.dtype for c in run.curves.values() if c.per_token} == {np.dtype("float32")}
    means: dict[str, list[Any]] = {}
    for text in TEXTS:
        for name, curve in by_hand(tiny("llama"), ids_of(text)).items():
            means.setdefault(name, []).append(curve[1:])
    for name, tables in means.items():
        right = np.concatenate(tables).mean(axis=0)
        scale = right if run[name].unit in ("norm", "activation") else 1.0
        assert np.abs((run[name].mean - right) / scale).max() <= tolerance(dtype).curve, name


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "neox", "bloom", "olmo2"])
def test_resid_pre_is_the_hidden_state_that_the_model_itself_returns(
    family: str, tiny: Tiny
) -> None:
    run = measured(tiny(family))
    model = load_double(tiny(family))
    for prompt, text in enumerate(TEXTS):
        ids = torch.tensor([ids_of(text)])
        with torch.no_grad():
            states = model(ids, output_hidden_states=True).hidden_states
        streams = torch.stack(states[:LAYERS], dim=-1)[0].numpy()  # position x d_model x layer
        if family in ("gpt2", "neox", "bloom"):  # LayerNorm
            streams = streams - streams.mean(axis=1, keepdims=True)
        right = np.sqrt((streams**2).sum(axis=1))
        found = run["resid_pre_norm"].values[prompt, : len(right)]
        assert np.abs(found / right - 1).max() <= FLOAT32.token
        posts = run["resid_post_norm"].values[prompt, : len(right), :-1]
        assert np.abs(posts / right[:, 1:] - 1).max() <= FLOAT32.token


@both_backends
@pytest.mark.parametrize("family", ["gpt2", "gemma3", "bloom", "opt", "mistral"])
def test_a_prompt_measures_the_same_alone_and_in_any_batch(
    family: str, backend: str, tiny: Tiny
) -> None:
    session = open_session(spec_of(tiny(family), backend), PROMPTS, MAX_TOKENS)
    runs = [run_session(session, QUANTITIES, size) for size in (1, 3, 16)]
    alone = runs[0]  # the batches of size 1 have no padding
    for run in runs[1:]:
        for name, curve in run.curves.items():
            scale = alone[name].values if curve.unit == "norm" else 1.0
            difference = np.abs((curve.values - alone[name].values) / scale)
            assert np.nanmax(difference) <= FLOAT32.token, name


@both_backends
def test_values_are_nan_exactly_at_padding(backend: str, tiny: Tiny) -> None:
    run = measured(tiny("llama"), backend, batch_size=4)
    assert len(set(LENGTHS)) > 2
    for name in QUANTITIES:
        values = run[name].values
        assert values.shape == (len(TEXTS), max(LENGTHS), LAYERS)
        counts = np.isfinite(values).sum(axis=1)
        assert (counts == np.array(LENGTHS)[:, None]).all(), name
        assert all(np.isfinite(values[i, :n]).all() for i, n in enumerate(LENGTHS)), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_neurons_are_active_above_zero_and_nowhere_else(dtype: torch.dtype, tiny: Tiny) -> None:
    tiniest = torch.finfo(dtype).smallest_normal
    x = torch.tensor([[[0.0, -0.0, tiniest, -tiniest, 3e4, -3e4, 0.5, -0.5]]], dtype=dtype)
    backend = open_session(spec_of(tiny("llama")), PROMPTS, MAX_TOKENS).backend
    place = (torch.Size([1, 1]), torch.device("cpu"), torch.float32)
    recorder = Recorder(backend, ["activation_rate"], {}, *place)
    recorder.taps()[1, "mlp_pre"](x)
    assert recorder.values["activation_rate"][0, 0, 1] == 3 / 8


def test_the_prompts_are_known_by_a_hash_of_their_tokens(tiny: Tiny) -> None:
    info = measured(tiny("llama")).prompts
    data = b"".join(struct.pack(f"<{1 + len(ids)}i", len(ids), *ids) for ids in map(ids_of, TEXTS))
    assert info.sha256 == hashlib.sha256(data).hexdigest()
    assert (info.count, info.tokens) == (len(TEXTS), sum(LENGTHS))
    assert (info.source, info.max_tokens, info.bos) == ("some passages", MAX_TOKENS, "<s>")


@pytest.mark.parametrize("changed", [(*TEXTS[1:], "Two."), TEXTS[::-1], TEXTS[:-1]])
def test_other_prompts_have_another_hash(changed: tuple[str, ...], tiny: Tiny) -> None:
    run = measured(tiny("llama"), names=[])
    other = measured(tiny("llama"), names=[], prompts=Prompts("some passages", changed))
    assert other.prompts.sha256 != run.prompts.sha256


@both_backends
def test_measuring_twice_gives_the_same_numbers(backend: str, tiny: Tiny) -> None:
    one, two = (measured(tiny("gpt2"), backend) for _ in range(2))
    assert one.curves.keys() == two.curves.keys()
    for name, curve in one.curves.items():
        assert np.array_equal(curve.values, two[name].values, equal_nan=True), name
    assert (one.model, one.prompts, one.environment) == (two.model, two.prompts, two.environment)


def test_position_0_is_end_of_text_where_there_is_no_bos(tmp_path: Path) -> None:
    new_model("gpt2").save_pretrained(tmp_path)
    tokens = tokenizer().__class__(
        tokenizer_object=tokenizer().backend_tokenizer, eos_token="</s>", pad_token="<pad>"
    )
    tokens.save_pretrained(tmp_path)
    run = measured(tmp_path)
    assert run.prompts.bos == "</s>"
    assert_matches(run, 1, by_hand(tmp_path, ids_of(TEXTS[1], first=EOS)), FLOAT32)


def test_a_tokenizer_without_any_such_token_is_refused(tmp_path: Path) -> None:
    new_model("gpt2").save_pretrained(tmp_path)
    tokens = tokenizer().__class__(tokenizer_object=tokenizer().backend_tokenizer)
    tokens.save_pretrained(tmp_path)
    with pytest.raises(LoadError, match="neither a BOS nor an end-of-text token"):
        measured(tmp_path)


@pytest.mark.parametrize("limit", [2, 5, 24])
def test_max_tokens_counts_bos(limit: int, tiny: Tiny) -> None:
    run = measured(tiny("llama"), max_tokens=limit, prompts=Prompts("long", TEXTS[1:4]))
    assert run["resid_pre_norm"].values.shape == (3, limit, LAYERS)
    assert (run.prompts.tokens, run.prompts.max_tokens) == (3 * limit, limit)


def test_max_tokens_of_one_leaves_nothing_to_measure(tiny: Tiny) -> None:
    with pytest.raises(UsageError, match="no token beside BOS"):
        measured(tiny("llama"), max_tokens=1)


@pytest.mark.parametrize(("positions", "longest"), [(64, 64), (256, 128)])
def test_prompts_are_128_tokens_long_or_what_the_model_reads(
    positions: int, longest: int, tiny: Tiny
) -> None:
    folder = tiny("gpt2", n_positions=positions)
    run = measured(folder, max_tokens=None)
    assert (run.prompts.max_tokens, run["resid_pre_norm"].values.shape[1]) == (longest, longest)
    with pytest.raises(UsageError, match=f"at most {positions} positions"):
        measured(folder, max_tokens=positions + 1)


def test_prompts_are_as_long_as_mpt_reads(tiny: Tiny) -> None:
    run = measured(tiny("mpt", max_seq_len=64), max_tokens=None)
    assert run.prompts.max_tokens == 64


@both_backends
def test_a_prompt_of_one_token_is_measured(backend: str, tiny: Tiny) -> None:
    run = measured(tiny("gpt2"), backend, prompts=Prompts("x", ("a",)))
    assert_matches(run, 0, by_hand(tiny("gpt2"), [BOS, *ids_of("a")[1:]]), FLOAT32)
    assert run["resid_pre_norm"].values.shape == (1, 2, LAYERS)


def test_a_prompt_without_tokens_is_refused(tiny: Tiny) -> None:
    with pytest.raises(UsageError, match="prompt 2 of x has no tokens beside BOS"):
        measured(tiny("llama"), prompts=Prompts("x", ("fine", "", "fine")))


def test_no_prompts_at_all_are_refused(tiny: Tiny) -> None:
    with pytest.raises(UsageError):
        measured(tiny("llama"), prompts=Prompts("x", ()))


def test_a_padding_token_that_the_model_lacks_does_no_harm(tmp_path: Path) -> None:
    new_model("llama").save_pretrained(tmp_path)
    tokens = tokenizer().__class__(tokenizer_object=tokenizer().backend_tokenizer, bos_token="<s>")
    tokens.add_special_tokens({"pad_token": "[PAD]"})  # number 512 of 512: usual for Llama
    tokens.save_pretrained(tmp_path)
    run = measured(tmp_path)
    assert_matches(run, 0, by_hand(tmp_path, ids_of(TEXTS[0])), FLOAT32)


@both_backends
@pytest.mark.parametrize("names", [["activation_rate"], ["mlp_out_cosine"], ["bos_spread"], []])
def test_only_what_is_asked_for_is_measured(names: list[str], backend: str, tiny: Tiny) -> None:
    assert list(measured(tiny("gpt2"), backend, names=names).curves) == names


@both_backends
def test_no_tensor_outlives_the_pass(
    backend: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_session(spec_of(tiny("llama"), backend), PROMPTS, MAX_TOKENS)
    forward, seen, alive = session.backend.forward, [], []

    def watched(tokens: Tensor, mask: Tensor, taps: Taps, *, logits: bool) -> Tensor | None:
        def watch(tap: Any) -> Any:
            def note(x: Tensor) -> Tensor | None:
                seen.append(weakref.ref(x.untyped_storage()))
                alive.append(sum(ref() is not None for ref in seen))
                return tap(x)

            return note

        return forward(tokens, mask, {w: watch(t) for w, t in taps.items()}, logits=logits)

    monkeypatch.setattr(session.backend, "forward", watched)
    run_session(session, QUANTITIES, batch_size=2)
    gc.collect()
    assert len(seen) == 3 * LAYERS * 9  # batches, layers, sites
    assert sum(ref() is not None for ref in seen) == 0
    assert max(alive) <= 9  # the sites of one block; not one more for each layer or batch


def test_a_pass_cut_short_keeps_the_prompts_that_were_done(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measured(tiny("llama"), names=["resid_post_norm"], batch_size=2)
    session = open_session(spec_of(tiny("llama")), PROMPTS, MAX_TOKENS)
    third_fails = Mock(
        wraps=session.backend.forward, side_effect=[DEFAULT, DEFAULT, KeyboardInterrupt]
    )
    monkeypatch.setattr(session.backend, "forward", third_fails)
    with pytest.raises(MeasurementInterrupted) as caught:
        run_session(session, ["resid_post_norm"], batch_size=2)
    run = caught.value.run
    assert run is not None
    done = sorted(sorted(range(len(TEXTS)), key=lambda i: -LENGTHS[i])[:4])  # the longest first
    assert not run.complete
    assert whole.complete
    assert run.prompts.count == 4
    assert run.prompts.tokens == sum(LENGTHS[i] for i in done)
    found, right = run["resid_post_norm"].values, whole["resid_post_norm"].values[done]
    assert np.array_equal(found, right, equal_nan=True)


def test_a_pass_cut_short_at_once_has_no_run(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_session(spec_of(tiny("llama")), PROMPTS, MAX_TOKENS)
    monkeypatch.setattr(session.backend, "forward", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(MeasurementInterrupted) as caught:
        run_session(session)
    assert caught.value.run is None


def test_an_overflow_names_the_layer_in_which_it_happens(tmp_path: Path) -> None:
    model, rare = new_model("gpt2", tie_word_embeddings=False), ids_of("~")[-1]
    with torch.no_grad():  # 40,000 + 30,000 is beyond float16; either alone is not
        model.transformer.wte.weight[rare, 0] = 4e4
        model.transformer.h[1].mlp.c_proj.bias[0] = 3e4
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    prompts = Prompts("x", (*TEXTS[1:3], "It is a ~ here."))
    where = ids_of(prompts.texts[2]).index(rare)
    assert rare not in [*ids_of(TEXTS[1]), *ids_of(TEXTS[2])]
    message = f"layer 1: resid_post_norm is NaN or infinite at prompt 3, position {where}"
    with pytest.raises(NonFiniteError, match=message):
        measured(tmp_path, prompts=prompts, spec={"dtype": "float16"})


@both_backends
@pytest.mark.parametrize("processing", ["raw", "processed"])
def test_a_gain_of_zero_hides_nothing_from_the_normalised_norm(
    backend: str, processing: str, tmp_path: Path
) -> None:
    model = new_model("gpt2")
    with torch.no_grad():
        for block in model.transformer.h:
            block.ln_1.weight[5] = 0
            block.ln_2.weight[[0, 7]] = 0
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    options = {"processing": processing} if backend == "transformer_lens" else {}
    run = measured(tmp_path, backend, spec=options)
    for prompt, text in enumerate(TEXTS):
        assert_matches(run, prompt, by_hand(tmp_path, ids_of(text)), FLOAT32)
