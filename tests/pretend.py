"""GPUs that are none: tensors that say they are on ``cuda:0`` or ``cuda:1`` and compute on the CPU.

As on a real GPU, an operation on tensors of two devices is an error, and so what runs here
brings its tensors together where it has to, and gives what the CPU gives, bit by bit. Work in
inference mode runs without gradients instead, since there such tensors cannot be copied.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

import residcheck.models.load  # noqa: F401

CPU = torch.device("cpu")


class OnGPU(Tensor):
    """A tensor that says it is on ``device``; ``inner`` has its numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, device: torch.device) -> OnGPU:
        made: OnGPU = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=device,
        )
        made.inner = inner
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copy: Tensor = OnGPU(self.inner.clone(), self.device)
            if isinstance(self, nn.Parameter):
                copy = nn.Parameter(copy, self.requires_grad)
            memo[id(self)] = copy
        return memo[id(self)]

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _apply(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _apply(func, args, kwargs or {})


# Asked of the tensor as it seems to be, not of its numbers; or about no tensor at all.
_OF_APPEARANCE = {
    *(getattr(Tensor, name).__get__ for name in ("device", "is_cuda", "is_cpu", "grad", "grad_fn")),
    Tensor.requires_grad.__get__,  # type: ignore[attr-defined]
    Tensor.requires_grad.__set__,  # type: ignore[attr-defined]
    Tensor.requires_grad_,
    Tensor.get_device,
    Tensor.type,
    Tensor.__hash__,
    torch.device,
    torch._C._nn._parse_to,  # type: ignore[attr-defined]
    torch._has_compatible_shallow_copy_type,
}
_BETWEEN_DEVICES = {Tensor.copy_, Tensor.to, Tensor.cpu, Tensor.type_as}


def _named(x: Any) -> Any:
    """A device with its number, of whatever names one."""
    if isinstance(x, str) and x.startswith("cuda"):
        x = torch.device(x)
    bare = isinstance(x, torch.device) and x.type == "cuda" and x.index is None
    return torch.device("cuda", 0) if bare else x


def _is_gpu(x: Any) -> bool:
    return isinstance(x, torch.device) and x.type == "cuda"


def _apply(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute on the CPU; what comes out is where the arguments were, or where it is sent."""
    if func in _OF_APPEARANCE:
        with torch._C.DisableTorchFunction():
            return func(*args, **kwargs)
    flat, spec = tree_flatten((args, kwargs))
    flat = [_named(x) for x in flat]
    tensors = [x for x in flat if isinstance(x, Tensor)]
    device = _place(func, tensors, [x for x in flat if isinstance(x, torch.device)])
    bare = [x.inner if isinstance(x, OnGPU) else CPU if _is_gpu(x) else x for x in flat]
    own = {id(x.inner): x for x in tensors if isinstance(x, OnGPU)}
    args, kwargs = tree_unflatten(bare, spec)
    with torch._C.DisableTorchFunction():
        out = func(*args, **kwargs)

    def labelled(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        there = own.get(id(x))
        if there is not None and there.device == device:  # changed in place, or passed on
            return there
        return OnGPU(x, device) if _is_gpu(device) else x

    if isinstance(out, Tensor):
        return labelled(out)
    return out if isinstance(out, torch.Size) else tree_map(labelled, out)


def _place(func: Any, tensors: list[Tensor], named: list[torch.device]) -> torch.device:
    """Where the result is; raises as torch does where devices are mixed."""
    if func in _BETWEEN_DEVICES:
        if func in (Tensor.to, Tensor.type_as) and len(tensors) == 2:
            return tensors[1].device
        return CPU if func is Tensor.cpu else (*named, tensors[0].device)[0]
    # A number in a tensor without dimensions goes with any device.
    found = {x.device for x in tensors if isinstance(x, OnGPU) or x.dim()}
    if func in (Tensor.__getitem__, Tensor.__setitem__):  # indices may be on the CPU
        found -= {CPU} if isinstance(tensors[0], OnGPU) else set()
    if func is Tensor.__setitem__:  # copies what it is given
        found = {tensors[0].device}
    if len(found) > 1:
        where = ", ".join(sorted(map(str, found)))
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found {where} in {func}"
        )
    return (*named, *found, CPU)[0]


class _Sending(TorchFunctionMode):
    """Makes tensors on, and sends them to, GPUs that are none."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        flat = tree_flatten((args, kwargs))[0]
        if any(isinstance(x, OnGPU) or _is_gpu(_named(x)) for x in flat):
            return _apply(func, args, kwargs)
        return func(*args, **kwargs)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two GPUs, as far as the code can see."""
    for name, answer in {
        "device_count": lambda: 2,
        "get_device_name": lambda device=None: "Pretence",
        "empty_cache": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.setattr(sys.modules["residcheck.models.load"], "check_device", lambda device: None)
    monkeypatch.setattr(torch._C, "_InferenceMode", lambda mode: torch.no_grad())
    overwritten = torch.__future__.get_overwrite_module_params_on_conversion()
    precision = torch.get_float32_matmul_precision()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    with _Sending():
        yield
    torch.__future__.set_overwrite_module_params_on_conversion(overwritten)
    torch.set_float32_matmul_precision(precision)
