"""Curves against plain loops; run files: exact, repeatable, and refused when damaged."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from residcheck.curves import (
    TOKEN_DIMS,
    Curve,
    ModelInfo,
    PromptInfo,
    Run,
    load_run,
    save_run,
    summary,
)
from residcheck.errors import ExitStatus, RunFileError

LENGTHS = (5, 2, 7)
LAYERS = 4
nan, inf = math.nan, math.inf


@pytest.fixture
def curve() -> Curve:
    """Norms of three prompts of different length, NaN after the end of each."""
    values = np.random.default_rng(0).lognormal(size=(len(LENGTHS), max(LENGTHS), LAYERS))
    for prompt, length in enumerate(LENGTHS):
        values[prompt, length:] = nan
    return Curve("resid_post_norm", TOKEN_DIMS, values.astype(np.float32), "norm")


def ordinary(curve: Curve, prompt: int, layer: int) -> list[float]:
    """The values of one prompt's tokens but the first, by the lengths and not by NaN."""
    return [float(curve.values[prompt, i, layer]) for i in range(1, LENGTHS[prompt])]


def pooled(curve: Curve, layer: int) -> list[float]:
    return [x for prompt in range(len(LENGTHS)) for x in ordinary(curve, prompt, layer)]


def test_mean_is_over_all_ordinary_tokens(curve: Curve) -> None:
    expected = [statistics.fmean(pooled(curve, n)) for n in range(LAYERS)]
    assert curve.mean == pytest.approx(expected)


def test_gmean_is_the_geometric_mean_of_all_ordinary_tokens(curve: Curve) -> None:
    expected = [statistics.geometric_mean(pooled(curve, n)) for n in range(LAYERS)]
    assert curve.gmean == pytest.approx(expected)


def test_bos_is_position_zero(curve: Curve) -> None:
    expected = [[float(curve.values[p, 0, n]) for n in range(LAYERS)] for p in range(3)]
    assert curve.bos.tolist() == expected


def test_prompt_mean_and_prompt_log_are_per_prompt(curve: Curve) -> None:
    for p in range(len(LENGTHS)):
        for n in range(LAYERS):
            values = ordinary(curve, p, n)
            assert curve.prompt_mean[p, n] == pytest.approx(statistics.fmean(values))
            assert curve.prompt_log[p, n] == pytest.approx(statistics.fmean(map(math.log, values)))


@pytest.mark.parametrize("name", ["mean", "gmean", "bos", "prompt_mean", "prompt_log", "ordinary"])
def test_statistics_run_in_float64(curve: Curve, name: str) -> None:
    assert getattr(curve, name).dtype == np.float64


def test_sums_of_float32_do_not_lose_small_terms() -> None:
    values = np.ones((1, 1 + 2**12, 1), dtype=np.float32)
    values[0, 1] = 2.0**24
    curve = Curve("x", TOKEN_DIMS, values, "norm")
    assert curve.mean == pytest.approx((2.0**24 + 2**12 - 1) / 2**12)


def test_a_prompt_without_ordinary_tokens_has_no_mean() -> None:
    values = np.array([[[2.0], [4.0]], [[3.0], [nan]]])
    curve = Curve("x", TOKEN_DIMS, values, "norm")
    assert curve.mean.tolist() == [4.0]
    assert curve.prompt_mean[0, 0] == pytest.approx(4.0)
    assert math.isnan(curve.prompt_mean[1, 0])


def test_axes_must_have_names() -> None:
    with pytest.raises(ValueError, match="x: 2 axes"):
        Curve("x", ("layer",), np.zeros((2, 2)), "norm")


MODEL = ModelInfo(
    id="org/tiny",
    weights="sha256:ab",
    model_type="gpt2",
    n_layers=LAYERS,
    d_model=8,
    n_heads=2,
    d_mlp=None,
    norm="LayerNorm",
    norm_eps=1e-5,
    parallel=False,
    gated=False,
    activation="gelu",
    dtype="float32",
    device="cpu",
    backend="transformers",
    processing="raw",
    attention="sdpa",
    missing={"resid_mid_norm": "parallel blocks have none"},
)


