"""Model specs: every option, alias and default, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from residcheck.errors import ExitStatus, UsageError
from residcheck.models.spec import ModelSpec, parse_spec


def test_defaults() -> None:
    spec = parse_spec("gpt2")
    assert spec == ModelSpec(
        name="gpt2",
        revision=None,
        dtype="float32",
        device="cpu",
        backend="transformer_lens",
        processing="processed",
        attention="",
    )


@pytest.mark.parametrize("name", ["gpt2", "EleutherAI/pythia-1.4b", "smollm2-135m", "m.gguf"])
def test_a_name_alone_is_kept(name: str) -> None:
    assert parse_spec(name).name == name
    assert parse_spec(f"  {name}\n").name == name


@pytest.mark.parametrize(
    ("dtype", "aliases"),
    [
        ("float32", ["float32", "fp32", "f32"]),
        ("bfloat16", ["bfloat16", "bf16"]),
        ("float16", ["float16", "fp16", "f16", "half"]),
        ("float64", ["float64", "fp64", "f64", "double"]),
    ],
)
def test_dtype_has_aliases(dtype: str, aliases: list[str]) -> None:
    assert {parse_spec(f"gpt2,dtype={alias}").dtype for alias in aliases} == {dtype}


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:0", "cuda:11", "auto", "mps"])
def test_device(device: str) -> None:
    assert parse_spec(f"gpt2,device={device}").device == device


@pytest.mark.parametrize(
    ("options", "backend", "processing"),
    [
        ("", "transformer_lens", "processed"),
        (",backend=transformer_lens", "transformer_lens", "processed"),
        (",processing=raw", "transformer_lens", "raw"),
        (",processing=processed", "transformer_lens", "processed"),
        (",backend=transformers", "transformers", "raw"),
        (",backend=transformers,processing=raw", "transformers", "raw"),
        (",backend=nnsight", "nnsight", "raw"),
        (",processing=raw,backend=transformers", "transformers", "raw"),
    ],
)
def test_processing_follows_the_backend(options: str, backend: str, processing: str) -> None:
    spec = parse_spec(f"gpt2{options}")
    assert (spec.backend, spec.processing) == (backend, processing)


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flash_attention_2"])
def test_attention(attention: str) -> None:
    assert parse_spec(f"gpt2,attention={attention}").attention == attention


def test_all_at_once() -> None:
    text = "a/b@v1.0,dtype=bf16,device=cuda:1,backend=transformers,processing=raw,attention=sdpa"
    assert parse_spec(text) == ModelSpec(
        "a/b", "v1.0", "bfloat16", "cuda:1", "transformers", "raw", "sdpa"
    )


@pytest.mark.parametrize(
    ("text", "name", "revision"),
    [
        ("gpt2@main", "gpt2", "main"),
        ("org/model@refs/pr/3", "org/model", "refs/pr/3"),
        ("gpt2@607a30d,dtype=bf16", "gpt2", "607a30d"),
        ("a@b@c", "a@b", "c"),
    ],
)
def test_revision(text: str, name: str, revision: str) -> None:
    spec = parse_spec(text)
    assert (spec.name, spec.revision) == (name, revision)


ODD_NAMES = ["plain", "a,b", "a,dtype=fp16", "user@host", "x@y,z=1", "with space", "ünïcode"]


@pytest.mark.parametrize("folder", ODD_NAMES)
def test_a_path_that_exists_is_taken_whole(folder: str, tmp_path: Path) -> None:
    path = tmp_path / folder
    path.mkdir()
    assert parse_spec(str(path)) == ModelSpec(str(path))


@pytest.mark.parametrize("file", ["model.gguf", "a,b.gguf", "user@host.gguf"])
def test_a_path_that_exists_takes_options(file: str, tmp_path: Path) -> None:
    path = tmp_path / file
    path.write_bytes(b"GGUF")
    spec = parse_spec(f"{path},dtype=bf16,device=cuda")
    assert spec == ModelSpec(str(path), dtype="bfloat16", device="cuda")


@pytest.mark.parametrize(
    "name",
    ["a" * 300, "a\0b", "~no-such-user/model"],
    ids=["too long", "null byte", "no such user"],
)
def test_what_cannot_be_a_path_is_a_name(name: str) -> None:
    assert parse_spec(name).name == name


def test_an_existing_relative_path_is_no_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gpt2@mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse_spec("gpt2@mine,dtype=bf16").revision is None
    assert parse_spec("gpt2@main").revision == "main"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("gpt2,dtyp=bf16", "unknown option 'dtyp'"),
        ("gpt2,revision=main", "unknown option 'revision'"),
        ("gpt2,dtype=int8", "unknown dtype 'int8'"),
        ("gpt2,dtype=", "option 'dtype' has no value"),
        ("gpt2,backend=nnterp", "unknown backend 'nnterp'"),
        ("gpt2,processing=folded", "unknown processing 'folded'"),
        ("gpt2,device=gpu", "unknown device 'gpu'"),
        ("gpt2,device=cuda:", "unknown device 'cuda:'"),
        ("gpt2,device=cuda:x", "unknown device 'cuda:x'"),
        ("gpt2,device=cpu:0", "unknown device 'cpu:0'"),
        ("gpt2,backend=transformers,processing=processed", "no processed weights"),
        ("gpt2,backend=nnsight,processing=processed", "no processed weights"),
        ("gpt2@", "no revision after '@'"),
        ("gpt2@,dtype=bf16", "no revision after '@'"),
        ("", "name is empty"),
        ("   ", "name is empty"),
        ("@main", "name is empty"),
        (",dtype=bf16", "name is empty"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error_that_names_it(text: str, named: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_spec(text)
    assert named in caught.value.message
    assert caught.value.exit_status is ExitStatus.USAGE


@pytest.mark.parametrize(
    ("text", "choices"),
    [
        ("gpt2,oops=1", ["dtype", "device", "backend", "processing", "attention"]),
        ("gpt2,dtype=int8", ["float32", "bf16"]),
        ("gpt2,backend=x", ["transformer_lens", "transformers", "nnsight"]),
        ("gpt2,device=x", ["cpu", "cuda", "mps"]),
    ],
)
def test_the_hint_lists_the_choices(text: str, choices: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        parse_spec(text)
    assert all(choice in caught.value.hint for choice in choices)


def test_with_options_replaces_what_is_given() -> None:
    spec = ModelSpec("gpt2", "main")
    changed = spec.with_options(dtype="half", device="cuda", attention="eager")
    assert changed == ModelSpec("gpt2", "main", "float16", "cuda", attention="eager")
    assert spec == ModelSpec("gpt2", "main")


@pytest.mark.parametrize("nothing", [None, ""])
def test_with_options_leaves_alone_what_is_not_given(nothing: str | None) -> None:
    spec = ModelSpec("gpt2", None, "bfloat16", "cuda", "transformers", "raw", "sdpa")
    options = ("dtype", "device", "backend", "processing", "attention")
    assert spec.with_options(**dict.fromkeys(options, nothing)) == spec


@pytest.mark.parametrize(
    ("backend", "processing"), [("transformers", "raw"), ("transformer_lens", "processed")]
)
def test_another_backend_brings_its_own_processing(backend: str, processing: str) -> None:
    for start in ("transformers", "transformer_lens"):
        spec = ModelSpec("gpt2", backend=start).with_options(backend=backend)
        assert (spec.backend, spec.processing) == (backend, processing)


def test_naming_the_same_backend_keeps_raw_weights_raw() -> None:
    spec = parse_spec("gpt2,processing=raw").with_options(backend="transformer_lens")
    assert spec.processing == "raw"


def test_with_options_checks_like_parsing() -> None:
    with pytest.raises(UsageError, match="unknown dtype"):
        ModelSpec("gpt2").with_options(dtype="int8")
    with pytest.raises(UsageError, match="no processed weights"):
        ModelSpec("gpt2", backend="transformers").with_options(processing="processed")


@pytest.mark.parametrize("text", ["gpt2", "gpt2@main", "org/model@refs/pr/3"])
def test_str_is_name_and_revision(text: str) -> None:
    assert str(parse_spec(text)) == text
    assert str(parse_spec(f"{text},dtype=bf16")) == text
