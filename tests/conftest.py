"""Fixtures that several test files share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tiny import Tiny

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores, threads would fight over them
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch on one thread, as ``tiny`` has it; for modules that make their models otherwise."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    """``tiny(family, **overrides)``: the folder of a tiny model, built once a session.

    Torch runs on one thread from then on: sharing out operations of microseconds among
    the cores of a busy machine takes a hundred times longer than doing them.
    """
    import torch
    from tiny import build

    folders: dict[str, Path] = {}

    def folder(family: str, **overrides: Any) -> Path:
        key = f"{family} {sorted(overrides.items())}"
        if key not in folders:
            folders[key] = build(family, tmp_path_factory.mktemp(family), **overrides)
        return folders[key]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield folder
    torch.set_num_threads(threads)
