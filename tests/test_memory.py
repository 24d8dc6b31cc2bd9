"""Batches of the size that memory has room for, and what is done where it has not."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny import Tiny

from residcheck.backends.plain import PlainBackend
from residcheck.corpus import Prompts, shipped
from residcheck.curves import Run
from residcheck.errors import LoadError
from residcheck.horizon import Plan, Variant
from residcheck.measure import QUANTITIES, HorizonOptions, Session, open_session, run_session
from residcheck.measure.memory import (
    DEFAULT_BATCH_SIZE,
    budget,
    fits,
    free_memory,
    in_pieces,
    pass_bytes,
    prompts_that_fit,
)
from residcheck.measure.opening import open_loaded
from residcheck.models import ModelSpec, load
from residcheck.names import HORIZON
from residcheck.tolerances import tolerance

PROMPTS = Prompts("some passages", shipped().texts[:7])
MAX_TOKENS = 16
NAMES = [*QUANTITIES, "head_projection", "write_share"]
FLOAT32 = tolerance("float32")


def session_of(tiny: Tiny, backend: str = "transformers", family: str = "llama") -> Session:
    spec = ModelSpec(str(tiny(family)), backend=backend)
    return open_session(spec, PROMPTS, MAX_TOKENS)


class Full:
    """A device with memory for so many rows: what asks for more runs out of it."""

    def __init__(self, session: Session, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room, self.rows, self.failed = room, [0][:0], 0
        self._monkeypatch, self._backend = monkeypatch, session.backend

    def at(self, method: str, row_argument: int = 0) -> Full:
        """Guard a method of the backend; the rows are the length of one of its arguments."""
        inner: Callable[..., Any] = getattr(self._backend, method)

        def guarded(*args: Any, **kwargs: Any) -> Any:
            rows = len(args[row_argument])
            self.rows.append(rows)
            if rows > self.room:
                self.failed += 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
            return inner(*args, **kwargs)

        self._monkeypatch.setattr(self._backend, method, guarded)
        return self


def assert_equal(found: Run, right: Run) -> None:
    assert found.curves.keys() == right.curves.keys()
    for name, curve in right.curves.items():
        assert np.array_equal(found[name].values, curve.values, equal_nan=True), name


@pytest.mark.parametrize("backend", ["transformers", "transformer_lens", "nnsight"])
def test_a_batch_that_is_too_large_is_taken_again_in_halves(
    backend: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = run_session(session_of(tiny, backend), NAMES, batch_size=2)
    session = session_of(tiny, backend)
    full = Full(session, 2, monkeypatch).at("forward")
    found = run_session(session, NAMES, batch_size=7)
    assert_equal(found, right)
    assert found.complete
    assert full.rows == [7, 4, 2, 2, 2, 1]  # nothing that was finished is run again


def test_memory_that_runs_out_late_costs_the_batch_that_failed_alone(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = run_session(session_of(tiny), NAMES, batch_size=3)
    session = session_of(tiny)
    full = Full(session, 3, monkeypatch).at("forward")
    inner = session.backend.forward

    def later(*args: Any, **kwargs: Any) -> Any:
        """Somebody else takes memory after the first batch."""
        try:
            return inner(*args, **kwargs)
        finally:
            full.room = 2

    monkeypatch.setattr(session.backend, "forward", later)
    found = run_session(session, NAMES, batch_size=3)
    assert full.rows == [3, 3, 2, 2]
    for name, curve in right.curves.items():
        same = np.isclose(
            found[name].values, curve.values, FLOAT32.token, FLOAT32.token, equal_nan=True
        )
        assert same.all(), name


def test_one_prompt_that_is_too_much_is_an_error_that_says_what_to_do(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(tiny)
    full = Full(session, 0, monkeypatch).at("forward")
    with pytest.raises(LoadError, match="cpu ran out of memory, down to one prompt of 16") as said:
        run_session(session, NAMES, batch_size=3)
    assert full.rows == [3, 2, 1]
    assert "--max-tokens" in said.value.hint


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_horizons_are_planned_again(
    ablation: Any, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = HorizonOptions(Variant(ablation=ablation))
    right = run_session(session_of(tiny), HORIZON, 7, how)
    session = session_of(tiny)
    full = Full(session, 2, monkeypatch).at("forward").at("alone", row_argument=1)
    done: list[int] = []

    def progress(label: str, at: int, total: int | None) -> None:
        if label.startswith("horizons"):
            done.append(at)

    found = run_session(session, HORIZON, 7, how, progress)
    assert full.failed > 2
    assert found.complete
    assert done[-1] == max(done)
    for name, curve in right.curves.items():
        value, expected = found[name].values, curve.values
        assert np.allclose(value, expected, FLOAT32.truncated, 1e-5, equal_nan=True), name


def test_horizons_are_tried_where_the_estimate_leaves_no_room_for_them(tiny: Tiny) -> None:
    right = run_session(session_of(tiny), ["horizon_loss"], 1)
    found = run_session(session_of(tiny), ["horizon_loss"], free=lambda device: 1024)
    value, expected = found["horizon_loss"].values, right["horizon_loss"].values
    assert np.allclose(value, expected, FLOAT32.truncated, 1e-5, equal_nan=True)


def test_a_horizon_that_does_not_fit_is_an_error(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(tiny)
    monkeypatch.setattr("residcheck.measure.horizons.check_blocks", lambda *args: None)
    Full(session, 0, monkeypatch).at("alone", row_argument=1)
    with pytest.raises(LoadError, match="ran out of memory, down to one prompt"):
        run_session(session, ["horizon_loss"], 4)


def test_blocks_that_run_out_of_memory_are_not_taken_for_unsupported(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(tiny)
    Full(session, 0, monkeypatch).at("alone", row_argument=1)
    with pytest.raises(LoadError, match="ran out of memory"):
        run_session(session, ["horizon_loss", "resid_post_norm"])
    assert "horizon_loss" not in session.missing


@pytest.mark.parametrize("at", ["the plain model", "the gate"])
def test_memory_that_runs_out_before_anything_is_measured(
    at: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError

    loaded = load(ModelSpec(str(tiny("llama")), backend="transformers"))
    if at == "the gate":
        monkeypatch.setattr(PlainBackend, "run", fail)
    else:
        monkeypatch.setattr(loaded.model, "forward", fail)
    with pytest.raises(LoadError, match=r"cpu ran out of memory while .* was checked"):
        open_loaded(loaded, PROMPTS, MAX_TOKENS)


def test_what_a_failed_batch_held_is_let_go_of_before_the_next_try() -> None:
    held: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []

    def work() -> None:
        alive.append(any(ref() is not None for ref in held))
        large = torch.zeros(8)
        held.append(weakref.ref(large))
        cycle: list[Any] = [large]
        cycle.append(cycle)
        raise torch.OutOfMemoryError

    assert not fits(work, "cpu")
    assert not fits(work, "cpu")
    assert alive == [False, False]


def test_only_a_gpu_has_its_cache_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))

    def fail() -> None:
        raise torch.OutOfMemoryError

    assert not fits(fail, "cpu")
    assert emptied == []
    assert not fits(fail, "cuda:1")
    assert emptied == [True]


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    def fail() -> None:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        fits(fail, "cuda")


def test_pieces_stay_small_once_they_were_too_large() -> None:
    taken: list[list[int]] = []

    def take(piece: Any) -> None:
        if len(piece) > 3:
            raise torch.OutOfMemoryError
        taken.append(list(piece))

    in_pieces(range(10), 8, take, "cpu")
    assert taken == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]


def test_a_plan_shrinks_to_nothing() -> None:
    plan: Plan | None = Plan(5, 3, 64)
    seen: list[Plan] = []
    while plan is not None:
        seen.append(plan)
        plan = plan.smaller()
    expected = [(5, 3, 64), (3, 3, 32), (2, 3, 16), (1, 3, 16), (1, 2, 16), (1, 1, 16)]
    assert seen == [Plan(*numbers) for numbers in expected]


def test_the_batch_is_what_free_memory_has_room_for(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(tiny)
    per_prompt = pass_bytes(session.backend.anatomy, torch.float32, MAX_TOKENS)
    full = Full(session, 99, monkeypatch).at("forward")
    run_session(session, ["resid_post_norm"], free=lambda device: 2 * 3 * per_prompt)
    assert full.rows == [3, 3, 1]  # half of what is free is taken
    full.rows.clear()
    run_session(session, ["resid_post_norm"], free=lambda device: 1)
    assert full.rows == [1] * 7
    full.rows.clear()
    run_session(session, ["resid_post_norm"], 4, free=lambda device: 1)  # what was asked for
    assert full.rows == [4, 3]


def test_the_estimate_grows_with_what_lives_in_a_pass(tiny: Tiny) -> None:
    anatomy = session_of(tiny).backend.anatomy
    small, half = (pass_bytes(anatomy, dtype, 64) for dtype in (torch.float32, torch.bfloat16))
    assert half < small
    twice = pass_bytes(anatomy, torch.float32, 128)
    assert 2 * (twice - small) > small  # scores grow with the square
    assert pass_bytes(anatomy, torch.float32, 1024) > 3 * anatomy.n_heads * 1024**2 * 4


def test_a_batch_is_no_larger_than_is_of_use() -> None:
    assert prompts_that_fit(1 << 60, per_prompt=1, tokens=128) == 256
    assert prompts_that_fit(0, per_prompt=1, tokens=128) == 1


def test_the_fullest_device_decides() -> None:
    free = {"cuda:0": 10 << 30, "cuda:1": 4 << 30}
    assert budget(free, free.__getitem__) == 2 << 30
    assert budget(["cpu"], free_memory) is None
    assert DEFAULT_BATCH_SIZE == 8


def test_what_torch_holds_unused_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"mem_get_info": (100, 1000), "memory_reserved": 70, "memory_allocated": 30}
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, answer=answer: answer)
    assert free_memory("cuda") == 140
    assert free_memory("mps") is None
