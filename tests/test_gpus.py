"""Every measurement on a GPU, and on a model spread over two, gives what it gives on the CPU."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import accelerate.big_modeling
import numpy as np
import pytest
from accelerate import dispatch_model
from pretend import two_gpus as two_gpus
from tiny import Tiny

from residcheck.backends.anatomy import dissect
from residcheck.corpus import Prompts, shipped
from residcheck.curves import Run
from residcheck.horizon import Variant
from residcheck.measure import EVERYTHING, HorizonOptions, Session, open_session, run_session
from residcheck.measure.opening import open_loaded
from residcheck.models import LoadedModel, ModelSpec, load

PROMPTS = Prompts("some passages", shipped().texts[:3])
MAX_TOKENS = 16
SPREAD = [("gpt2", "transformers"), ("llama", "transformer_lens"), ("neox", "nnsight")]
HORIZONS = {  # the two ways in which streams of several layers meet
    "gpt2": HorizonOptions(Variant(ablation="mean", outputs="original", unit="sublayers"))
}


def measured(spec: ModelSpec) -> Run:
    return taken(open_session(spec, PROMPTS, MAX_TOKENS, names=EVERYTHING))


def taken(session: Session) -> Run:
    horizon = HORIZONS.get(session.backend.anatomy.model_type, HorizonOptions())
    return run_session(session, EVERYTHING, 2, horizon, free=lambda device: None)


def spread(loaded: LoadedModel) -> LoadedModel:
    """As ``device_map="auto"`` has it: the ends on the first GPU, later layers and the final
    norm on the second; the head on the second unless it is tied to the embedding."""
    model, blocks = loaded.model, dissect(loaded.model)
    stack, _, _ = blocks.path.rpartition(".")
    half, tied = len(blocks.modules) // 2, model.config.tie_word_embeddings
    places = {name: "cuda:0" if tied else "cuda:1" for name, _ in model.named_children()}
    del places[stack]
    for name, module in model.get_submodule(stack).named_children():
        late = "norm" in name or name == "ln_f"
        places[f"{stack}.{name}"] = "cuda:1" if late else "cuda:0"
        if module is blocks.modules:
            del places[f"{stack}.{name}"]
    for layer in range(len(blocks.modules)):
        places[f"{blocks.path}.{layer}"] = "cuda:0" if layer < half else "cuda:1"
    dispatch_model(model, places, skip_keys=model._skip_keys_device_placement)
    return replace(loaded, spec=replace(loaded.spec, device="auto"))


def assert_same(found: Run, right: Run, lacking: Collection[str] = ()) -> None:
    assert set(right.curves) - set(found.curves) == set(lacking)
    for name, curve in found.curves.items():
        assert np.array_equal(curve.values, right[name].values, equal_nan=True), name


def test_a_gpu_gives_what_the_cpu_gives(tiny: Tiny, request: pytest.FixtureRequest) -> None:
    spec = ModelSpec(str(tiny("gpt2")))
    right = measured(spec)
    request.getfixturevalue("two_gpus")
    found = measured(replace(spec, device="cuda"))
    assert_same(found, right)
    assert found.model.device == "cuda"
    assert found.environment["accelerator"] == "Pretence"
    assert found.environment["float32_products"] == "highest"


@pytest.mark.parametrize(("family", "backend"), SPREAD)
def test_two_gpus_give_what_the_cpu_gives(
    family: str,
    backend: str,
    tiny: Tiny,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = ModelSpec(str(tiny(family)), backend=backend)
    right = measured(spec)
    request.getfixturevalue("two_gpus")
    monkeypatch.setattr(accelerate.big_modeling, "check_cuda_p2p_ib_support", lambda: True)
    loaded = spread(load(spec))
    session = open_loaded(loaded, PROMPTS, MAX_TOKENS, names=EVERYTHING)
    assert loaded.devices == ["cuda:0", "cuda:1"]
    found = taken(session)
    assert_same(found, right, lacking=["rotation_logit_shift"])
    assert "spread over several devices" in found.model.missing["rotation_logit_shift"]
    assert found.environment["accelerator"] == "2 x Pretence"
