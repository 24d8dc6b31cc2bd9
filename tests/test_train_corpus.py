"""The trainer's text: what is read, what is held out, and that tokens are the same twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from train_runs import TINY, corpus, library

from residcheck.errors import ResidcheckError, UsageError
from residcheck.train.batches import Batches, spread
from residcheck.train.corpus import prepare, read
from residcheck.train.library import read_library
from residcheck.train.tokens import MARK, learn, wrapped


def test_only_sources_worth_reading_are_read(tmp_path: Path) -> None:
    wanted = {"b.py": "b = 1\n", "a/c.py": "c = 2\r\n"}
    left_out = ("site-packages/x.py", "test/x.py", "a/tests/x.py", "idlelib/idle_test/x.py",
                "encodings/cp1.py", "pydoc_data/topics.py", "html/entities.py", "a/x.txt",
                "_sysconfigdata_linux.py", "config-3.11/x.py", "__pycache__/x.py")  # fmt: skip
    for name, text in wanted.items() | {(name, "x = 0\n") for name in left_out}:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    (tmp_path / "latin.py").write_bytes(b"# \xe9\n")
    (tmp_path / "empty.py").write_bytes(b"\n")
    found = read_library(tmp_path)
    assert [(d.path, d.text) for d in found.documents] == [
        ("a/c.py", "c = 2\n"),
        ("b.py", "b = 1\n"),
    ]


def test_the_hash_is_of_paths_and_texts() -> None:
    once = library()
    assert once.sha256 == library().sha256
    moved = type(once)(once.documents[1:], once.python)
    assert moved.sha256 != once.sha256


def test_held_out_documents_are_none_of_the_training_ones() -> None:
    held_out = [d.path for d in library().documents if d.held_out]
    assert 0 < len(held_out) < 12
    assert len(library().training) + len(held_out) == len(library().documents)


def test_the_same_texts_give_the_same_tokenizer() -> None:
    first, second = (learn(library().training, TINY.vocabulary).to_str() for _ in range(2))
    assert first == second


def test_any_text_survives_the_tokenizer() -> None:
    tokenizer = wrapped(learn(library().training, TINY.vocabulary))
    text = "def f(x):\n\treturn 'é ∑ 😀'\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.bos_token == tokenizer.eos_token == MARK


def test_a_corpus_is_made_once_and_begins_each_document_with_the_mark(tmp_path: Path) -> None:
    made = corpus(tmp_path)
    times = [path.stat().st_mtime_ns for path in sorted((tmp_path / "corpus").glob("*.npy"))]
    again = corpus(tmp_path)
    assert times == [p.stat().st_mtime_ns for p in sorted((tmp_path / "corpus").glob("*.npy"))]
    assert made.facts == again.facts
    assert (made.training == made.mark).sum() == len(library().training)
    assert made.training.dtype == np.uint16


def test_a_corpus_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    corpus(tmp_path)
    with pytest.raises(UsageError, match="vocabulary of"):
        prepare(tmp_path / "corpus", 512, library())


def test_a_damaged_corpus_is_told_of(tmp_path: Path) -> None:
    corpus(tmp_path)
    (tmp_path / "corpus" / "training.npy").write_bytes(b"no")
    with pytest.raises(ResidcheckError, match="cannot be read"):
        read(tmp_path / "corpus")


def test_a_step_is_a_pure_function_of_seed_and_number() -> None:
    tokens = np.arange(1000, dtype=np.uint16)
    one, other = (Batches(tokens, 0, 10, 4, seed=1) for _ in range(2))
    later = [other(step) for step in (40, 3)]
    assert (one(3) == later[1]).all()
    assert (one(40) == later[0]).all()
    assert (Batches(tokens, 0, 10, 4, seed=2)(3) != later[1]).any()


def test_an_epoch_has_every_window_once_behind_a_mark() -> None:
    batches = Batches(np.arange(1, 1011, dtype=np.uint16), 0, 10, 4, seed=1)
    seen = np.concatenate([batches(step) for step in range(25)])
    assert (seen[:, 0] == 0).all()
    assert len(np.unique(seen[:, 1:])) == 1000


def test_windows_are_spread_over_a_text() -> None:
    windows = spread(np.arange(100, dtype=np.uint16), 7, 10, 4)
    assert windows[:, :2].tolist() == [[7, 0], [7, 30], [7, 60], [7, 90]]
    assert len(spread(np.arange(100, dtype=np.uint16), 7, 10, 50)) == 10
