"""The zoo: the same numbers every time, read alike by both majors of transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from residcheck import zoo
from residcheck.models.quiet import quiet_libraries
from residcheck.regress.cells import folder_digest
from residcheck.regress.stand.witness.asked import LENGTH, VOCAB, padded, tokens

ASKED = [
    "gpt2",
    "gpt2_inverse",
    "gpt_neo",
    "gptj",
    "neox",
    "neox_sequential",
    "opt",
    "bloom",
    "falcon",
    "mpt",
    "llama",
    "llama_long",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3",
    "phi",
    "phi3",
    "stablelm",
    "olmo",
    "olmo2",
    "olmo3",
    "granite",
    "cohere",
    "gpt_oss",
]


def saved(name: str, folder: Path) -> dict[str, object]:
    with quiet_libraries():
        zoo.save(name, folder)
    return dict(json.loads((folder / "config.json").read_text()))


def test_every_family_is_there() -> None:
    assert set(ASKED) <= set(zoo.MODELS)


@pytest.mark.parametrize("name", ["gpt2", "gemma3"])
def test_a_model_is_the_same_every_time(name: str, tmp_path: Path) -> None:
    folders = [tmp_path / which for which in ("one", "other")]
    for folder in folders:
        saved(name, folder)
        torch.rand(7)  # whatever happened before
    assert folder_digest(folders[0]) == folder_digest(folders[1])


def test_gains_are_far_from_one_and_biases_from_zero(tmp_path: Path) -> None:
    saved("gpt2", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    gain = next(v for k, v in tensors.items() if k.endswith("h.0.ln_1.weight"))
    bias = next(v for k, v in tensors.items() if k.endswith("h.1.attn.c_attn.bias"))
    assert 0.2 < float(gain.std()) < 0.4
    assert 0.2 < float(bias.std()) < 0.4


def test_rotary_bases_are_not_the_default_and_written_twice(tmp_path: Path) -> None:
    config = saved("mistral", tmp_path)
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 3000.0}
    assert config["rope_theta"] == 3000.0
    assert "rope_scaling" not in config
    assert config["torch_dtype"] == "float32"


def test_scaled_rotary_embeddings_are_written_as_transformers_4_reads_them(tmp_path: Path) -> None:
    config = saved("llama_long", tmp_path)
    assert config["rope_theta"] == 10_000.0
    assert config["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }


def test_two_rotary_bases_are_written_as_transformers_4_reads_them(tmp_path: Path) -> None:
    config = saved("gemma3", tmp_path)
    assert (config["rope_theta"], config["rope_local_base_freq"]) == (300_000.0, 3000.0)
    assert config["sliding_window_pattern"] == 2  # every second layer sees everything


def test_the_arguments_make_the_saved_configuration(tmp_path: Path) -> None:
    config = saved("phi", tmp_path)
    kind, arguments = zoo.arguments_of("phi")
    assert (kind, arguments["rope_parameters"]) == ("PhiConfig", config["rope_parameters"])
    assert zoo.arguments_of("phi", old=True)[1]["partial_rotary_factor"] == 0.5


def test_prompts_are_longer_than_the_windows() -> None:
    for name, (family, overrides) in zoo.MODELS.items():
        arguments = zoo.FAMILIES[family][1] | overrides
        window = arguments.get("sliding_window", arguments.get("window_size", 0))
        assert window < LENGTH, name
    assert VOCAB == zoo.VOCAB
    ids = tokens()
    assert ids.shape == (2, LENGTH)
    assert int(ids.max()) < VOCAB


def test_padding_moves_a_row_and_masks_the_rest() -> None:
    ids = tokens()
    left, mask = padded("left")
    assert torch.equal(left[0][mask[0].bool()], ids[0, : LENGTH - 5])
    assert torch.equal(left[1], ids[1])
    right, mask = padded("right")
    assert torch.equal(right[0, : LENGTH - 5], ids[0, : LENGTH - 5])
    assert mask.sum().item() == 2 * LENGTH - 5
