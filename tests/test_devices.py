"""Devices that a model may be put on, and what is set and said for them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from tiny import Tiny

from residcheck.errors import LoadError, UsageError
from residcheck.measure import installed
from residcheck.models import ModelSpec, check_device, parse_spec
from residcheck.models.devices import refuse_offloaded, set_products
from residcheck.tolerances import TOLERANCES, tolerance
from residcheck.workers import VISIBLE, model_of, own_gpu, take_own_gpu

LOAD = sys.modules["residcheck.models.load"]


@pytest.fixture
def precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("precision")
def test_float32_products_are_in_float32_on_a_gpu_whatever_was_set_before() -> None:
    torch.set_float32_matmul_precision("high")  # as NVIDIA's containers do
    set_products(ModelSpec("x", device="cpu"))
    assert torch.get_float32_matmul_precision() == "high"  # nobody's business on a CPU
    for device in ("cuda", "cuda:1", "auto"):
        torch.set_float32_matmul_precision("high")
        set_products(ModelSpec("x", device=device))
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cuda.matmul.allow_tf32
    set_products(ModelSpec("x", device="cuda", dtype="tf32"))
    assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.usefixtures("precision")
def test_loading_for_a_gpu_sets_them(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LOAD, "check_device", lambda device: None)
    monkeypatch.setattr(LOAD, "_placed", lambda loaded: loaded)
    torch.set_float32_matmul_precision("high")
    LOAD.load(ModelSpec(str(tiny("llama")), device="cuda"))
    assert torch.get_float32_matmul_precision() == "highest"


def test_tf32_is_for_gpus_and_is_held_to_its_digits() -> None:
    spec = parse_spec("gpt2,dtype=tf32")
    with pytest.raises(UsageError, match="tf32 is for CUDA GPUs, not for cpu"):
        set_products(spec)
    assert (spec.dtype, spec.torch_dtype) == ("tf32", "float32")
    row = tolerance("float32", "tf32")
    assert row == TOLERANCES["tf32"]
    assert row.product == TOLERANCES["float16"].product
    assert row.identity == TOLERANCES["float32"].identity
    assert tolerance("tf32", "float16") == TOLERANCES["float16"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_model_is_not_spread_where_there_is_no_gpu() -> None:
    with pytest.raises(UsageError, match="device auto was asked for, but torch finds no CUDA"):
        check_device("auto")


def test_spreading_needs_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("residcheck.models.devices.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="not installed") as said:
        check_device("auto")
    assert "pip install 'accelerate" in said.value.hint
    check_device("cuda")


def test_a_model_that_is_left_on_the_cpu_in_part_is_refused() -> None:
    refuse_offloaded("m", SimpleNamespace())
    refuse_offloaded("m", SimpleNamespace(hf_device_map={"embed": 0, "layers.0": 1}))
    placed = {"embed": 0, "layers.8": "cpu", "layers.9": "disk"}
    with pytest.raises(LoadError, match=r"layers\.8 and 1 more would stay on the CPU"):
        refuse_offloaded("m", SimpleNamespace(hf_device_map=placed))


def test_a_run_names_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {0: "A", 1: "B", 2: "A", "cuda": "A"}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", names.__getitem__)
    assert installed("cpu")["accelerator"] == "none"
    assert "float32_products" not in installed("cpu")
    assert installed("cuda")["accelerator"] == "A"
    assert installed("auto")["accelerator"] == "2 x A, B"
    assert installed("auto")["float32_products"] == torch.get_float32_matmul_precision()


@pytest.mark.parametrize(
    ("worker", "visible", "own"),
    [
        (0, None, "0"),
        (3, None, "3"),
        (5, None, "1"),
        (0, "2,3", "2"),
        (1, "2, 3", "3"),
        (2, "2,3", "2"),
        (1, "GPU-8f3, MIG-11", "MIG-11"),
        (4, "6", "6"),
        (0, "", None),
    ],
)
def test_every_worker_has_a_gpu_of_its_own(worker: int, visible: str | None, own: str) -> None:
    assert own_gpu(worker, visible, lambda: 4) == own


@pytest.mark.parametrize(
    ("node", "model"),
    [
        ("t.py::test_a[gpt2]", "gpt2"),
        ("t.py::test_curve[gpt2-xl-bos_spread]", "gpt2-xl"),
        ("t.py::test_curve[gpt2-bos_spread]", "gpt2"),
        ("t.py::test_a[org/x@main,dtype=bf16]", "org/x@main,dtype=bf16"),
        ("t.py::test_a[gpt22]", None),
        ("t.py::test_a", None),
    ],
)
def test_the_model_of_a_test_is_in_its_id(node: str, model: str | None) -> None:
    assert model_of(node, ["gpt2", "gpt2-xl", "org/x@main,dtype=bf16"]) == model


def test_without_a_gpu_there_is_none_to_take() -> None:
    assert own_gpu(1, None, lambda: 0) is None


@pytest.mark.parametrize(
    ("devices", "shown"),
    [({"cuda"}, "7"), ({"cpu"}, "5,7"), ({"cuda:1", "cuda"}, "5,7"), ({"auto"}, "5,7")],
)
def test_a_gpu_that_was_named_is_left_to_be_seen(
    devices: set[str], shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VISIBLE, "5,7")
    take_own_gpu("gw3", devices)
    assert os.environ[VISIBLE] == shown
