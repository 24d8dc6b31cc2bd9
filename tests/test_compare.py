"""Which differences of a stored curve are rounding, and what is said of those that are not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from horizon_runs import LAYERS, horizon_curves

from residcheck.compare import Comparison, compare_curves
from residcheck.curves import TOKEN_DIMS, Curve, Floats, summary
from residcheck.tolerances import tolerance

ROW = tolerance("float32")
CURVES = horizon_curves(12)
Change = Callable[[Floats], Floats]


def compared(curve: Curve, change: Change, step: float = 0.0, sampled: int = 1) -> Comparison:
    changed = replace(curve, values=change(curve.values.copy()))
    return compare_curves(curve.name, summary(curve), summary(changed), ROW, step, sampled=sampled)


def at(horizon: int, factor: float = 1.0, plus: float = 0.0) -> Change:
    def change(values: Floats) -> Floats:
        values[..., horizon - 1] = values[..., horizon - 1] * factor + plus
        return values

    return change


@pytest.mark.parametrize("name", CURVES)
def test_the_same_numbers_are_the_same(name: str) -> None:
    assert compared(CURVES[name], lambda values: values).same


def test_a_drifted_horizon_is_called_by_its_number() -> None:
    message = compared(CURVES["horizon_loss"], at(7, factor=1.01)).message("a command")
    assert message.startswith("horizon_loss drifted: mean at horizon 7: ")
    assert f"1 of {LAYERS} numbers" in message
    picture = message.partition("difference by horizon (mean): ")[2].splitlines()[0]
    assert len(picture) == LAYERS
    assert picture.index(max(picture)) == 6
    assert message.endswith("accept it with: a command")


def test_a_shorter_curve_is_a_difference_where_it_ends() -> None:
    message = compared(CURVES["horizon_loss"], lambda values: values[..., :10]).message("")
    assert "mean at horizon 11: 30 -> 10" in message


def test_layers_are_still_counted_from_zero() -> None:
    norms = Curve("resid_post_norm", TOKEN_DIMS, np.ones((2, 3, 8)), "norm")
    message = compared(norms, at(3, factor=2)).message("")
    assert message.startswith("resid_post_norm drifted: mean at layer 2: ")
    assert "difference by layer (mean): ▁▁" in message


def test_the_loss_of_the_model_is_one_number() -> None:
    message = compared(CURVES["loss"], lambda values: values * 1.01).message("a command")
    assert message.startswith("loss drifted: mean: 2.998324 -> 3.028307, off by ")
    assert "1 of 1 numbers" in message
    assert " at " not in message.partition(",")[0]
    assert "difference by" not in message


@pytest.mark.parametrize(
    ("name", "bound"),
    [("loss", ROW.curve), ("horizon_loss", ROW.truncated), ("horizon_kl", ROW.truncated)],
)
def test_a_truncated_model_amplifies_rounding(name: str, bound: float) -> None:
    curve = CURVES[name]
    assert compared(curve, lambda values: values * (1 + 0.9 * bound)).same
    assert not compared(curve, lambda values: values * (1 + 3 * bound)).same


def test_a_divergence_of_nothing_may_be_noise() -> None:
    noisy = CURVES["horizon_kl"].values
    largest = float(np.nanmax(noisy))
    noisy = np.where(np.arange(LAYERS) > 20, 0 * noisy + 1e-7, noisy)
    curve = replace(CURVES["horizon_kl"], values=noisy)
    assert compared(curve, at(LAYERS, factor=-3)).same
    assert compared(curve, at(LAYERS, plus=0.5 * ROW.curve * largest)).same
    assert not compared(curve, at(LAYERS, plus=2 * ROW.curve * largest)).same


def test_few_tokens_may_have_another_likeliest_successor() -> None:
    curve = CURVES["horizon_top1"]
    token = 1 / np.isfinite(curve.values[..., 0]).sum()
    assert compared(curve, at(4, plus=token), step=2 * token).same
    assert not compared(curve, at(4, plus=token)).same
    assert not compared(curve, at(4, plus=3 * token), step=2 * token).same
    assert compared(curve, at(4, plus=0.9 * ROW.truncated)).same  # of very many


def test_the_step_of_a_neuron_is_whole_at_bos_and_a_tokens_share_elsewhere() -> None:
    rates = Curve("activation_rate", TOKEN_DIMS, np.full((2, 3, 8), 0.25), "fraction")

    def bos(values: Floats) -> Floats:
        values[:, 0] += 0.01
        return values

    assert compared(rates, bos, step=0.02, sampled=4).same
    assert not compared(rates, lambda values: values + 0.01, step=0.02, sampled=4).same
    assert compared(rates, lambda values: values + 0.005, step=0.02, sampled=4).same


def test_a_value_that_is_lost_is_a_difference() -> None:
    message = compared(CURVES["horizon_kl"], at(2, factor=np.nan)).message("")
    assert "mean at horizon 2: 4.672805 -> nan, off by NaN on one side" in message


def test_the_closest_number_is_known_where_nothing_has_moved() -> None:
    norms = Curve("resid_post_norm", TOKEN_DIMS, np.ones((2, 3, 8)), "norm")
    comparison = compared(norms, at(3, factor=1 + ROW.curve / 4))
    assert comparison.same
    assert comparison.margin == pytest.approx(0.25)
    assert comparison.closest is not None
    assert comparison.closest.index == 2
    assert compared(norms, lambda values: values).margin == 0
    assert compared(norms, at(3, factor=2)).margin == pytest.approx(1 / ROW.curve)


def test_another_constant_of_the_model_is_a_difference_without_a_place() -> None:
    norms = Curve("ln1_normalized_norm", TOKEN_DIMS, np.ones((2, 3, 8)), "norm")
    numbers = summary(norms)
    constants = {"norm_eps": (1e-5, 1e-6)}
    comparison = compare_curves(norms.name, numbers, numbers, ROW, 0.0, constants)
    assert not comparison.same
    message = comparison.message("")
    assert message.startswith("ln1_normalized_norm drifted: norm_eps: 1e-05 -> 1e-06, off by 9.")
    assert "difference by layer" not in message
    same = {"norm_eps": (1e-5, 1e-5)}
    assert compare_curves(norms.name, numbers, numbers, ROW, 0.0, same).same


@pytest.mark.parametrize(("neurons", "same"), [(2, True), (5, False)])
def test_a_neuron_or_two_of_all_tokens_may_turn_on_by_rounding(neurons: int, same: bool) -> None:
    tokens, width = 20, 100
    rates = Curve("activation_rate", TOKEN_DIMS, np.full((1, tokens + 1, 8), 0.5), "fraction")
    turned = rates.values.copy()
    turned[0, 1:, 3] += neurons / width / tokens
    changed = summary(replace(rates, values=turned))
    step = 2 / width
    assert compare_curves("", summary(rates), changed, ROW, step, sampled=tokens).same is same


def test_a_number_of_several_axes_is_called_by_each() -> None:
    heads = Curve("ov_frobenius", ("head", "layer"), np.ones((3, 8)), "norm")

    def change(values: Floats) -> Floats:
        values[2, 5] *= 1.001
        values[1, 5] *= 1.1
        return values

    comparison = compared(heads, change)
    worst = next(d for d in comparison.differences if d.part == "values")
    assert comparison.name(worst) == "values at head 1, layer 5"
    assert comparison.name(comparison.differences[0]) == "mean at layer 5"
    assert comparison.picture.index(max(comparison.picture)) == 5
    assert len(comparison.picture) == 8
    shift = Curve("centring_logit_shift", ("pass",), np.zeros(1), "relative shift")
    comparison = compared(shift, lambda values: values + 1)
    assert comparison.name(comparison.differences[0]) == "values"
    assert comparison.picture == ""
