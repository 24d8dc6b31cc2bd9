"""A minute corpus and minute runs, for tests of the trainer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from residcheck.train.arms import Arm, read_arms
from residcheck.train.corpus import Corpus, prepare
from residcheck.train.library import Document, Library
from residcheck.train.runs import CORPUS, Run, write_run
from residcheck.train.scales import Scale, read_scales

TINY = read_scales()["tiny"]


def library() -> Library:
    """A few dozen documents; some fall into the held-out part by their paths."""
    text = "def name_{0}(value):\n    '''Return value + {0}.'''\n    return value + {0}\n\n\n"
    documents = [
        Document(f"part{i:02}.py", "".join(text.format(i * k) for k in range(1, 13)))
        for i in range(48)
    ]
    return Library(tuple(documents), "3.11.0")


def corpus(out: Path) -> Corpus:
    return prepare(out / CORPUS, TINY.vocabulary, library())


def run(out: Path, arm: str | Arm = "baseline", seed: int = 0, **changes: object) -> Run:
    """A run of the tiny scale whose settings are written."""
    corpus(out)
    chosen = read_arms()[arm] if isinstance(arm, str) else arm
    scale: Scale = replace(TINY, **changes)  # type: ignore[arg-type]
    return write_run(Run(out, chosen, scale, seed, 1))


class Silent:
    """A watcher that hears nothing."""

    def stepped(self, step: object) -> None: ...

    def recorded(self, record: object) -> None: ...