@pytest.fixture
def run(curve: Curve) -> Run:
    odd = Curve("odd", ("head", "layer"), np.array([[1.0, nan], [inf, -inf]]), "ratio")
    scalar = Curve("shift", (), np.array(0.25), "nats")
    return Run(
        model=MODEL,
        environment={"python": "3.11", "platform": "Zürich"},
        prompts=PromptInfo("a.txt", "cd", len(LENGTHS), sum(LENGTHS), 7, "<s>"),
        curves={c.name: c for c in (curve, odd, scalar)},
        complete=False,
    )


@pytest.fixture
def saved(run: Run, tmp_path: Path) -> Path:
    path = tmp_path / "run.json"
    save_run(run, path)
    return path


def same_curves(a: Run, b: Run) -> bool:
    return list(a.curves) == list(b.curves) and all(
        (x.name, x.dims, x.unit, x.values.dtype, x.values.shape, x.values.tobytes())
        == (y.name, y.dims, y.unit, y.values.dtype, y.values.shape, y.values.tobytes())
        for x, y in zip(a.curves.values(), b.curves.values(), strict=True)
    )


def test_round_trip_is_exact(run: Run, saved: Path) -> None:
    back = load_run(saved)
    assert same_curves(back, run)
    assert (back.model, back.prompts, back.complete) == (run.model, run.prompts, run.complete)
    assert back.environment == run.environment


def files_of(path: Path) -> tuple[bytes, bytes]:
    return path.read_bytes(), path.with_suffix(".npz").read_bytes()


def test_saving_twice_gives_the_same_bytes(run: Run, saved: Path) -> None:
    again = saved.with_name("again") / saved.name
    save_run(load_run(saved), again)
    assert files_of(again) == files_of(saved)


def test_a_run_file_can_be_moved_with_its_arrays(run: Run, saved: Path) -> None:
    elsewhere = saved.with_name("elsewhere")
    elsewhere.mkdir()
    for path in (saved, saved.with_suffix(".npz")):
        path.replace(elsewhere / path.name)
    assert same_curves(load_run(elsewhere / saved.name), run)


