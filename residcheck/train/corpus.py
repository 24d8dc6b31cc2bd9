"""The corpus as tokens, made once in the output folder and read by every run there."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from residcheck.errors import ResidcheckError, UsageError
from residcheck.files import partial_of, write_text
from residcheck.train.library import Library, read_library
from residcheck.train.tokens import MARK, learn

SCHEMA = "residcheck.train.corpus/1"
Tokens = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Facts:
    """What the tokens were made of; ``sha256`` is of the documents' paths and texts."""

    sha256: str
    python: str
    documents: int
    held_out_documents: int
    vocabulary: int
    training_tokens: int
    held_out_tokens: int


@dataclass(frozen=True)
class Corpus:
    """Token ids of the documents, each beginning with :data:`~residcheck.train.tokens.MARK`."""

    facts: Facts
    training: Tokens
    held_out: Tokens
    mark: int
    tokenizer: Path


def prepare(folder: Path, vocabulary: int, library: Library | None = None) -> Corpus:
    """The corpus in ``folder``, made there if there is none yet.

    What is there is kept even where this Python's library is another: runs go on with
    the tokens that they began with.

    Raises:
        UsageError: the corpus there has another number of tokens in its vocabulary.
        ResidcheckError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            if not (folder / "corpus.json").is_file():
                _make(folder, vocabulary, library or read_library())
    except OSError as error:
        raise ResidcheckError(f"cannot write {folder}: {error.strerror or error}") from error
    corpus = read(folder)
    if corpus.facts.vocabulary != vocabulary:
        raise UsageError(
            f"{folder} has a vocabulary of {corpus.facts.vocabulary} tokens, not of {vocabulary}",
            "give each scale an output folder of its own",
        )
    return corpus


def read(folder: Path) -> Corpus:
    """The corpus that :func:`prepare` left in ``folder``.

    Raises:
        ResidcheckError: there is none, or it is damaged.
    """
    try:
        said = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        if said.pop("schema") != SCHEMA:
            raise ValueError("another version wrote it")
        mark = int(said.pop("mark"))
        training, held_out = (np.load(folder / f"{name}.npy") for name in ("training", "held_out"))
        return Corpus(Facts(**said), training, held_out, mark, folder / "tokenizer.json")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResidcheckError(
            f"the corpus in {folder} cannot be read: {error}", "delete that folder"
        ) from error


def _make(folder: Path, vocabulary: int, library: Library) -> None:
    """Everything, ``corpus.json`` last: a corpus with it is whole."""
    tokenizer = learn(library.training, vocabulary)
    parts = {"training": library.training, "held_out": library.held_out}
    tokens = {name: encode(tokenizer, texts) for name, texts in parts.items()}
    for name, ids in tokens.items():
        _save(folder / f"{name}.npy", ids)
    write_text(folder / "tokenizer.json", str(tokenizer.to_str()))
    facts = Facts(
        sha256=library.sha256,
        python=library.python,
        documents=len(library.documents),
        held_out_documents=len(library.held_out),
        vocabulary=tokenizer.get_vocab_size(),
        training_tokens=len(tokens["training"]),
        held_out_tokens=len(tokens["held_out"]),
    )
    said = {"schema": SCHEMA, "mark": tokenizer.token_to_id(MARK), **asdict(facts)}
    write_text(folder / "corpus.json", json.dumps(said, indent=1) + "\n")


def encode(tokenizer: Any, texts: list[str]) -> Tokens:
    """The documents' token ids in a row, each behind a mark."""
    mark = tokenizer.token_to_id(MARK)
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    rows = [np.asarray([mark, *one.ids], dtype=np.uint16) for one in encoded]
    return np.concatenate(rows) if rows else np.zeros(0, dtype=np.uint16)


def _save(path: Path, ids: Tokens) -> None:
    partial = partial_of(path)
    try:
        with partial.open("wb") as file:
            np.save(file, ids)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
