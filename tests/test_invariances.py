"""What must not change a result, and the facts that are compared exactly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lying import both_backends
from tiny import LAYERS, Tiny, load_double

from residcheck.corpus import Prompts, shipped
from residcheck.curves import Run, load_run, save_run
from residcheck.measure import measure, open_session, run_session
from residcheck.measure.shapes import shapes
from residcheck.models import ModelSpec
from residcheck.names import OF_PROCESSING
from residcheck.tolerances import tolerance

PROMPTS = Prompts("x", shipped().texts[:3])
FLOAT32 = tolerance("float32")
NAMES = ("batch_shift", *OF_PROCESSING)


def spec_of(folder: Path, **options: str) -> ModelSpec:
    return ModelSpec(str(folder)).with_options(**options)


def probed(folder: Path, **options: str) -> Run:
    return measure(spec_of(folder, **options), PROMPTS, max_tokens=24, names=NAMES)


@both_backends
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "bloom", "opt"])
def test_a_row_is_the_same_alone_and_beside_others(family: str, backend: str, tiny: Tiny) -> None:
    shift = probed(tiny(family), backend=backend)["batch_shift"].values
    assert shift.shape == (LAYERS,)
    assert shift.max() <= FLOAT32.token


def test_a_library_that_reads_the_first_row_for_all_is_seen(tiny: Tiny) -> None:
    session = open_session(spec_of(tiny("llama"), backend="transformers"), PROMPTS, 24)
    sound = session.backend.forward

    def first_for_all(tokens: Any, mask: Any, taps: Any, *, logits: bool) -> Any:
        return sound(tokens, mask[:1].expand_as(mask).contiguous(), taps, logits=logits)

    session.backend.forward = first_for_all  # type: ignore[method-assign]
    shift = run_session(session, ["batch_shift"])["batch_shift"].values
    # The first row is the shortest: the mask of its padding hides text of the others.
    assert shift.min() > 100 * FLOAT32.token


def test_processing_shift_is_the_distance_from_the_plain_model(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a library that scales the unembedding by 1.01, against float64 by hand."""
    session = open_session(spec_of(tiny("gpt2")), PROMPTS, 24)
    sound = session.backend.forward

    def scaled(*args: Any, logits: bool) -> Any:
        found = sound(*args, logits=logits)
        return found if found is None else 1.01 * found

    monkeypatch.setattr(session.backend, "forward", scaled)
    found = run_session(session, ["processing_shift"])["processing_shift"].values
    with torch.no_grad():
        logits = load_double(tiny("gpt2"))(session.gate_tokens).logits
    right, wrong = (torch.log_softmax(x, -1).numpy() for x in (logits, 1.01 * logits))
    by_hand = np.sqrt(((wrong - right) ** 2).mean()) / right.std(axis=-1, ddof=1).mean()
    assert found.shape == (1,)
    assert abs(found[0] / by_hand - 1) < 1e-3


def test_sound_processing_moves_nothing_once_or_twice(tiny: Tiny) -> None:
    for family in ("gpt2", "gemma2"):
        run = probed(tiny(family))
        for name in OF_PROCESSING:
            assert float(run[name].values[0]) <= FLOAT32.logits, (family, name)


def _fold_again(bridge: Any) -> None:
    with torch.no_grad():
        for parameter in bridge.parameters():
            parameter.mul_(1.1)


def _refuse(bridge: Any) -> None:
    raise RuntimeError("processed already")


@pytest.mark.parametrize(("fault", "known"), [(_fold_again, True), (_refuse, False)])
def test_processing_that_does_not_bear_repetition_is_seen(
    fault: Callable[[Any], None], known: bool, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    session = open_session(spec_of(tiny("gpt2")), PROMPTS, 24)
    with monkeypatch.context() as patched:
        patched.setattr(
            TransformerBridge, "enable_compatibility_mode", lambda self, **options: fault(self)
        )
        run = run_session(session, ["resid_post_norm", "reprocessing_shift"])
    if known:
        assert float(run["reprocessing_shift"].values[0]) > 10 * FLOAT32.logits
    else:
        assert "processed already" in run.model.missing["reprocessing_shift"]
    again = open_session(spec_of(tiny("gpt2")), PROMPTS, 24)  # what was measured before is sound
    sound = run_session(again, ["resid_post_norm"])["resid_post_norm"].values
    assert np.array_equal(run["resid_post_norm"].values, sound, equal_nan=True)


@pytest.mark.parametrize("options", [{"backend": "transformers"}, {"processing": "raw"}])
def test_raw_weights_have_no_processing_to_compare(options: dict[str, str], tiny: Tiny) -> None:
    run = probed(tiny("llama"), **options)
    for name in OF_PROCESSING:
        assert name not in run.curves
        assert "raw" in run.model.missing[name]


@both_backends
def test_shapes_say_what_is_there_and_how_it_lies(backend: str, tiny: Tiny, tmp_path: Path) -> None:
    run = probed(tiny("llama"), backend=backend)
    stream, hidden = "batch x pos x 48", "batch x pos x 96"
    assert run.shapes == {
        **dict.fromkeys(("resid_pre", "ln1_out", "z", "attn_out", "resid_mid"), stream),
        **dict.fromkeys(("ln2_out", "mlp_out", "resid_post"), stream),
        **dict.fromkeys(("mlp_pre", "mlp_post"), hidden),
        "W_Q": "4 x 48 x 12",
        "W_K": "2 x 48 x 12",
        "W_V": "2 x 48 x 12",
        "W_O": "4 x 12 x 48",
        "W_in": "48 x 96",
        "W_gate": "48 x 96",
        "W_out": "96 x 48",
        "W_E": "512 x 48",
        "W_U": "48 x 512",
    }
    save_run(run, tmp_path / "run.json")
    again = load_run(tmp_path / "run.json")
    assert (again.shapes, again.seeds, again.spec) == (run.shapes, run.seeds, run.spec)
    assert run.spec == str(tiny("llama"))


def test_both_backends_have_the_same_shapes_where_both_have_one(tiny: Tiny) -> None:
    for family in ("gpt2", "neox", "gemma2"):
        one, other = (
            probed(tiny(family), backend=b).shapes for b in ("transformers", "transformer_lens")
        )
        assert one == other, family
    assert probed(tiny("neox")).shapes["resid_mid"] == "none"


def test_a_transposed_matrix_and_a_lost_one_show(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    session = open_session(spec_of(tiny("llama"), backend="transformers"), PROMPTS, 24)
    right = session.backend.weights

    def wrong(layer: int) -> Any:
        found = right(layer)
        assert found.mlp is not None
        if layer == 1:
            return replace(found, mlp=replace(found.mlp, W_in=found.mlp.W_in.T))
        return replace(found, attention=None)

    monkeypatch.setattr(session.backend, "weights", wrong)
    found = shapes(session.backend, session.gate_tokens)
    assert found["W_in"] == "layer 0: 48 x 96; layer 1: 96 x 48; layer 2: 48 x 96"
    assert found["W_O"] == "layer 0: none; layer 1: 4 x 12 x 48; layer 2: none"
