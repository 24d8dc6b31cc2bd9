"""Peak memory of a process while SmolLM2-135M runs once on 8 prompts of 128 tokens.

``python memory.py forward|pass|cache`` prints it, in MiB, the model and libraries counted in:
Linux forgets the peak of loading and checking when it is told to. The pass and the plain
forward are of the plain backend, the cache of TransformerLens.
"""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from pathlib import Path

import torch
from bench_pass import CACHED

from residcheck.corpus import Prompts, shipped
from residcheck.measure import open_session, run_session
from residcheck.measure.tokens import batches
from residcheck.models import parse_spec
from residcheck.names import QUANTITIES


def main(kind: str) -> None:
    backend = "transformer_lens" if kind == "cache" else "transformers"
    prompts = Prompts("first passages", shipped().texts[:8])
    session = open_session(parse_spec(f"smollm2-135m,backend={backend}"), prompts, 128)
    batch = next(batches(session.encoded, 8, "cpu"))
    forget_peak()
    with torch.inference_mode():
        if kind == "pass":
            run_session(session, QUANTITIES, batch_size=8)
        elif kind == "forward":
            model = session.loaded.model
            model(input_ids=batch.tokens, attention_mask=batch.mask, use_cache=False)
        else:
            bridge = session.backend._bridge  # type: ignore[attr-defined]
            wanted = {f"blocks.{n}.{site}" for n in range(len(bridge.blocks)) for site in CACHED}
            bridge.run_with_cache(
                batch.tokens, attention_mask=batch.mask, names_filter=lambda name: name in wanted
            )
    print(peak())


def forget_peak() -> None:
    """What was freed goes back to the system; the high-water mark starts at what is held now."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak() -> float:
    """The high-water mark of resident memory, in MiB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii"))
    assert found is not None
    return int(found[1]) / 1024


if __name__ == "__main__":
    main(sys.argv[1])
