"""The page of benchmarks, from the JSON that pytest-benchmark writes.

``python tests/benchmarks/page.py RESULTS.json PAGE.md``
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from residcheck.files import write_text
from residcheck.report.markdown import plain

NAMES = ("what", "over", "ratio", "from", "to", "wanted", "seconds")
HEAD = f"| {' | '.join(NAMES)} |\n|{' --- |' * len(NAMES)}"


def page(results: Mapping[str, Any]) -> str:
    """The table, what it was measured on, and what misses its target."""
    rows = [row(one) for one in results["benchmarks"]]
    missed = [
        f"{one['extra_info']['what']} over {one['extra_info']['over']}"
        for one in results["benchmarks"]
        if misses(one)
    ]
    machine = results["machine_info"]
    cpu = machine.get("cpu", {})
    beside = f"{cpu.get('brand_raw', machine['processor'])}, {cpu.get('count', '?')} cores"
    said = "All targets are met." if not missed else f"Missed: {'; '.join(missed)}."
    return (
        "# Benchmarks\n\n"
        f"Written by `nox -s benchmarks` on {results['datetime'][:10]}: {beside}, Python "
        f"{machine['python_version']}. A ratio is the median over rounds in which both sides "
        "ran in turn; `from` and `to` are the smallest and the largest. "
        f"{plain(said)}\n\n" + "\n".join([HEAD, *rows]) + "\n"
    )


def row(one: Mapping[str, Any]) -> str:
    facts, stats = one["extra_info"], one["stats"]
    wanted = f"at most {facts['target']:.3g}" if "target" in facts else ""
    if "target_seconds" in facts:
        wanted = f"at most {facts['target_seconds']:g} s"
    taken = f"{facts['seconds']:.3g}" if "seconds" in facts else ""
    numbers = [f"{stats[key]:.3g}" for key in ("median", "min", "max")]
    cells = [facts["what"], facts["over"], *numbers, wanted, taken]
    return "| " + " | ".join(plain(cell) for cell in cells) + " |"


def misses(one: Mapping[str, Any]) -> bool:
    """Whether the median is above what is wanted."""
    facts = one["extra_info"]
    slow = facts.get("seconds", 0) > facts.get("target_seconds", float("inf"))
    return bool(slow or one["stats"]["median"] > facts.get("target", float("inf")))


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    write_text(target, page(json.loads(source.read_text(encoding="utf-8"))))
