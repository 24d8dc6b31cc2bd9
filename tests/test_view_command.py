"""``residcheck view``: a page and a table, and one clear message for each mistake."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file
from tiny import LAYERS, Tiny

from residcheck.backends.layer_weights import LayerWeights
from residcheck.backends.plain import PlainBackend
from residcheck.cli import main
from residcheck.errors import ExitStatus, UsageError
from residcheck.view.grammar import FORMS, OfDifference, OfToken, parse_direction
from residcheck.view.layers import EMBED, parse_layers

Invoke = Callable[..., Result]
TEXT = "The old mill by the river."
PLAIN = ("--backend", "transformers")


@pytest.fixture
def residcheck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """The command, run in an empty folder with an empty cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RESIDCHECK_HOME", str(tmp_path / "home"))

    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(main, [str(a) for a in arguments])

    return invoke


def test_writes_a_page_and_shows_the_extremes(
    residcheck: Invoke, tiny: Tiny, tmp_path: Path
) -> None:
    result = residcheck("view", tiny("gpt2"), "--text", TEXT, "--direction", "head:1.2")
    assert result.exit_code == ExitStatus.OK, result.output
    assert "written: view.html" in result.output
    assert "dot product" in result.output
    assert "what head 2 of layer 1 writes" in (tmp_path / "view.html").read_text()


def test_text_from_a_file_and_some_layers(residcheck: Invoke, tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT + "\n")
    arguments = ("--text-file", "text.txt", "--layers", "embed,1-2", "--out", "sub/v.html", *PLAIN)
    result = residcheck("view", tiny("llama"), "--direction", "token: the", *arguments)
    assert result.exit_code == ExitStatus.OK, result.output
    page = (tmp_path / "sub" / "v.html").read_text()
    assert 'id="layer-embed"' in page
    assert 'id="layer-2"' in page
    assert 'id="layer-0"' not in page


def test_text_as_long_as_the_model_reads(residcheck: Invoke, tiny: Tiny) -> None:
    arguments = (tiny("gpt2"), "--direction", "neuron:0.1", "--layers", 0, *PLAIN)
    assert residcheck("view", *arguments, "--text", "x" * 255).exit_code == ExitStatus.OK
    result = residcheck("view", *arguments, "--text", "x" * 256)
    assert result.exit_code == ExitStatus.USAGE
    assert "257 tokens" in result.output
    assert "at most 256" in result.output


def test_token_is_tried_with_and_without_a_space(
    residcheck: Invoke, tiny: Tiny, tmp_path: Path
) -> None:
    residcheck("view", tiny("llama"), "--text", TEXT, "--direction", "token:return", *PLAIN)
    assert "unembedding of “␣return”" in (tmp_path / "view.html").read_text()


