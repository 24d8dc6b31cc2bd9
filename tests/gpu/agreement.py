"""Do the curves of a GPU agree with those of the CPU, and how much of each bound do they use?

``python tests/gpu/agreement.py --device cuda`` measures tiny random models of a few families, or
those of ``--model``, on both devices and holds every curve to the tolerance table. It writes
``agreement.json`` and ``agreement.md`` into ``--out`` and fails where a bound is broken. With
``--device cpu`` it compares the CPU with itself, which shows that it runs.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from residcheck import zoo
from residcheck.comparison import Row, rows_of
from residcheck.corpus import Prompts, shipped
from residcheck.curves import Run
from residcheck.measure import measure
from residcheck.models import ModelSpec, parse_spec
from residcheck.names import HORIZON

FAMILIES = ("gpt2", "llama", "gemma3", "neox")
BACKENDS = ("transformer_lens", "transformers")
PROMPTS = Prompts("some passages", shipped().texts[:8])
MAX_TOKENS = 64


def kind(row: Row) -> str:
    """Which column of the tolerance table bounds the number that came closest to its bound."""
    if row.name in HORIZON:
        return "truncated"
    return "curve" if row.place.startswith(("mean", "gmean")) else "token"


def finite(x: float) -> float | None:
    """JSON has no infinity, which is how far a NaN is from a number."""
    return x if math.isfinite(x) else None


def largest(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Of each kind of bound, the curve that uses most of it."""
    found: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row.margin):
        found[kind(row)] = {
            "share": finite(row.margin), "curve": row.name, "place": row.place,
            "off_by": finite(row.size), "bound": row.bound,
        }  # fmt: skip
    return found


def compared(spec: ModelSpec, device: str) -> tuple[Run, list[Row]]:
    """The run on ``device``, and every curve of it against the CPU's."""
    runs = [
        measure(spec.with_options(device=place), PROMPTS, max_tokens=MAX_TOKENS)
        for place in ("cpu", device)
    ]
    return runs[1], [row for row in rows_of(*runs) if not row.is_fact]


def specs(models: Sequence[str], folder: Path, dtype: str) -> Iterator[ModelSpec]:
    for name in models:
        yield parse_spec(name).with_options(dtype=dtype)
    for family in () if models else FAMILIES:
        zoo.new_model(family).save_pretrained(folder / family)
        zoo.tokenizer().save_pretrained(folder / family)
        for backend in BACKENDS:
            yield ModelSpec(str(folder / family), dtype=dtype, backend=backend)


def markdown(document: dict[str, Any]) -> str:
    lines = [
        f"Curves on {document['accelerator']} against those on the CPU, {document['dtype']}: the "
        "largest difference as a share of its bound, by what bounds it.",
        "",
        "| model | through | means | tokens | horizons | agrees |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for model in document["models"]:
        shares = model["largest"]
        told = [_share(shares.get(k)) for k in ("curve", "token", "truncated")]
        outside = ", ".join(model["different"]) or "yes"
        lines.append(f"| {model['model']} | {model['backend']} | {' | '.join(told)} | {outside} |")
    return "\n".join(lines) + "\n"


def _share(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    return "NaN on one side" if found["share"] is None else f"{found['share']:.3f}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--model", action="append", default=[], metavar="SPEC")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), metavar="FOLDER")
    options = parser.parse_args(arguments)
    document: dict[str, Any] = {"device": options.device, "dtype": options.dtype, "models": []}
    with tempfile.TemporaryDirectory() as folder:
        for spec in specs(options.model, Path(folder), options.dtype):
            run, rows = compared(spec, options.device)
            document["accelerator"] = run.environment["accelerator"]
            document["environment"] = dict(run.environment)
            document["models"].append(
                {
                    "model": run.model.id,
                    "backend": run.model.backend,
                    "largest": largest(rows),
                    "different": [row.name for row in rows if not row.sameness.passes],
                    "shares": {row.name: finite(row.margin) for row in rows},
                }
            )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "agreement.json").write_text(json.dumps(document, indent=1) + "\n")
    (options.out / "agreement.md").write_text(markdown(document))
    print(markdown(document))
    return int(any(model["different"] for model in document["models"]))


if __name__ == "__main__":
    sys.exit(main())
