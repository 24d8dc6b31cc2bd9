"""Arms: what they change, that they are paired, and what is written of them."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from train_runs import TINY

from residcheck.errors import UsageError
from residcheck.stats.rules import growth_rate
from residcheck.train.architecture import build, centred
from residcheck.train.arms import ORDER, chosen, read_arms
from residcheck.train.export import as_gpt2, exported, is_gpt2, residual_factors, shift
from residcheck.train.growth import measure
from residcheck.train.loss import loss_in_blocks, model_loss
from residcheck.train.optimiser import adamw, learning_rate
from residcheck.train.scales import growth_window, read_scales

pytestmark = pytest.mark.usefixtures("one_thread")
SCALE = replace(TINY, layers=4, width=32)
WINDOWS = torch.randint(300, (3, 17), generator=torch.Generator().manual_seed(5))
PLAIN = [name for name in ORDER if is_gpt2(read_arms()[name].changes)]


def model_of(arm: str, *, trained: bool = True, eps: float | None = None) -> Any:
    """A model of an arm; ``trained`` has gains, biases and factors far from where they begin."""
    model = build(read_arms()[arm], SCALE, 300, 0, seed=3)
    if trained:
        numbers = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                spread = 0.05 if name.endswith("inverse") else 0.2
                parameter.add_(spread * torch.randn(parameter.shape, generator=numbers))
    if eps is not None:
        for module in model.modules():
            if hasattr(module, "eps"):
                module.eps = eps
    return model.double().eval()


def streams(model: Any) -> list[torch.Tensor]:
    """What goes into each block, and what comes out of the last."""
    seen: list[torch.Tensor] = []
    hooks = [b.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
             for b in model.transformer.h]  # fmt: skip
    hooks.append(model.transformer.h[-1].register_forward_hook(lambda *a: seen.append(a[2])))
    with torch.no_grad():
        model(WINDOWS[:, :-1], use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


def test_arms_have_what_the_family_asks() -> None:
    arms = read_arms()
    assert list(arms) == list(ORDER)
    assert ORDER[0] == "baseline"
    questions = {"rescale-residual", "more-heads", "decay-layernorm-gains", "baseline", "reference"}
    assert {arm.question for arm in arms.values()} == questions
    assert {arms[name].heads for name in ("baseline", "heads-8", "heads-16")} == {4, 8, 16}
    with pytest.raises(UsageError, match="no arm"):
        chosen(["baseline", "nonsense"])


def test_scales_see_as_many_tokens_as_they_should() -> None:
    scales = read_scales()
    assert scales["small"].tokens >= 5_000_000
    assert scales["full"].tokens >= 200_000_000
    assert (scales["small"].layers, scales["small"].width) == (12, 128)
    assert (scales["full"].layers, scales["full"].width) == (24, 384)


def test_the_window_is_the_published_one_in_proportion() -> None:
    assert [(growth_window(n).first, growth_window(n).last) for n in (48, 24, 12, 2)] == [
        (5, 41), (3, 20), (2, 10), (0, 1)]  # fmt: skip


@pytest.mark.parametrize("arm", ORDER)
def test_arms_begin_with_the_same_weights(arm: str) -> None:
    baseline = build(read_arms()["baseline"], SCALE, 300, 0, seed=3).state_dict()
    for name, value in build(read_arms()[arm], SCALE, 300, 0, seed=3).state_dict().items():
        if name in baseline:
            assert torch.equal(value, baseline[name]), name


def test_output_projections_begin_smaller_by_the_root_of_twice_the_depth() -> None:
    block = model_of("baseline", trained=False).transformer.h[0]
    assert block.mlp.c_proj.weight.std().item() == pytest.approx(0.02 / math.sqrt(8), rel=0.05)
    assert block.mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("arm", ["rescale-residual", "rescale-residual-learned"])
def test_a_rescaled_block_is_f_of_x_plus_x_over_c(arm: str) -> None:
    model = model_of(arm, eps=0.0)
    plain = model_of("baseline", eps=0.0)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "inverse" not in k})
    x = streams(model)
    for layer, block in enumerate(model.transformer.h):
        inverse = torch.as_tensor(block.inverse, dtype=torch.float64).detach()
        twin = plain.transformer.h[layer]
        with torch.no_grad():
            divided = x[layer] * inverse
            attended = twin.attn(twin.ln_1(x[layer]))[0]
            middle = divided + attended
            written = attended + twin.mlp(twin.ln_2(middle))
        torch.testing.assert_close(x[layer + 1], divided + written)


def test_a_post_norm_block_is_normalised_after_each_addition() -> None:
    model = model_of("post-norm")
    x = streams(model)
    block = model.transformer.h[1]
    with torch.no_grad():
        middle = block.ln_1(x[1] + block.attn(x[1])[0])
        torch.testing.assert_close(x[2], block.ln_2(middle + block.mlp(middle)))
        logits = model(WINDOWS[:, :-1]).logits
    torch.testing.assert_close(logits, x[-1] @ model.lm_head.weight.T)


def test_depth_scaled_norms_hand_on_less_with_depth() -> None:
    model = model_of("depth-scaled", trained=False)
    x = torch.randn(50, 32, dtype=torch.float64)
    sizes = [block.ln_1(x).std().item() for block in model.transformer.h]
    assert [sizes[0] / size for size in sizes] == pytest.approx([1, 2**0.5, 3**0.5, 2])
    assert model.transformer.ln_f(x).std().item() == pytest.approx(sizes[0])


@pytest.mark.parametrize("arm", PLAIN)
def test_a_plain_gpt2_is_the_same_function_but_for_epsilon(arm: str) -> None:
    plain = as_gpt2(model_of(arm))
    assert type(plain).__name__ == "GPT2LMHeadModel"
    assert plain.config.model_type == "gpt2"
    exact = model_of(arm, eps=1e-12), as_gpt2(model_of(arm))
    for module in exact[1].modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-12
    assert float(shift(*exact, WINDOWS[:, :-1])) < 1e-9
    with_epsilon = float(shift(model_of(arm), plain, WINDOWS[:, :-1]))
    assert with_epsilon < (1e-3 if "rescale" in arm else 1e-9)


@pytest.mark.parametrize("arm", ["rescale-residual", "rescale-residual-learned"])
def test_streams_are_related_by_the_product_of_the_factors(arm: str) -> None:
    model, plain = model_of(arm, eps=1e-12), as_gpt2(model_of(arm))
    for module in plain.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-12
    factors = plain.config.residual_factors
    assert factors == residual_factors(model)
    assert len(factors) == SCALE.layers + 1
    if arm == "rescale-residual":
        assert factors == pytest.approx([1.045**k for k in range(5)])
    for trained, written, factor in zip(streams(model), streams(plain), factors, strict=True):
        torch.testing.assert_close(trained * factor, written)


@pytest.mark.parametrize("arm", ["rmsnorm", "post-norm"])
def test_what_is_no_gpt2_stays_what_it_is(arm: str) -> None:
    model = model_of(arm)
    assert exported(model) is model
    with pytest.raises(ValueError, match="same function"):
        as_gpt2(model)


@pytest.mark.parametrize("arm", ["rmsnorm", "post-norm", "rescale-residual-learned"])
def test_a_saved_control_is_loaded_without_remote_code(arm: str, tmp_path: Path) -> None:
    from residcheck.models import load, parse_spec
    from residcheck.train.tokens import learn, wrapped

    model = model_of(arm).float()
    model.save_pretrained(tmp_path / "model")
    wrapped(learn(["some text"] * 4, 300)).save_pretrained(tmp_path / "model")
    loaded = load(parse_spec(f"{tmp_path / 'model'},backend=transformers"))
    assert type(loaded.model).__name__ == "ControlModel"
    with torch.no_grad():
        given, expected = (m(WINDOWS[:, :-1]).logits for m in (loaded.model, model))
    torch.testing.assert_close(given, expected, atol=1e-4, rtol=1e-4)


def test_the_loss_in_blocks_is_cross_entropy_and_so_is_its_gradient() -> None:
    numbers = torch.Generator().manual_seed(0)
    hidden = torch.randn(700, 8, generator=numbers, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(50, 8, generator=numbers, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(50, (700,), generator=numbers)
    expected = F.cross_entropy(hidden @ weight.T, targets)
    found = loss_in_blocks(hidden, weight, targets)
    torch.testing.assert_close(found, expected)
    slopes = [torch.autograd.grad(3 * loss, (hidden, weight)) for loss in (found, expected)]
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other)
    model = model_of("baseline").float()
    losses = [model_loss(model, WINDOWS, in_blocks=blocks).item() for blocks in (True, False)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("arm", ["baseline", "decay-all", "decay-none", "rescale-residual-learned"])
def test_decay_acts_on_what_the_arm_says(arm: str) -> None:
    model = model_of(arm)
    optimiser = adamw(model, read_arms()[arm].decay)
    decayed = {id(p) for group in optimiser.param_groups if group["weight_decay"] > 0
               for p in group["params"]}  # fmt: skip
    expected = {"baseline": 2, "decay-all": 1, "decay-none": 3, "rescale-residual-learned": 2}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in decayed) == (parameter.ndim >= expected[arm]), name


def test_the_learning_rate_rises_and_falls() -> None:
    scale = replace(TINY, steps=100, warm_up=10, learning_rate=1.0)
    rates = [learning_rate(step, scale) for step in range(100)]
    assert rates[9] == max(rates) == 1.0
    assert rates[0] == pytest.approx(0.1)
    assert rates[-1] == pytest.approx(0.1)


def test_an_arm_may_be_trained_more_gently() -> None:
    scale = replace(TINY, steps=100, warm_up=10, learning_rate=1.0)
    gentle = read_arms()["post-norm"].schedule(scale)
    assert (gentle.learning_rate, gentle.warm_up) == (0.3, 50)
    assert replace(gentle, learning_rate=1.0, warm_up=10) == scale
    others = [arm for name, arm in read_arms().items() if name != "post-norm"]
    assert all(arm.schedule(scale) == scale for arm in others)


@pytest.mark.parametrize("arm", ["baseline", "rescale-residual", "rmsnorm"])
def test_growth_is_that_of_the_true_stream(arm: str) -> None:
    model = model_of(arm)
    windows = WINDOWS.repeat(3, 1)
    is_centred = centred(read_arms()[arm].changes)
    grown = measure(model, windows, centred=is_centred)
    expected = torch.stack(streams(model), dim=-2)[:, 1:]
    if is_centred:
        expected = expected - expected.mean(dim=-1, keepdim=True)
    norms = expected.norm(dim=-1).numpy()
    np.testing.assert_allclose(grown.pre[:3], norms[..., :-1])
    np.testing.assert_allclose(grown.post[:3], norms[..., 1:])
    assert grown.rate(growth_window(4)) == growth_rate(
        np.log(grown.post).mean(axis=1), growth_window(4)
    )
    assert asdict(growth_window(4))["origin"] == "fixed beforehand"
    with torch.no_grad():
        logits = model(windows[:, :-1]).logits.flatten(0, 1)
    assert grown.loss == pytest.approx(F.cross_entropy(logits, windows[:, 1:].flatten()).item())
