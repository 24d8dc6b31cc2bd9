"""Models that cannot be measured: each stops with an error that says what is wrong."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import LAYERS, Tiny, build_gguf, config_of, new_model, tokenizer

from residcheck.corpus import Prompts, shipped
from residcheck.errors import (
    LoadError,
    NonFiniteError,
    UnsupportedModelError,
    UsageError,
)
from residcheck.measure import measure
from residcheck.models import LoadedModel, ModelSpec, load

PROMPTS = Prompts("a passage", shipped().texts[:1])


@pytest.fixture
def folder(tiny: Tiny, tmp_path: Path) -> Path:
    """A healthy tiny Llama of one's own, to be damaged."""
    return shutil.copytree(tiny("llama"), tmp_path / "model")


@pytest.fixture
def sentinel(tmp_path: Path) -> Path:
    """A file that exists only if a model's own code was run."""
    return tmp_path / "code-was-run"


def loaded(source: Path | str, **options: str) -> LoadedModel:
    return load(ModelSpec(str(source), backend="transformers").with_options(**options))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, change: Any) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_healthy_folder_loads_without_a_word(folder: Path, capfd: Any) -> None:
    model = loaded(folder)
    assert model.id == "model"
    expected = new_model("llama").state_dict()
    found = model.model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "meant"),
    [("smollm-135m", "smollm2-135m"), ("smollm2", "smollm2-135m"), ("gemma-270m", "gemma3-270m")],
)
def test_a_misspelt_name_gets_the_name_that_was_meant(name: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"did you mean '{meant}'"):
        loaded(name)


def test_a_model_that_is_not_cached_offline_is_explained(tmp_path: Path) -> None:
    code = (
        "from residcheck.models import load, ModelSpec\n"
        "try: load(ModelSpec('some-lab/some-model'))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stdout.startswith("LoadError cannot get 'some-lab/some-model' from the model hub")
    assert "offline mode is set and it is not cached" in run.stdout
    assert "smollm2-135m" in run.stdout


@pytest.mark.parametrize("name", ["no/such/../folder.gguf", "./nowhere", "/no/such/model"])
def test_a_path_that_does_not_exist_is_named(name: str) -> None:
    with pytest.raises(UsageError, match="there is no "):
        loaded(name)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"neither a model folder nor a \.gguf"):
        loaded(tmp_path / "weights.bin")


def test_a_folder_without_a_configuration_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(UsageError, match=r"it has no config\.json"):
        loaded(folder)


def test_a_damaged_configuration_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "lla')
    with pytest.raises(LoadError, match=r"cannot load .*config\.json"):
        loaded(folder)


class Payload:
    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> Any:
        return (Path.touch, (self.sentinel,))


def test_pickled_weights_are_never_opened(folder: Path, sentinel: Path) -> None:
    payload = pickle.dumps({"x": Payload(sentinel)})
    (folder / "pytorch_model.bin").write_bytes(payload)
    loaded(folder)  # safetensors are there: the pickle is passed over
    (folder / "model.safetensors").unlink()
    with pytest.raises(LoadError, match=r"only pytorch_model\.bin, .* unpickled") as caught:
        loaded(folder)
    assert "pickles are never opened" in caught.value.hint
    assert not sentinel.exists()
    pickle.loads(payload)
    assert sentinel.exists()  # the trap works


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(LoadError, match="has no safetensors weights"):
        loaded(folder)


@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.999])
def test_truncated_weights_are_refused(kept: float, folder: Path) -> None:
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: kept if isinstance(kept, int) else int(kept * len(data))])
    with pytest.raises(LoadError, match="cannot load") as caught:
        loaded(folder)
    assert "damaged or incomplete" in caught.value.hint


