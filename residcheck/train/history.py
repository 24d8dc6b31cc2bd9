"""What is recorded while a model trains: one JSON object a line, in the order of the steps."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from residcheck.files import write_text

EVEN = 32
"""Records at even distances; before the first of them they lie at powers of two."""


@dataclass(frozen=True)
class Record:
    """A run after ``step`` updates.

    Args:
        tokens: seen so far.
        train_loss: nats, mean over the steps since the last record; None before the first.
        held_out_loss: nats, on the fixed held-out windows.
        tokens_per_second: since the last record of this process; None where nothing was timed.
        resid_pre_norm: mean norm of what each block receives, ``[layer]``, over the tokens
            of the held-out windows but the first of each; centred where norms centre.
        resid_post_norm: the same of what each block passes on.
        rate: factor per layer of ``resid_post`` over the scale's window, as the claims fit it.
        rate_low: lower end of its 95 % interval over windows.
    """

    step: int
    tokens: int
    train_loss: float | None
    held_out_loss: float
    learning_rate: float
    tokens_per_second: float | None
    resid_pre_norm: tuple[float, ...]
    resid_post_norm: tuple[float, ...]
    rate: float
    rate_low: float
    rate_high: float


def recorded_steps(steps: int) -> frozenset[int]:
    """Before the first update, after 1, 2, 4, ..., then at even distances up to the last."""
    apart = max(1, steps // EVEN)
    early = {0} | {2**k for k in range(apart.bit_length()) if 2**k < apart}
    return frozenset(early | set(range(apart, steps, apart)) | {steps})


def append(path: Path, record: Record) -> None:
    """Add a line, flushed."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(record)) + "\n")


def read(path: Path) -> list[Record]:
    """The records of a file, up to the first line that is not whole."""
    records: list[Record] = []
    if not path.exists():
        return records
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            said = json.loads(line)
            norms = {k: tuple(said[k]) for k in ("resid_pre_norm", "resid_post_norm")}
            records.append(Record(**said | norms))
        except (ValueError, KeyError, TypeError):
            break
    return records


def rewind(path: Path, step: int | None) -> None:
    """Drop what a killed process wrote after the checkpoint of ``step``, half a line too.

    Records of ``step`` itself stay: they are written before the checkpoint. Without a
    checkpoint (None) the history begins again.
    """
    kept = [r for r in read(path) if step is not None and r.step <= step]
    write_text(path, "".join(json.dumps(asdict(record)) + "\n" for record in kept))
