"""Built-in models that are part of the package: nothing is fetched, cached or converted."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from residcheck.errors import LoadError
from residcheck.models import BUILTIN, ModelSpec, load
from residcheck.models.builtin import PackagedModel
from residcheck.models.cache import HOME_VARIABLE, sha256
from residcheck.models.shelf import at_hand
from residcheck.session import needs_network
from residcheck.sweep.estimate import estimates
from residcheck.train.card import card

pytestmark = pytest.mark.usefixtures("one_thread")
PACKAGED = [model for model in BUILTIN.values() if isinstance(model, PackagedModel)]
MODELS = pytest.mark.parametrize("model", PACKAGED, ids=lambda model: model.name)


def provenance(model: PackagedModel) -> Any:
    return json.loads((model.folder / "provenance.json").read_text(encoding="utf-8"))


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The first packaged model, installed somewhere where it can be damaged."""
    folder = shutil.copytree(PACKAGED[0].folder, tmp_path / PACKAGED[0].name)
    monkeypatch.setattr(PackagedModel, "folder", folder)
    return folder


@MODELS
def test_it_loads_without_network_and_without_a_cache(
    model: PackagedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*args: object) -> NoReturn:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    (tmp_path / "a file").touch()
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "a file" / "home"))  # cannot be made
    spec = ModelSpec(model.name, backend="transformers")
    assert not needs_network(spec)
    loaded = load(spec)
    weights = sha256(model.folder / "model.safetensors")
    assert (loaded.id, loaded.weights) == (model.name, f"sha256:{weights}")
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}


@MODELS
def test_it_is_the_model_that_its_provenance_tells_of(model: PackagedModel) -> None:
    said = provenance(model)
    assert (model.folder / "README.md").read_text(encoding="utf-8") == card(said, plain=True)
    config = load(ModelSpec(model.name, backend="transformers")).model.config
    scale, arm = said["scale"], said["arm"]
    assert (config.n_layer, config.n_embd) == (scale["layers"], scale["width"])
    assert (config.n_head, config.n_positions) == (arm["heads"], scale["context"])
    factor = arm["changes"]["rescale"] or 1.0
    assert config.residual_factors == pytest.approx([factor**k for k in range(config.n_layer + 1)])


def test_the_two_differ_in_one_thing() -> None:
    one, other = (provenance(model) for model in PACKAGED)
    for what in ("scale", "seed", "corpus", "versions", "device", "threads"):
        assert one[what] == other[what]
    first, second = one["arm"], other["arm"]
    assert (first["heads"], first["decay"]) == (second["heads"], second["decay"])
    assert first["changes"] | {"rescale": 1.045} == second["changes"]


@MODELS
def test_its_size_is_known_before_it_is_loaded(model: PackagedModel) -> None:
    spec = ModelSpec(model.name, backend="transformers")
    count = sum(p.numel() for p in load(spec).model.parameters())
    (found,) = estimates([spec])
    assert found.size is not None
    assert found.size.parameters == count
    entry = at_hand(model)
    assert entry is not None
    assert entry.bytes == model.disk_bytes < 7e6


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def drop_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def change_config(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace("1e-05", "0.1"))


def drop_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    "damage", [cut, drop_weights, change_config, drop_tokenizer, shutil.rmtree]
)
def test_damage_is_told_with_what_to_do(damage: Any, elsewhere: Path) -> None:
    damage(elsewhere)
    with pytest.raises(LoadError, match="part of residcheck, is damaged") as caught:
        load(ModelSpec(PACKAGED[0].name))
    assert caught.value.hint == "install residcheck again"
