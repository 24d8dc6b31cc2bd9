"""How cost grows: linearly with prompts and layers, that of all horizons with layers squared.

A ratio is the cost per unit at a size over the cost per unit at the smallest: 1 where growth
is as said, less where something is shared out.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from paired import drawn, seconds
from tiny import build

from residcheck.corpus import Prompts, shipped
from residcheck.measure import HorizonOptions, open_session, run_session
from residcheck.models import parse_spec
from residcheck.names import EVERYTHING, HORIZON, QUANTITIES

DEPTHS = (6, 12, 24, 48)
COUNTS = (4, 8, 16, 32)
ROUNDS = 3
TARGET = 1.25


def _work(
    folder: Path, layers: int, count: int, names: tuple[str, ...], tokens: int
) -> Callable[[], object]:
    """A measurement of a random GPT-2, 256 wide."""
    shape = {"n_layer": layers, "n_embd": 256, "n_head": 4, "vocab_size": 4096}
    model = build("gpt2", folder / f"{layers}-{count}", **shape)
    texts = tuple(shipped().texts[n % len(shipped().texts)] for n in range(count))
    session = open_session(parse_spec(f"{model}"), Prompts("passages", texts), tokens)
    horizon = HorizonOptions(sample=False)
    run_session(session, names, batch_size=4, horizon=horizon)
    return lambda: run_session(session, names, batch_size=4, horizon=horizon)


def _growth(benchmark: Any, large: Any, small: Any, factor: float, what: str, over: str) -> None:
    def ratio() -> float:
        return seconds(large) / seconds(small) / factor

    drawn(benchmark, ratio, ROUNDS, what=what, over=over, target=TARGET)


@pytest.mark.parametrize("layers", DEPTHS[1:])
@pytest.mark.parametrize(
    ("names", "power"), [(tuple(QUANTITIES), 1), (tuple(HORIZON), 2)], ids=["pass", "horizons"]
)
def bench_layers(
    benchmark: Any, tmp_path: Path, names: tuple[str, ...], power: int, layers: int
) -> None:
    assert set(names) <= set(EVERYTHING)
    large, small = (_work(tmp_path, n, 4, names, 64) for n in (layers, DEPTHS[0]))
    kind = "pass" if power == 1 else "all horizons"
    what = f"{kind}, {layers} layers, per layer{' squared' if power == 2 else ''}"
    _growth(benchmark, large, small, (layers / DEPTHS[0]) ** power, what, f"{DEPTHS[0]} layers")


@pytest.mark.parametrize("count", COUNTS[1:])
def bench_prompts(benchmark: Any, tmp_path: Path, count: int) -> None:
    names = tuple(QUANTITIES)
    large, small = (_work(tmp_path, 12, n, names, 64) for n in (count, COUNTS[0]))
    what = f"pass, {count} prompts, per prompt"
    _growth(benchmark, large, small, count / COUNTS[0], what, f"{COUNTS[0]} prompts")
