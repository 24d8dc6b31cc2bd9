"""Benchmarks are of ratios: see ``paired.py``."""

from __future__ import annotations

from typing import Any

import pytest
from paired import CLOCK


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every benchmark is told time by the clock of ratios."""
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=CLOCK))


def pytest_benchmark_scale_unit(**_: Any) -> tuple[str, float]:
    """A ratio of 1.08 is shown as 1.08, not as 1,080 ms."""
    return "", 1.0


def pytest_benchmark_compare_machine_info(**_: Any) -> None:
    """Ratios may be compared across machines: no warning that another one was used."""
