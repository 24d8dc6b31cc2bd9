"""Which tests a worker of pytest-xdist takes, and which GPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

VISIBLE = "CUDA_VISIBLE_DEVICES"


def model_of(node_id: str, models: Iterable[str]) -> str | None:
    """Which of ``models`` a test is about, by the id of its parameters; None if none."""
    _, _, parameters = node_id.removesuffix("]").partition("[")
    found = [m for m in models if parameters == m or parameters.startswith(f"{m}-")]
    return max(found, key=len, default=None)


def by_model(config: Any, log: Any, models: Iterable[str]) -> Any:
    """xdist's scheduler for ``--dist loadgroup``, to which all tests of a model are one group.

    The ``xdist_group`` marks say the same, but xdist 3.8 writes the groups into an attribute of
    tests that pytest 9.2 has no more, and then spreads them as if there were none.
    """
    from xdist.scheduler import LoadGroupScheduling

    names = tuple(models)

    class ByModel(LoadGroupScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            scope: str = model_of(nodeid, names) or super()._split_scope(nodeid)
            return scope

    return ByModel(config, log)


def own_gpu(worker: int, visible: str | None, count: Callable[[], int]) -> str | None:
    """What ``CUDA_VISIBLE_DEVICES`` should be for a worker: GPU ``worker`` modulo their number.

    Args:
        visible: what it is now; None if it is not set, and then all GPUs can be seen.
        count: how many GPUs there are, asked only if it is not set.

    Returns:
        One entry of ``visible``, or one number; None where there is no GPU to take.
    """
    if visible is None:
        gpus = [str(number) for number in range(count())]
    else:
        gpus = [entry for part in visible.split(",") if (entry := part.strip())]
    return gpus[worker % len(gpus)] if gpus else None


def take_own_gpu(worker_id: str, devices: Iterable[str]) -> None:
    """Show this process, the worker ``gwN``, one GPU, unless a model names its GPU or takes all.

    To be called before CUDA is used: it reads the variable once.
    """
    if set(devices) != {"cuda"}:
        return
    own = own_gpu(int(worker_id.removeprefix("gw")), os.environ.get(VISIBLE), _count)
    if own is not None:
        os.environ[VISIBLE] = own


def _count() -> int:
    import torch

    return torch.cuda.device_count()  # by NVML, which leaves CUDA as it is
