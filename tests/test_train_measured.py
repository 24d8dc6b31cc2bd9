"""What is kept of a trained model, against a plain computation of its forward pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_train_models import SCALE, WINDOWS, model_of
from test_train_runs import train
from torch import Tensor
from torch.nn import functional as F
from train_runs import corpus, run

from residcheck.errors import RunFileError
from residcheck.train.architecture import centred
from residcheck.train.arms import read_arms
from residcheck.train.finish import finish
from residcheck.train.growth import measure
from residcheck.train.measured import NORMS, WEIGHTS, Measured, read, write
from residcheck.train.stored import measured_of

pytestmark = pytest.mark.usefixtures("one_thread")
KINDS = ("baseline", "heads-16", "rescale-residual-learned", "depth-scaled", "rmsnorm", "post-norm")
HEADS = {"heads-16": 16}


def normalised(x: Tensor, gain: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    if bias is not None:
        x = x - x.mean(-1, keepdim=True)
    x = x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * gain
    return x if bias is None else x + bias


class Plain:
    """The forward pass of an arm from its tensors alone, in float64 and without hooks."""

    def __init__(self, arm: str, model: Any) -> None:
        self.w = {k.removeprefix("transformer."): v.double() for k, v in model.state_dict().items()}
        self.arm, self.heads, self.eps = arm, HEADS.get(arm, 4), model.config.layer_norm_epsilon
        self.norms: dict[str, list[np.ndarray]] = {name: [] for name in NORMS}
        self.weights: dict[str, list[float]] = {name: [] for name in WEIGHTS}

    def gain(self, name: str, layer: int) -> Tensor:
        scale = (layer + 1) ** -0.5 if self.arm == "depth-scaled" else 1.0
        return self.w[f"h.{layer}.{name}.weight"] * scale

    def norm(self, x: Tensor, name: str, layer: int) -> Tensor:
        scale = (layer + 1) ** -0.5 if self.arm == "depth-scaled" else 1.0
        bias = self.w.get(f"h.{layer}.{name}.bias")
        bias = None if bias is None else bias * scale
        return normalised(x, self.gain(name, layer), bias, self.eps)

    def linear(self, x: Tensor, name: str, layer: int) -> Tensor:
        return x @ self.w[f"h.{layer}.{name}.weight"] + self.w[f"h.{layer}.{name}.bias"]

    def attention(self, x: Tensor, layer: int) -> Tensor:
        parts = self.linear(x, "attn.c_attn", layer).chunk(3, dim=-1)
        q, k, v = (p.reshape(*p.shape[:2], self.heads, -1).transpose(1, 2) for p in parts)
        scores = q @ k.mT / q.shape[-1] ** 0.5
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(mask, -torch.inf).softmax(-1) @ v
        return self.linear(mixed.transpose(1, 2).flatten(2), "attn.c_proj", layer)

    def mlp(self, x: Tensor, layer: int) -> Tensor:
        return self.linear(F.gelu(self.linear(x, "mlp.c_fc", layer), approximate="tanh"),
                           "mlp.c_proj", layer)  # fmt: skip

    def block(self, x: Tensor, layer: int) -> Tensor:
        self.note("resid_pre_norm", x)
        if self.arm == "post-norm":
            attended = self.attention(x, layer)
            middle = self.norm(x + attended, "ln_1", layer)
            written = self.mlp(middle, layer)
            out = self.norm(middle + written, "ln_2", layer)
        else:
            x = x * self.w.get(f"h.{layer}.inverse", torch.tensor(1.0))
            attended = self.attention(self.norm(x, "ln_1", layer), layer)
            middle = x + attended
            written = self.mlp(self.norm(middle, "ln_2", layer), layer)
            out = middle + written
        for name, value in zip(NORMS[1:], (out, attended, written), strict=True):
            self.note(name, value)
        return out

    def note(self, name: str, x: Tensor) -> None:
        if self.arm not in ("rmsnorm", "post-norm"):
            x = x - x.mean(-1, keepdim=True)
        self.norms[name].append(x[:, 1:].norm(dim=-1).log().mean(1).numpy())

    def losses(self, windows: Tensor) -> np.ndarray:
        x = self.w["wte.weight"][windows[:, :-1]] + self.w["wpe.weight"][: windows.shape[1] - 1]
        for layer in range(SCALE.layers):
            x = self.block(x, layer)
        if self.arm != "post-norm":
            x = normalised(x, self.w["ln_f.weight"], self.w.get("ln_f.bias"), self.eps)
        log_p = (x @ self.w["lm_head.weight"].T).log_softmax(-1)
        return -log_p.gather(-1, windows[:, 1:, None])[..., 0].mean(1).numpy()

    def stored(self) -> dict[str, np.ndarray]:
        for layer in range(SCALE.layers):
            first, second = self.gain("ln_1", layer), self.gain("ln_2", layer)
            W_V = self.w[f"h.{layer}.attn.c_attn.weight"][:, 2 * SCALE.width :]
            W_O = self.w[f"h.{layer}.attn.c_proj.weight"]
            W_in = self.w[f"h.{layer}.mlp.c_fc.weight"]
            reads = (first, second)
            if self.arm == "post-norm":
                reads = (self.gain("ln_2", layer - 1) if layer else None, first)
            numbers = (
                first.square().mean().sqrt(),
                second.square().mean().sqrt(),
                self.ov(W_V, W_O),
                W_in.norm(),
                self.w[f"h.{layer}.mlp.c_proj.weight"].norm(),
                self.ov(self.folded(W_V, reads[0]), W_O),
                self.folded(W_in, reads[1]).norm(),
            )
            for name, value in zip(WEIGHTS, numbers, strict=True):
                self.weights[name].append(float(value))
        return {name: np.array(values) for name, values in self.weights.items()}

    def folded(self, W: Tensor, gain: Tensor | None) -> Tensor:
        if gain is None:
            return W
        W = torch.diag(gain) @ W
        return W if self.arm == "rmsnorm" else W - W.mean(0, keepdim=True)

    def ov(self, W_V: Tensor, W_O: Tensor) -> Tensor:
        size = SCALE.width // self.heads
        parts = [slice(h * size, (h + 1) * size) for h in range(self.heads)]
        return torch.stack([(W_V[:, p] @ W_O[p]).norm() for p in parts]).square().mean().sqrt()


@pytest.mark.parametrize("arm", KINDS)
def test_norms_losses_and_weights_are_those_of_a_plain_pass(arm: str, tmp_path: Path) -> None:
    model, plain = model_of(arm), Plain(arm, model_of(arm))
    grown = measure(model, WINDOWS, centred=centred(read_arms()[arm].changes))
    write(tmp_path / "measured.json", measured_of(grown, model))
    found = read(tmp_path / "measured.json")
    close = {"rtol": 1e-6, "atol": 0}  # half a unit of the seventh digit is 5e-7 at most
    np.testing.assert_allclose(found.loss, plain.losses(WINDOWS), **close)
    for name in NORMS:
        expected = np.stack(plain.norms[name], axis=1)
        np.testing.assert_allclose(found.log_norms[name], expected, **close)
    for name, expected in plain.stored().items():
        np.testing.assert_allclose(found.weights[name], expected, **close)
    inverse = [float(plain.w.get(f"h.{i}.inverse", 1.0)) for i in range(SCALE.layers)]
    np.testing.assert_allclose(found.divisors, 1 / np.array(inverse), **close)


def test_a_finished_run_has_it_on_the_windows_of_its_history(tmp_path: Path) -> None:
    one = run(tmp_path, "rescale-residual")
    trainer = train(one)
    finish(one, corpus(one.out), trainer.model, 0.0)
    found, last = read(one.measured), trainer_record(one.history)
    assert found.loss.mean() == pytest.approx(last["held_out_loss"], rel=1e-6)
    assert found.divisors == pytest.approx([1.045] * one.scale.layers)
    assert one.finished


def trainer_record(history: Path) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(history.read_text().splitlines()[-1])
    return said


def test_forty_eight_windows_of_twelve_layers_are_a_small_file(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0)
    measured = Measured(
        numbers.random(48),
        {name: numbers.random((48, 12)) for name in NORMS},
        {name: numbers.random(12) for name in WEIGHTS},
        np.ones(12),
    )
    write(tmp_path / "measured.json", measured)
    assert (tmp_path / "measured.json").stat().st_size < 60_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(schema="residcheck.train.measured/2"), "its schema is"),
        (lambda s: s.pop("loss"), "'loss' is missing"),
        (lambda s: s["weights"].pop("W_OV_folded"), "'W_OV_folded' is missing"),
        (lambda s: s["log_norms"]["mlp_out_norm"][0].__setitem__(1, float("nan")), "not finite"),
        (lambda s: s["weights"]["W_in_frobenius"].pop(), r"W_in_frobenius has the shape \(1,\)"),
    ],
)
def test_what_cannot_be_used_is_said(change: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    measured = Measured(
        np.ones(3),
        {name: np.ones((3, 2)) for name in NORMS},
        {name: np.ones(2) for name in WEIGHTS},
        np.ones(2),
    )
    write(path, measured)
    said = json.loads(path.read_text())
    change(said)
    path.write_text(json.dumps(said))
    with pytest.raises(RunFileError, match=message):
        read(path)


def test_a_file_that_is_cut_short_is_said(tmp_path: Path) -> None:
    (tmp_path / "measured.json").write_text('{"schema": ')
    with pytest.raises(RunFileError, match=r"measured\.json cannot be read"):
        read(tmp_path / "measured.json")
