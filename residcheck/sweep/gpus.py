"""Which GPU each process gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

VARIABLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Slot:
    """Room for one process at a time, with the GPU that is its own; None without one."""

    gpu: str | None = None

    def variables(self, device: str) -> dict[str, str]:
        """What a model on ``device`` is told of GPUs; one that names a number sees all."""
        return {VARIABLE: self.gpu} if self.gpu is not None and device == "cuda" else {}


def visible(environment: Mapping[str, str], count: int) -> list[str]:
    """The GPUs that this process may use, as CUDA calls them.

    Args:
        environment: its variables; CUDA reads the list in them up to the first that is no GPU.
        count: how many torch sees.
    """
    if VARIABLE not in environment:
        return [str(number) for number in range(count)]
    listed = [name.strip() for name in environment[VARIABLE].split(",")]
    wrong = next((i for i, name in enumerate(listed) if name in ("", "-1")), len(listed))
    return listed[:wrong][:count]


def slots(jobs: int | None, devices: Sequence[str], gpus: Sequence[str]) -> list[Slot]:
    """A slot for each process at a time.

    Args:
        jobs: how many processes; by default one, or where a model is to run on ``cuda`` as
            many as there are GPUs. More than GPUs share them in turn.
        devices: of the models.
        gpus: those that may be used.
    """
    if "cuda" not in devices or not gpus:
        return [Slot()] * (jobs or 1)
    return [Slot(gpus[i % len(gpus)]) for i in range(jobs or len(gpus))]
