"""Models that are written with a larger stream than they were trained with."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from train_runs import TINY, library

from residcheck.corpus import Prompts
from residcheck.curves import Run, load_run, save_run
from residcheck.errors import LoadError
from residcheck.measure import EVERYTHING, measure
from residcheck.measure.trained_stream import SCALED, residual_factors
from residcheck.models import ModelSpec
from residcheck.train.architecture import build
from residcheck.train.arms import read_arms
from residcheck.train.export import as_gpt2
from residcheck.train.tokens import learn, wrapped

pytestmark = pytest.mark.usefixtures("one_thread")
LAYERS = 4
PROMPTS = Prompts("two", ("def name_3(value):\n    return value + 3", "'''Return value + 4.'''"))


@pytest.fixture(scope="module")
def trained() -> Any:
    """A model with a factor of its own for each block, as if learnt."""
    from dataclasses import replace

    scale = replace(TINY, layers=LAYERS, width=32, context=64)
    model = build(read_arms()["rescale-residual-learned"], scale, 300, 0, seed=3)
    numbers = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.05 if name.endswith("inverse") else 0.2
            parameter.add_(spread * torch.randn(parameter.shape, generator=numbers))
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return wrapped(learn((d.text for d in library().documents), 300))


@pytest.fixture(scope="module")
def written(trained: Any, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "model"
    as_gpt2(trained).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@cache
def measured(folder: Path) -> Run:
    return measure(ModelSpec(str(folder), backend="transformers"), PROMPTS, names=EVERYTHING)


def with_factors(written: Path, folder: Path, factors: object) -> Path:
    """A copy whose configuration says other factors; None: it says none."""
    shutil.copytree(written, folder)
    config = json.loads((folder / "config.json").read_text())
    config["residual_factors"] = factors
    if factors is None:
        del config["residual_factors"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def streams(model: Any, ids: list[int]) -> dict[str, np.ndarray]:
    """Norms ``[position, layer]`` of the model as it was trained, from plain hooks."""
    seen: dict[str, list[torch.Tensor]] = {}

    def note(name: str, x: Any) -> None:
        x = x[0] if isinstance(x, tuple) else x
        seen.setdefault(name, []).append((x - x.mean(-1, keepdim=True))[0].norm(dim=-1))

    hooks = []
    for block in model.transformer.h:
        reading = (("resid_pre_norm", block.ln_1), ("resid_mid_norm", block.ln_2))
        writing = (
            ("attn_out_norm", block.attn),
            ("mlp_out_norm", block.mlp),
            ("resid_post_norm", block),
        )
        hooks += [m.register_forward_pre_hook(lambda _, a, n=n: note(n, a)) for n, m in reading]
        hooks += [m.register_forward_hook(lambda _m, _a, y, n=n: note(n, y)) for n, m in writing]
    with torch.no_grad():
        model(torch.tensor([ids]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return {name: torch.stack(columns, dim=-1).numpy() for name, columns in seen.items()}


def test_norms_are_those_of_the_stream_as_it_was_trained(
    trained: Any, tokenizer: Any, written: Path
) -> None:
    """The written model's norms have one epsilon, the trained ones' are over a smaller stream."""
    run = measured(written)
    for prompt, text in enumerate(PROMPTS.texts):
        ids = [0, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        for name, expected in streams(trained, ids).items():
            found = run[name].values[prompt, : len(ids)]
            np.testing.assert_allclose(found, expected, rtol=2e-3, err_msg=name)


def test_only_what_has_the_stream_s_unit_is_divided(written: Path, tmp_path: Path) -> None:
    run, plain = measured(written), measured(with_factors(written, tmp_path / "plain", None))
    factors = np.array(json.loads((written / "config.json").read_text())["residual_factors"][1:])
    assert np.abs(factors - 1).min() > 0.01
    assert SCALED <= run.curves.keys() == plain.curves.keys()
    for name, curve in run.curves.items():
        other = plain[name].values
        expected = (other / factors).astype(other.dtype) if name in SCALED else other
        np.testing.assert_array_equal(curve.values, expected, err_msg=name)


def test_the_run_says_so(written: Path, tmp_path: Path) -> None:
    run = measured(written)
    assert "as it was trained" in run.model.remark
    save_run(run, tmp_path / "run.json")
    assert load_run(tmp_path / "run.json").model == run.model


def test_factors_of_one_are_none(written: Path, tmp_path: Path) -> None:
    folder = with_factors(written, tmp_path / "ones", [1.0] * (LAYERS + 1))
    assert measured(folder).model.residual_factors == ()


@pytest.mark.parametrize(
    "factors", [[1.0, 1.1], "many", [1.0, 1.1, -1.2, 1.3, 1.4], [1.0, 1.1, float("nan"), 1, 1], 3]
)
def test_factors_that_cannot_be_some_are_refused(factors: object) -> None:
    class Config:
        residual_factors = factors

    with pytest.raises(LoadError, match="are not 5 positive numbers"):
        residual_factors(Config(), LAYERS)