def test_a_pointer_in_place_of_the_weights_is_refused(folder: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123\n"
    (folder / "model.safetensors").write_text(text)
    with pytest.raises(LoadError, match="cannot load"):
        loaded(folder)


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    new_model("llama").save_pretrained(tmp_path, max_shard_size="100KB")
    tokenizer().save_pretrained(tmp_path)
    loaded(tmp_path)
    sorted(tmp_path.glob("model-*.safetensors"))[1].unlink()
    with pytest.raises(LoadError, match="cannot load"):
        loaded(tmp_path)


def test_a_missing_tensor_is_named(folder: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    edit_weights(folder, lambda weights: weights.pop(name))
    with pytest.raises(LoadError, match=f"lacks weights .*: {name}"):
        loaded(folder)


def test_a_missing_layer_is_counted(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=LAYERS + 1)
    with pytest.raises(LoadError, match=r"model\.layers\.3\..* and 6 more"):
        loaded(folder)


def test_a_configuration_with_fewer_layers_than_the_weights_is_refused(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=LAYERS - 1)
    with pytest.raises(LoadError):
        loaded(folder)


WRONG_SIZES = [{"hidden_size": 64}, {"intermediate_size": 95}, {"vocab_size": 500}]


@pytest.mark.parametrize("wrong", WRONG_SIZES, ids=lambda wrong: next(iter(wrong)))
def test_a_configuration_of_another_size_is_refused(wrong: dict[str, int], folder: Path) -> None:
    edit_config(folder, **wrong)
    with pytest.raises(LoadError):
        loaded(folder)


def test_the_tensor_of_another_size_is_named(folder: Path) -> None:
    edit_config(folder, intermediate_size=95)
    with pytest.raises(LoadError, match=r"mlp\.(up|down|gate)_proj"):
        loaded(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_no_number_is_named(value: float, folder: Path) -> None:
    name = "model.layers.2.self_attn.k_proj.weight"

    def spoil(weights: dict[str, Any]) -> None:
        weights[name][3, 4] = value

    edit_weights(folder, spoil)
    with pytest.raises(NonFiniteError, match=f"NaN or infinity in its weights: {name}"):
        loaded(folder)


@pytest.mark.parametrize("backend", ["transformer_lens", "transformers"])
def test_logits_that_overflow_are_named(backend: str, tmp_path: Path) -> None:
    model = new_model("gpt2", tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.fill_(6e4)  # within float16, as are all streams; logits are not
        model.transformer.ln_f.bias.fill_(1)
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    spec = ModelSpec(str(tmp_path), backend=backend, dtype="float16")
    with pytest.raises(NonFiniteError, match="the logits of plain transformers hold NaN or inf"):
        measure(spec, PROMPTS)


@pytest.mark.parametrize(("family", "kind"), [("bert", "BertForMaskedLM"), ("t5", "an encoder-")])
def test_models_that_are_not_causal_are_unsupported(family: str, kind: str, tiny: Tiny) -> None:
    with pytest.raises(UnsupportedModelError, match=f"not a causal language model: it is .*{kind}"):
        loaded(tiny(family))


def test_a_classifier_on_a_decoder_is_unsupported(tmp_path: Path) -> None:
    model = transformers.LlamaForSequenceClassification(config_of("llama"))
    model.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="a LlamaForSequenceClassification"):
        loaded(tmp_path)


def test_a_state_space_model_is_unsupported(tiny: Tiny) -> None:
    with pytest.raises(UnsupportedModelError, match="mamba has no stack of 3 attention blocks"):
        measure(ModelSpec(str(tiny("mamba"))), PROMPTS)


def plant_code(folder: Path, sentinel: Path) -> None:
    (folder / "own.py").write_text(f"import pathlib\npathlib.Path({str(sentinel)!r}).touch()\n")
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    edit_config(folder, auto_map=own | {"AutoTokenizer": ["own.OwnTokenizer", None]})


def test_code_beside_a_known_model_is_never_run(folder: Path, sentinel: Path) -> None:
    plant_code(folder, sentinel)
    assert type(loaded(folder).model).__module__.startswith("transformers.models.llama")
    assert not sentinel.exists()


def test_a_model_that_needs_its_own_code_is_unsupported(folder: Path, sentinel: Path) -> None:
    plant_code(folder, sentinel)
    edit_config(folder, model_type="own")
    with pytest.raises(UnsupportedModelError, match="needs code of its own"):
        loaded(folder)
    assert not sentinel.exists()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_folder_without_a_tokenizer_is_refused(family: str, tmp_path: Path) -> None:
    new_model(family).save_pretrained(tmp_path)
    with pytest.raises(LoadError, match="tokenizer"):
        measure(ModelSpec(str(tmp_path)), PROMPTS)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path: Path) -> None:
    new_model("llama", vocab_size=256).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(LoadError, match=r"tokenizer does not fit the model: token \d+ of 256"):
        measure(ModelSpec(str(tmp_path)), PROMPTS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there_is_refused(device: str, folder: Path) -> None:
    with pytest.raises(UsageError, match=f"device {device} was asked for, but torch finds no CUDA"):
        loaded(folder, device=device)


@pytest.fixture
def gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RESIDCHECK_HOME", str(tmp_path / "home"))
    build_gguf(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


def cached(path: Path) -> list[str]:
    """What the cache holds, but for its locks."""
    found = (path.parent / "home").rglob("*")
    return [f.name for f in found if f.is_file() and f.suffix != ".lock"]


def test_a_whole_gguf_file_loads_as_the_model_it_was_made_from(gguf_file: Path) -> None:
    expected = new_model("llama").state_dict()
    found = loaded(gguf_file).model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert "model.safetensors" in cached(gguf_file)


@pytest.mark.parametrize("kept", [4, 100, 0.5, 0.999])
def test_a_truncated_gguf_file_leaves_nothing_behind(kept: float, gguf_file: Path) -> None:
    data = gguf_file.read_bytes()
    gguf_file.write_bytes(data[: kept if isinstance(kept, int) else int(kept * len(data))])
    with pytest.raises(LoadError, match=r"could not read .*\.gguf") as caught:
        loaded(gguf_file)
    assert "truncated or damaged" in caught.value.hint
    assert cached(gguf_file) == []


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04 a zip archive", b"<!DOCTYPE html>"])
def test_a_file_that_is_not_gguf_leaves_nothing_behind(content: bytes, gguf_file: Path) -> None:
    gguf_file.write_bytes(content)
    with pytest.raises(LoadError, match="is not a GGUF file"):
        loaded(gguf_file)
    assert cached(gguf_file) == []
