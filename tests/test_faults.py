"""Every fault is seen where it is planted, and what changes nothing raises no alarm.

Each in one tiny model; ``nox -s detect`` plants them in all.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from proof.cells import cell, false_alarm, refused, sound

from residcheck import faults
from residcheck.faults import EQUIVALENT, FAULTS, Fault, Subject
from residcheck.snapshot import store
from residcheck.tolerances import Tolerance, tolerance

# In this order, so that few models have to be opened.
MODELS = (
    "gpt2", "llama", "gemma2", "granite", "opt", "neox", "bloom", "mixtral", "stablelm", "cohere",
    "qwen3", "gptj", "gpt_oss", "qwen3_moe_dense_first", "llama_long",
)  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread")


def planted_in(fault: Fault) -> tuple[str, str]:
    """A model and a backend for which a fault exists."""
    for backend in ("transformers", "transformer_lens"):
        for model in MODELS:
            if not refused(model, backend) and fault.applies(sound(model, backend).subject):
                return model, backend
    pytest.fail(f"{fault.name} applies to none of {', '.join(MODELS)}")


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_seen(name: str) -> None:
    fault = FAULTS[name]
    model, backend = planted_in(fault)
    found = cell(fault, model, backend, fault.where, both=False)
    assert found.channels, f"{name} in {model}: {found}"
    if fault.where == "taps":
        assert found.gate, f"{name} in {model} passed the gates"


@pytest.mark.parametrize("name", ["value-bias-lost", "norm-gain-lost", "tf32-products"])
def test_a_changed_model_stops_at_the_gate_of_the_library_that_runs_it(name: str) -> None:
    fault = FAULTS[name]
    model, _ = planted_in(fault)
    for backend in ("transformers", "transformer_lens"):
        assert cell(fault, model, backend, "library", both=False).gate, backend


@pytest.mark.parametrize("name", EQUIVALENT)
def test_what_changes_nothing_is_not_noticed(name: str) -> None:
    model, backend = planted_in(EQUIVALENT[name])
    curve, margin = false_alarm(EQUIVALENT[name], model, backend)
    assert margin <= 1, curve


def test_bounds_ten_thousand_times_as_wide_see_less(monkeypatch: pytest.MonkeyPatch) -> None:
    def loose(dtype: str, *others: str) -> Tolerance:
        row = tolerance(dtype, *others)
        return replace(row, curve=1e4 * row.curve, token=1e4 * row.token)

    fault = FAULTS["w-out-scaled"]
    assert cell(fault, "gpt2", "transformers", "model", both=False).channels == ("snapshot",)
    monkeypatch.setattr(store, "tolerance", loose)
    assert not cell(fault, "gpt2", "transformers", "model", both=False).channels


def test_another_epsilon_shows_where_streams_are_too_large_to_feel_it() -> None:
    found = cell(FAULTS["norm-epsilon"], "gemma2", "transformers", "model", both=False)
    assert found.channels == ("snapshot",)
    assert found.curve.endswith("(norm_eps)")


def test_faults_are_many_and_documented() -> None:
    assert len(FAULTS) >= 40
    assert len(FAULTS) == len(faults._ALL)
    assert not FAULTS.keys() & EQUIVALENT.keys()
    for fault in (*FAULTS.values(), *EQUIVALENT.values()):
        assert fault.name == fault.name.lower().replace(" ", "-")
        assert len(fault.what) > 10, fault.name
        assert fault.where in ("model", "library", "taps")


def test_a_fault_applies_only_where_a_model_has_what_it_is_about() -> None:
    def names(model: str) -> set[str]:
        subject: Subject = sound(model, "transformers").subject
        return {name for name, fault in FAULTS.items() if fault.applies(subject)}

    assert "rotary-base" in names("llama") - names("gpt2")
    assert "positions-off-by-one" in names("gpt2") - names("llama")
    assert "gate-and-up-swapped" in names("llama") - names("gpt2")
    assert "plus-one-forgotten" in names("gemma2") - names("llama")
    assert "router-takes-one" in names("mixtral") - names("llama")


def test_sizes_of_what_is_not_seen_are_measured() -> None:
    fault = replace(FAULTS["head-scaled"], apply=lambda subject: None, name="no-change")
    found = cell(fault, "gpt2", "transformers", "model", both=False)
    assert not found.channels
    assert not found.changes_something
    assert found.effect is not None
    assert found.effect.largest == 0
    assert 0 < found.noise < tolerance("float32").token
    assert math.isnan(found.across)
