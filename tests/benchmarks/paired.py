"""Ratios in the place of seconds, so that a stored result holds on another machine.

Two pieces of work are timed in turn within one run: the machine's speed drifts, their ratio
does not. pytest-benchmark is told ratios by a clock that only moves when one was taken, so
its statistics, its files and its comparison with stored ones are of ratios.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

Work = Callable[[], object]


class RatioClock:
    """Time as pytest-benchmark sees it: what was added up so far."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


CLOCK = RatioClock()


def seconds(work: Work) -> float:
    """How long ``work`` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def paired(benchmark: Any, subject: Work, base: Work, rounds: int, **facts: Any) -> None:
    """The subject's time over the base's, in pairs; half of the pairs start with the base.

    Args:
        facts: what the page says of it: ``what``, ``over``, ``target`` (the largest ratio that
            is wanted) or ``target_seconds``.
    """
    mine: list[float] = []
    theirs: list[float] = []

    def ratio() -> float:
        if len(mine) % 2:
            mine.append(seconds(subject))
            theirs.append(seconds(base))
        else:
            theirs.append(seconds(base))
            mine.append(seconds(subject))
        return mine[-1] / theirs[-1]

    drawn(benchmark, ratio, rounds, **facts)
    benchmark.extra_info["seconds"] = statistics.median(mine)
    benchmark.extra_info["base_seconds"] = statistics.median(theirs)


def drawn(benchmark: Any, ratio: Callable[[], float], rounds: int, **facts: Any) -> None:
    """Ratios that ``ratio`` gives, one a round."""

    def advance() -> None:
        CLOCK.now += ratio()

    benchmark.extra_info.update(facts)
    benchmark.pedantic(advance, rounds=rounds)