def _vectors(folder: Path) -> None:
    np.save(folder / "short.npy", np.ones(7))
    np.save(folder / "zero.npy", np.zeros(48))
    np.save(folder / "nan.npy", np.full(48, np.nan))
    np.save(folder / "matrix.npy", np.ones((48, 2)))
    np.save(folder / "pickled.npy", np.array([print, "x"], dtype=object), allow_pickle=True)
    (folder / "words.json").write_text(json.dumps(["a", "b"]))
    (folder / "broken.json").write_text("[1, 2")
    (folder / "words.txt").write_text("not numbers")
    (folder / "nothing.txt").write_text("")
    (folder / "torn.safetensors").write_bytes(b"\x00\x01")
    save_file({"a": torch.ones(48), "b": torch.ones(48)}, folder / "two.safetensors")
    (folder / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (folder / "blank.txt").write_text(" \n\n")


@pytest.mark.parametrize(
    ("direction", "said"),
    [
        ("tokn:the", "did you mean 'token'"),
        ("Paris", "is no direction"),
        ("vec:1", "directions are token:TEXT"),
        ("token:", "empty after the colon"),
        ("token: riverboat gambler", "with or without a space before it"),
        ("token:🙂🙂", "“🙂🙂” is 8 tokens"),
        ("diff: the", "one bar between"),
        ("diff: the| of| a", "one bar between"),
        ("diff: the|the", "is zero"),
        ("head:1", "such as head:3.1"),
        ("head:1.9", "heads are 0 to 3"),
        ("head:9.1", "layers are 0 to 2"),
        ("neuron:0.100000", "there is no neuron 100000"),
        ("neuron:-1.2", "two numbers"),
        ("pc:1.0", "the first is pc:1.1"),
        ("pc:7.1", "layers are 0 to 2"),
        ("pc:1.5000", "components are 1 to 48"),
        ("file:none.npy", "No such file"),
        ("file:.", "cannot read"),
        ("file:short.npy", "has 7 numbers"),
        ("file:zero.npy", "is zero"),
        ("file:nan.npy", "NaN or infinity"),
        ("file:matrix.npy", "48 x 2"),
        ("file:pickled.npy", "allow_pickle=False"),
        ("file:words.json", "not a JSON list of numbers"),
        ("file:broken.json", "cannot read a vector"),
        ("file:words.txt", "could not convert"),
        ("file:nothing.txt", "has 0 numbers"),
        ("file:torn.safetensors", "cannot read a vector"),
        ("file:two.safetensors", "holds 2 tensors"),
    ],
)
def test_wrong_direction_gets_one_message(
    residcheck: Invoke, tiny: Tiny, tmp_path: Path, direction: str, said: str
) -> None:
    _vectors(tmp_path)
    result = residcheck("view", tiny("gpt2"), "--text", TEXT, "--direction", direction, *PLAIN)
    assert_mistake(result, ExitStatus.USAGE, said)
    assert not (tmp_path / "view.html").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("--text", ""), ExitStatus.USAGE, "text is empty"),
        (("--text", " \n"), ExitStatus.USAGE, "text is empty"),
        (("--text", "bad \udcff byte"), ExitStatus.USAGE, "not valid Unicode"),
        ((), ExitStatus.USAGE, "either --text or --text-file"),
        (("--text", "a", "--text-file", "blank.txt"), ExitStatus.USAGE, "either --text or"),
        (("--text-file", "none.txt"), ExitStatus.USAGE, "none.txt"),
        (("--text-file", "latin.txt"), ExitStatus.USAGE, "not UTF-8"),
        (("--text-file", "blank.txt"), ExitStatus.USAGE, "text is empty"),
        (("--text", TEXT, "--layers", "9"), ExitStatus.USAGE, "embed and 0 to 2"),
        (("--text", TEXT, "--layers", "1-3"), ExitStatus.USAGE, "there is no layer 3"),
        (("--text", TEXT, "--layers", "2-1"), ExitStatus.USAGE, "write 1-2"),
        (("--text", TEXT, "--layers", "1,,2"), ExitStatus.USAGE, "embed,0,5,10-20"),
        (("--text", TEXT, "--layers", "last"), ExitStatus.USAGE, "cannot read 'last'"),
        (("--text", TEXT, "--layers", "embed", "--site", "mlp_out"), ExitStatus.USAGE, "embed"),
        (("--text", TEXT, "--site", "ln1_out"), ExitStatus.USAGE, "resid_pre, resid_mid"),
        (("--text", TEXT, "--backend", "jax"), ExitStatus.USAGE, "unknown backend"),
        (("--text", TEXT, "--out", "."), ExitStatus.USAGE, "directory"),
        (("--text", TEXT, "--out", "blank.txt/v.html"), ExitStatus.COULD_NOT_MEASURE,
         "cannot write"),
    ],
)  # fmt: skip
def test_mistake_gets_one_message(
    residcheck: Invoke, tiny: Tiny, tmp_path: Path, arguments: tuple[str, ...],
    status: ExitStatus, said: str,
) -> None:  # fmt: skip
    _vectors(tmp_path)
    rest = () if "--backend" in arguments else PLAIN
    result = residcheck("view", tiny("gpt2"), "--direction", "head:0.0", *arguments, *rest)
    assert_mistake(result, status, said)


def test_parallel_blocks_have_no_middle(residcheck: Invoke, tiny: Tiny) -> None:
    result = residcheck("view", tiny("neox"), "--text", TEXT, "--direction", "head:0.0",
                        "--site", "resid_mid", *PLAIN)  # fmt: skip
    assert_mistake(result, ExitStatus.USAGE, "parallel blocks")


def test_mixture_of_experts_has_no_neurons(residcheck: Invoke, tiny: Tiny) -> None:
    result = residcheck("view", tiny("mixtral"), "--text", TEXT, "--direction", "neuron:0.0",
                        *PLAIN)  # fmt: skip
    assert_mistake(result, ExitStatus.USAGE, "no weights for neuron:0.0")


@pytest.mark.parametrize("direction", ["head:1.0", "neuron:1.0"])
def test_weights_that_are_not_the_models_are_refused(
    residcheck: Invoke, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direction: str
) -> None:
    honest = PlainBackend.weights

    def stale(backend: PlainBackend, layer: int) -> LayerWeights:
        weights = honest(backend, layer)
        assert weights.attention is not None
        return replace(weights, attention=replace(weights.attention, W_O=weights.attention.W_O * 2))

    monkeypatch.setattr(PlainBackend, "weights", stale)
    result = residcheck("view", tiny("gpt2"), "--text", TEXT, "--direction", direction, *PLAIN)
    assert_mistake(result, ExitStatus.COULD_NOT_MEASURE, "weights gate")
    assert not (tmp_path / "view.html").exists()


def assert_mistake(result: Result, status: ExitStatus, said: str) -> None:
    assert result.exit_code == status, result.output
    assert said in result.output
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)


def test_help_gives_the_grammar(residcheck: Invoke) -> None:
    output = residcheck("view", "--help").output
    for form, _ in FORMS.values():
        assert form in output


def test_directions_keep_their_spaces() -> None:
    assert parse_direction("token: Paris") == OfToken(" Paris")
    assert parse_direction("token:a:b") == OfToken("a:b")
    assert parse_direction("diff: Paris| London") == OfDifference(" Paris", " London")
    assert parse_direction(r"diff:\||or") == OfDifference("|", "or")


def test_layers_are_sorted_and_unique() -> None:
    assert parse_layers("2,0-1,1,embed").of(LAYERS, embed=True) == (EMBED, 0, 1, 2)
    assert parse_layers(None).of(2, embed=False) == (0, 1)
    with pytest.raises(UsageError, match="layers are 0 to 1"):
        parse_layers("embed").of(2, embed=False)
