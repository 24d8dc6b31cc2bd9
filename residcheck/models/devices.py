"""Where a model runs: on the CPU, on one GPU, or spread over all GPUs there are."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from residcheck.errors import LoadError, UsageError
from residcheck.models.spec import SPREAD, TF32, ModelSpec


def check_device(device: str) -> None:
    """Raises :class:`UsageError` where this machine or torch build lacks ``device``."""
    import torch

    kind, _, index = device.partition(":")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UsageError("device mps is not available here", "use --device cpu")
    if not on_gpu(device):
        return
    if not torch.cuda.is_available():
        built = torch.version.cuda or "none: a CPU build of torch"
        raise UsageError(
            f"device {device} was asked for, but torch finds no CUDA GPU here (CUDA: {built})",
            "use --device cpu, or install a CUDA build of torch (see the README)",
        )
    if index and int(index) >= torch.cuda.device_count():
        raise UsageError(
            f"device {device} does not exist: torch sees {torch.cuda.device_count()} GPU(s)"
        )
    if device == SPREAD and find_spec("accelerate") is None:
        raise UsageError(
            "device auto spreads a model over GPUs by accelerate, which is not installed",
            "install it with: pip install 'accelerate>=1.1'",
        )


def on_gpu(device: str) -> bool:
    """Whether a spec's device means CUDA."""
    return device == SPREAD or device.startswith("cuda")


def set_products(spec: ModelSpec) -> None:
    """Multiply float32 matrices in float32, for the rest of the process; in TF32 if asked for.

    Nothing is changed for a CPU. On a GPU, TF32 may be on without anybody's asking: NVIDIA's
    containers set ``TORCH_ALLOW_TF32_CUBLAS_OVERRIDE``. It keeps 11 of a factor's 24 bits.

    Raises:
        UsageError: TF32 on a device that is no GPU.
    """
    import torch

    if on_gpu(spec.device):
        torch.set_float32_matmul_precision("high" if spec.dtype == TF32 else "highest")
    elif spec.dtype == TF32:
        raise UsageError(f"dtype tf32 is for CUDA GPUs, not for {spec.device}", "use float32")


def refuse_offloaded(model_id: str, model: Any) -> None:
    """A spread model must be on GPUs as a whole: elsewhere its weights come only for its passes.

    Raises:
        LoadError: accelerate left a part of it on the CPU or the disk.
    """
    placed = getattr(model, "hf_device_map", {})
    left = [part for part, place in placed.items() if str(place) in ("cpu", "disk")]
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise LoadError(
            f"{model_id} does not fit on the GPUs here: {left[0] or 'all of it'}{more} would "
            "stay on the CPU or the disk",
            "try dtype=bf16, more GPUs, or device=cpu",
        )
