"""The judge on made-up arrays: every verdict, and the forms that are right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from residcheck.regress.cells import Seen
from residcheck.regress.judge import Judgement, decide, judge, logits_apart, vectors_apart

RNG = np.random.default_rng(0)
D, HEADS, WIDTH, VOCAB, LENGTH = 8, 4, 3, 11, 24
Arrays = dict[str, Any]


def normed(x: Any) -> tuple[Any, Any]:
    x = x - x.mean(-1, keepdims=True)
    scale = np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    return scale, x / scale


def reference() -> Seen:
    """One block with LayerNorm and two key-value heads; what it computes does not matter."""
    stream = {name: RNG.normal(size=(2, LENGTH, D)) for name in ("pre", "attn", "mlp")}
    mid = stream["pre"] + stream["attn"]
    shapes = {
        "attn.W_Q": (HEADS, D, WIDTH),
        "attn.W_K": (2, D, WIDTH),
        "attn.W_V": (2, D, WIDTH),
        "attn.W_O": (HEADS, WIDTH, D),
        "attn.b_V": (2, WIDTH),
        "attn.b_O": (D,),
        "ln1.w": (D,),
        "ln1.b": (D,),
    }
    block = {name: RNG.normal(size=shape) for name, shape in shapes.items()}
    block |= {
        "hook_resid_pre": stream["pre"],
        "ln1.hook_out": normed(stream["pre"])[1] * block["ln1.w"] + block["ln1.b"],
        "attn.hook_z": RNG.normal(size=(2, LENGTH, HEADS * WIDTH)),
        "hook_attn_out": stream["attn"],
        "hook_resid_mid": mid,
        "hook_mlp_out": stream["mlp"],
        "hook_resid_post": mid + stream["mlp"],
    }
    plain = {f"blocks.0.{name}": array for name, array in block.items()}
    plain["logits"] = RNG.normal(size=(2, LENGTH, VOCAB))
    anatomy = {"n_layers": 1, "n_heads": HEADS, "d_model": D, "norm": "LayerNorm"}
    anatomy |= {"norm_eps": 1e-5, "parallel": False}
    return Seen("ok", {"anatomy": anatomy}, in_dtypes("raw", plain))


def in_dtypes(processing: str, arrays: Arrays) -> Arrays:
    return {
        f"{dtype}/{processing}/{name}": array.astype(dtype)
        for dtype in ("float32", "float64")
        for name, array in arrays.items()
    }


REFERENCE = reference()


def lens(processing: str = "raw") -> Arrays:
    """What a faultless library says, as it would be saved."""
    plain = {
        name.removeprefix("float64/raw/"): array
        for name, array in REFERENCE.arrays.items()
        if name.startswith("float64")
    }
    scale, unit = normed(plain["blocks.0.hook_resid_pre"])
    plain |= {"blocks.0.ln1.hook_scale": scale, "blocks.0.ln1.hook_normalized": unit}
    logits = plain["logits"]
    whole = logits.reshape(-1, VOCAB)
    cut = np.concatenate([logits[0, : LENGTH - 5], logits[1]])
    plain |= {"alone.logits": whole, "left.logits": cut, "right.logits": cut}
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    ids = REFERENCE.tokens % VOCAB
    right = np.take_along_axis(chances[:, :-1], ids[:, 1:, None], -1)
    plain["loss"] = -np.log(right).mean(keepdims=True)
    for name in ("b_Q", "b_K"):
        heads = HEADS if name == "b_Q" else 2
        plain[f"blocks.0.attn.{name}"] = np.zeros((heads, WIDTH))
    return in_dtypes(processing, plain)


@pytest.fixture(autouse=True)
def _small_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = REFERENCE.tokens % VOCAB
    monkeypatch.setattr(Seen, "tokens", property(lambda self: ids))


def said(arrays: Arrays, processing: str = "raw", **facts: Any) -> dict[str, Judgement]:
    seen = Seen("ok", {"aliases": {}, "errors": {}} | facts, arrays)
    return {one.quantity: one for one in judge(seen, REFERENCE, "bridge", processing)}


def changed(name: str, change: Callable[[Any], Any], dtypes: str = "float32 float64") -> Arrays:
    arrays = lens()
    for dtype in dtypes.split():
        key = f"{dtype}/raw/{name}"
        arrays[key] = change(arrays[key])
    return arrays


def test_a_faultless_library_is_the_same_in_everything() -> None:
    found = said(lens())
    assert {one.verdict for one in found.values()} == {"same"}
    expected = {"hook_attn_out", "ln1.hook_normalized", "W_Q", "left padding", "loss"}
    assert expected <= set(found)


def test_what_is_wrong_in_float32_only_is_noise() -> None:
    arrays = changed("blocks.0.hook_attn_out", lambda x: x * np.float32(1.001), "float32")
    found = said(arrays)["hook_attn_out"]
    assert (found.verdict, found.layer) == ("noise", 0)
    assert found.size == pytest.approx(1e-3, rel=1e-3)
    assert found.double == 0


def test_what_is_wrong_in_float64_is_different() -> None:
    found = said(changed("blocks.0.hook_attn_out", lambda x: x * 1.001))["hook_attn_out"]
    assert found.verdict == "different"
    assert found.double == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("size", "double", "verdict"),
    [
        (1e-5, 1e-9, "same"),
        (1e-3, 1e-9, "noise"),
        (1e-3, 1e-3, "different"),
        (1e-3, float("nan"), "different"),
        (1e-5, float("nan"), "same"),
        (1e-5, 3e-5, "different"),  # a small fault that float32 would pass over
        (float("inf"), float("inf"), "different"),
    ],
)
def test_two_dtypes_decide(size: float, double: float, verdict: str) -> None:
    assert decide(size, double, lambda row: row.token) == verdict


def test_hooks_and_weights_that_are_not_there_are_missing() -> None:
    gone = ("hook_resid_mid", "W_O", "b_Q")
    arrays = {k: v for k, v in lens().items() if not k.endswith(gone)}
    found = said(arrays)
    assert found["hook_resid_mid"].verdict == "missing"
    assert found["W_O"].verdict == "missing"
    assert "b_Q" not in found  # the architecture has none


def test_a_model_that_does_not_load_says_why() -> None:
    found = said({}, errors={"float32/raw": "KeyError: 'x' (file.py:1)"})
    assert list(found) == ["load"]
    assert found["load"].verdict == "cannot load"
    assert found["load"].note == "KeyError: 'x' (file.py:1)"
    crashed = judge(Seen("timeout: killed after 3 s"), REFERENCE, "bridge", "raw")
    assert crashed[0].note == "timeout: killed after 3 s"


def test_logits_may_be_shifted_but_not_scaled() -> None:
    shift = np.arange(LENGTH)[:, None]
    assert said(changed("logits", lambda x: x + shift))["log-probabilities"].verdict == "same"
    assert said(changed("logits", lambda x: x * 1.01))["log-probabilities"].verdict == "different"


def test_padding_batch_size_and_loss_are_held_against_what_they_should_be() -> None:
    for name, quantity in (
        ("left.logits", "left padding"),
        ("right.logits", "right padding"),
        ("alone.logits", "batch of one"),
        ("loss", "loss"),
    ):
        found = said(changed(name, lambda x: x + RNG.normal(size=x.shape)))
        assert [q for q, one in found.items() if one.bad] == [quantity]


def test_a_part_that_raises_is_a_difference_with_its_error() -> None:
    found = said(lens(), errors={"float32/raw/left.logits": "RuntimeError: no (x.py:3)"})
    assert found["left padding"].verdict == "different"
    assert found["left padding"].note.startswith("RuntimeError")


def test_keys_and_values_may_be_repeated_for_every_head() -> None:
    def repeat(x: Any) -> Any:
        return x.repeat(2, axis=0)

    assert said(changed("blocks.0.attn.W_K", repeat))["W_K"].verdict == "same"
    tiled = said(changed("blocks.0.attn.W_K", lambda x: np.tile(x, (2, 1, 1))))["W_K"]
    assert tiled.verdict == "different"


def test_a_transposed_matrix_is_different_and_says_its_shape() -> None:
    found = said(changed("blocks.0.attn.W_O", lambda x: x.transpose(0, 2, 1)))["W_O"]
    assert found.verdict == "different"
    assert found.note == f"shape [{HEADS}, {D}, {WIDTH}], not [{HEADS}, {WIDTH}, {D}]"


def test_processed_weights_may_be_folded_and_centred_but_nothing_else() -> None:
    arrays = lens("processed")
    base = {k.removeprefix("float64/raw/"): v for k, v in REFERENCE.arrays.items()}
    gain, bias = base["blocks.0.ln1.w"], base["blocks.0.ln1.b"]
    query = base["blocks.0.attn.W_Q"]
    folded = query * gain[:, None]
    wo, bv = base["blocks.0.attn.W_O"], base["blocks.0.attn.b_V"]
    value = bv + np.einsum("d,hde->he", bias, base["blocks.0.attn.W_V"])
    b_o = base["blocks.0.attn.b_O"] + np.einsum("he,hed->d", value.repeat(2, axis=0), wo)
    right = {
        "attn.W_Q": folded - folded.mean(1, keepdims=True),
        "attn.b_Q": np.einsum("d,hde->he", bias, query),
        "attn.W_O": wo - wo.mean(-1, keepdims=True),
        "attn.b_V": np.zeros_like(bv),
        "attn.b_O": b_o - b_o.mean(),
        "hook_attn_out": base["blocks.0.hook_attn_out"]
        - base["blocks.0.hook_attn_out"].mean(-1, keepdims=True),
        "attn.hook_z": base["blocks.0.attn.hook_z"] - value.repeat(2, axis=0).reshape(-1),
    }
    for name, array in right.items():
        for dtype in ("float32", "float64"):
            arrays[f"{dtype}/processed/blocks.0.{name}"] = array.astype(dtype)
    found = said(arrays, "processed")
    bad = {quantity for quantity, one in found.items() if one.bad}
    assert not bad & {"W_Q", "W_O", "b_V", "b_O", "hook_attn_out", "attn.hook_z"}
    for name in right:
        for dtype in ("float32", "float64"):
            arrays[f"{dtype}/processed/blocks.0.{name}"] *= 1.01
    bad = {quantity for quantity, one in said(arrays, "processed").items() if one.bad}
    assert {"W_Q", "W_O", "b_O", "hook_attn_out", "attn.hook_z"} <= bad


def test_the_cache_and_the_stacked_weights_are_held_against_the_hooks() -> None:
    arrays = lens()
    hook, weight = "blocks.0.hook_attn_out", "blocks.0.attn.W_O"
    arrays["float32/raw/cache." + hook] = arrays[f"float32/raw/{hook}"] * 2
    arrays["float32/raw/stacked.0.W_O"] = arrays[f"float32/raw/{weight}"]
    found = said(arrays)
    assert (found["run_with_cache"].verdict, found["run_with_cache"].note) == ("different", hook)
    assert found["stacked weights"].verdict == "same"


def test_distances_are_of_the_worst_vector_and_see_nan() -> None:
    right = np.ones((3, 4))
    left = right.copy()
    left[1] *= 1.5
    assert vectors_apart(left, right) == pytest.approx(0.5)
    left[2, 2] = np.nan
    assert vectors_apart(left, right) == np.inf
    assert vectors_apart(right[:2], right) == np.inf
    assert logits_apart(left, right) == np.inf
