"""Prompts: the shipped passages read line by line, and users' files of every kind."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from residcheck import corpus
from residcheck.corpus import read_prompts
from residcheck.errors import UsageError

FEWEST_PASSAGES = 64
# A passage must fill the 128 tokens that are read of it: enough words, or for languages
# that are written without spaces, enough characters.
ENOUGH_WORDS, ENOUGH_CHARACTERS = 140, 350


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    path = Path(corpus.__file__).with_name("passages.jsonl")
    with path.open(encoding="utf-8", newline="\n") as lines:
        return [json.loads(line) for line in lines]


def test_shipped_prompts_are_the_file_in_order(records: list[dict[str, Any]]) -> None:
    prompts = read_prompts(None)
    assert prompts.texts == tuple(record["text"] for record in records)
    assert prompts.source == "residcheck passages"


def test_there_are_enough_passages_and_none_twice(records: list[dict[str, Any]]) -> None:
    texts = {" ".join(record["text"].split()) for record in records}
    assert len(texts) == len(records) >= FEWEST_PASSAGES


def test_no_two_passages_begin_alike(records: list[dict[str, Any]]) -> None:
    beginnings = Counter(record["text"][:40] for record in records)
    assert max(beginnings.values()) == 1


def test_passages_are_of_several_languages_and_registers(records: list[dict[str, Any]]) -> None:
    languages = Counter(record["language"] for record in records)
    registers = Counter(record["register"] for record in records)
    assert {"en", "de", "fr", "es", "zh"} <= set(languages)
    assert {"code", "dialogue", "fiction", "mathematics", "news", "science"} <= set(registers)
    assert max(registers.values()) < len(records) / 4


def test_every_passage_is_long_enough(records: list[dict[str, Any]]) -> None:
    short = [
        record["text"][:40]
        for record in records
        if len(record["text"].split()) < ENOUGH_WORDS
        and not (record["language"] == "zh" and len(record["text"]) >= ENOUGH_CHARACTERS)
    ]
    assert short == []


@pytest.mark.parametrize(
    "content",
    [
        "one\ntwo\n",
        "one\ntwo",
        "\n\none\n   \n\ttwo  \n\n",
        "one\r\ntwo\r\n",
        "\ufeffone\ntwo\n",
    ],
    ids=["plain", "no last newline", "blank lines", "CRLF", "BOM"],
)
def test_plain_text_has_one_prompt_a_line(content: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content.encode())
    assert read_prompts(path) == corpus.Prompts("prompts.txt", ("one", "two"))


def test_only_newlines_end_a_prompt(tmp_path: Path) -> None:
    """Unicode has other line separators; they belong to the text."""
    path = tmp_path / "prompts.txt"
    path.write_text("one\u2028still one\ntwo\x85still two\n", encoding="utf-8")
    assert read_prompts(path).texts == ("one\u2028still one", "two\x85still two")


JSON_LINES = '{"text": "one\\nmore", "register": "x"}\n\n{"text": "zwei ü \u2028"}\n'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("name", ["p.jsonl", "p.ndjson", "p.json", "p.txt", "prompts"])
def test_json_lines_by_name_or_by_first_line(name: str, encoding: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(JSON_LINES, encoding=encoding)
    assert read_prompts(path).texts == ("one\nmore", "zwei ü \u2028")


def test_text_that_looks_a_little_like_json_is_text(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text('{"title": "x"}\n[1, 2]\n', encoding="utf-8")
    assert read_prompts(path).texts == ('{"title": "x"}', "[1, 2]")


@pytest.mark.parametrize(
    "broken",
    ['{"text": "x"', '{"texts": "x"}', '{"text": 3}', '{"text": "  "}', '["x"]', "plain", "null"],
)
def test_a_broken_json_line_is_named_by_its_number(broken: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'{{"text": "good"}}\n\n{broken}\n', encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        read_prompts(path)
    assert f"{path}, line 3:" in caught.value.message
    assert '{"text": "..."}' in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"\n \n\t\n", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["p.txt", "p.jsonl"])
def test_an_empty_file_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"prompts file .* is empty"):
        read_prompts(path)


@pytest.mark.parametrize("content", [b"caf\xe9\n", "text\n".encode("utf-16")])
def test_a_file_that_is_not_utf8_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"latin\.txt: it is not UTF-8 text"):
        read_prompts(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.txt: No such file"):
        read_prompts(tmp_path / "nowhere.txt")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the prompts file"):
        read_prompts(tmp_path)