def test_json_holds_the_summaries_and_strict_json_only(curve: Curve, saved: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    document = json.loads(saved.read_text(encoding="utf-8"), parse_constant=refuse)
    head = document["curves"]["resid_post_norm"]
    assert head["mean"] == pytest.approx([statistics.fmean(pooled(curve, n)) for n in range(4)])
    assert head["layer"] == [0, 1, 2, 3]
    assert document["curves"]["odd"]["values"] == [[1.0, None], [None, None]]
    assert document["curves"]["shift"]["values"] == 0.25


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")


def replace_arrays(path: Path, **tables: Any) -> None:
    """Other arrays, with their hash noted, so that only their content is wrong."""
    arrays = path.with_suffix(".npz")
    np.savez(arrays, **tables)
    digest = hashlib.sha256(arrays.read_bytes()).hexdigest()
    rewrite(path, lambda d: d["arrays"].update(sha256=digest))


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "JSON missing": lambda p: p.unlink(),
    "JSON empty": lambda p: p.write_bytes(b""),
    "JSON truncated": shorten,
    "JSON not UTF-8": lambda p: p.write_bytes(b"\xff\xfe"),
    "JSON of another kind": lambda p: p.write_text("[1]"),
    "another schema": lambda p: rewrite(p, lambda d: d.update(schema="residcheck.run/99")),
    "no schema": lambda p: rewrite(p, lambda d: d.pop("schema")),
    "no model": lambda p: rewrite(p, lambda d: d.pop("model")),
    "curves no object": lambda p: rewrite(p, lambda d: d.update(curves=[])),
    "no curves": lambda p: rewrite(p, lambda d: d.pop("curves")),
    "a field too many": lambda p: rewrite(p, lambda d: d["model"].update(colour="red")),
    "another number of axes": lambda p: rewrite(p, lambda d: d["curves"]["odd"].update(dims=[])),
    "arrays missing": lambda p: p.with_suffix(".npz").unlink(),
    "arrays truncated": lambda p: shorten(p.with_suffix(".npz")),
    "arrays of another run": lambda p: np.savez(p.with_suffix(".npz"), x=np.zeros(3)),
    "arrays without a curve": lambda p: replace_arrays(p, x=np.zeros(3)),
    "arrays pickled": lambda p: replace_arrays(p, resid_post_norm=np.array([{}], dtype=object)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_run_is_refused_by_name(damage: str, saved: Path) -> None:
    DAMAGE[damage](saved)
    with pytest.raises(RunFileError, match=r"run\.(json|npz)") as caught:
        load_run(saved)
    assert caught.value.exit_status is ExitStatus.COULD_NOT_MEASURE


def test_pickled_arrays_are_not_executed(saved: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    replace_arrays(saved, resid_post_norm=np.array([Trap()], dtype=object))
    with pytest.raises(RunFileError):
        load_run(saved)
    assert not (tmp_path / "sprung").exists()


Interrupt = Callable[[str, BaseException], None]
FULL = OSError(28, "No space left on device")
EITHER_FILE = pytest.mark.parametrize("suffix", [".npz", ".json"])


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Interrupt:
    """Makes the first renaming onto a visible file with such a suffix fail."""
    real, pending = Path.replace, [True]

    def at(suffix: str, error: BaseException) -> None:
        def replace(self: Path, target: Path) -> Path:
            lands = Path(target).suffix == suffix and not Path(target).name.startswith(".")
            if lands and pending:
                pending.clear()
                raise error
            return real(self, target)

        monkeypatch.setattr(Path, "replace", replace)

    return at


@EITHER_FILE
@pytest.mark.parametrize(
    ("error", "raised"), [(FULL, RunFileError), (KeyboardInterrupt(), KeyboardInterrupt)]
)
def test_an_interrupted_write_leaves_the_old_run(
    suffix: str,
    error: BaseException,
    raised: type[BaseException],
    run: Run,
    saved: Path,
    interrupt: Interrupt,
) -> None:
    other = Curve("other", ("layer",), np.ones(LAYERS), "norm")
    interrupt(suffix, error)
    with pytest.raises(raised):
        save_run(Run(run.model, run.environment, run.prompts, {"other": other}), saved)
    assert same_curves(load_run(saved), run)
    assert {path.name for path in saved.parent.iterdir()} == {"run.json", "run.npz"}


@EITHER_FILE
def test_a_failed_write_leaves_no_new_files(
    suffix: str, run: Run, saved: Path, interrupt: Interrupt
) -> None:
    interrupt(suffix, FULL)
    with pytest.raises(RunFileError, match=r"could not write .*new\.json: No space left"):
        save_run(run, saved.with_name("new.json"))
    assert {path.name for path in saved.parent.iterdir()} == {"run.json", "run.npz"}


def test_a_run_is_replaced_by_another_without_a_trace(run: Run, saved: Path) -> None:
    other = Curve("other", ("layer",), np.ones(LAYERS), "norm")
    changed = Run(run.model, run.environment, run.prompts, {"other": other})
    save_run(changed, saved)
    assert same_curves(load_run(saved), changed)
    assert {path.name for path in saved.parent.iterdir()} == {"run.json", "run.npz"}


def test_a_folder_that_cannot_be_made_is_explained(run: Run, saved: Path) -> None:
    with pytest.raises(RunFileError, match="could not write"):
        save_run(run, saved / "below" / "run.json")


@pytest.mark.parametrize(
    ("dims", "shape", "averaged"),
    [
        (("head", "layer"), (3, 4), ()),
        (("draw", "matrix", "layer"), (5, 2, 4), (0,)),
        (("prompt", "write", "layer"), (5, 9, 4), (0,)),
        (("neuron", "layer"), (7, 4), (0,)),
        (("position", "layer"), (3, 4), ()),
    ],
)
def test_a_summary_averages_over_samples_and_keeps_the_other_axes(
    dims: tuple[str, ...], shape: tuple[int, ...], averaged: tuple[int, ...]
) -> None:
    values = np.random.default_rng(0).normal(size=shape)
    said = summary(Curve("x", dims, values, "ratio"))
    assert np.asarray(said["values"]) == pytest.approx(values.mean(axis=averaged))
    if "head" in dims:
        assert said["mean"] == pytest.approx(values.mean(axis=0))
    assert said.get("draws") == ([shape[0]] if averaged else None)
