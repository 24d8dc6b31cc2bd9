"""A model in one string: ``NAME[@REVISION][,option=value...]``."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from residcheck.errors import UsageError
from residcheck.planted import is_planted, read_plan

DTYPES = {
    "float32": "float32",
    "fp32": "float32",
    "f32": "float32",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
    "f16": "float16",
    "half": "float16",
    "float64": "float64",
    "fp64": "float64",
    "f64": "float64",
    "double": "float64",
    "tf32": "tf32",
}
TF32 = "tf32"  # float32 whose matrix products are made of factors of 11 bits; CUDA only
SPREAD = "auto"  # over all GPUs there are, by accelerate
BACKENDS = ("transformer_lens", "transformers", "nnsight")
PROCESSING = ("processed", "raw")
OPTIONS = ("dtype", "device", "backend", "processing", "attention")

_TRAILING_OPTIONS = re.compile(r"^(?P<name>.*?)(?P<options>(?:,[a-z_]+=[^,=]*)*)$", re.DOTALL)


@dataclass(frozen=True)
class ModelSpec:
    """Which model, and how to run it.

    Args:
        name: a built-in name, a hub id, the path of a folder or ``.gguf`` file, or
            ``planted:...``, a model whose answers are known.
        revision: branch, tag or commit of a hub model.
        dtype: what the model computes in; ``float32`` unless said. ``tf32`` is float32 with
            matrix products in TF32, on CUDA.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; ``auto`` spreads the layers over all
            GPUs there are.
        backend: the library that taps the model.
        processing: ``processed`` weights (gains folded, writing weights centred) as
            TransformerLens makes them, or ``raw`` ones. The other backends run the
            plain modules and so are always ``raw``.
        attention: attention kernel of transformers (``eager``, ``sdpa``,
            ``flash_attention_2``); empty for the backend's default.
    """

    name: str
    revision: str | None = None
    dtype: str = "float32"
    device: str = "cpu"
    backend: str = "transformer_lens"
    processing: str = ""
    attention: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            raise UsageError("the model's name is empty", "try: residcheck models")
        object.__setattr__(self, "dtype", _one_of("dtype", self.dtype, DTYPES))
        _one_of("backend", self.backend, BACKENDS)
        raw_only = self.backend != "transformer_lens"
        processing = self.processing or ("raw" if raw_only else "processed")
        _one_of("processing", processing, PROCESSING)
        if raw_only and processing != "raw":
            raise UsageError(
                f"the {self.backend} backend runs the plain modules: it has no processed weights",
                "leave processing out, or use backend=transformer_lens",
            )
        object.__setattr__(self, "processing", processing)
        if not re.fullmatch(rf"cpu|mps|{SPREAD}|cuda(:\d+)?", self.device):
            raise UsageError(
                f"unknown device {self.device!r}", "use cpu, cuda, cuda:N, auto or mps"
            )

    @property
    def torch_dtype(self) -> str:
        """What torch calls the dtype that weights and activations are held in."""
        return "float32" if self.dtype == TF32 else self.dtype

    def with_options(self, **options: str | None) -> ModelSpec:
        """This spec with some options replaced; None and empty values leave them alone."""
        given = {key: value for key, value in options.items() if value}
        if given.get("backend", self.backend) != self.backend:
            given.setdefault("processing", "")  # the other backend's own default
        return replace(self, **given)

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"


def parse_spec(text: str) -> ModelSpec:
    """Read a spec string.

    A path that exists is taken whole, so that commas and at-signs in paths work.

    Raises:
        UsageError: an option that does not exist or a value that it does not take.
    """
    text = text.strip()
    if is_planted(text):
        return _parse_planted(text)
    if path_exists(text):
        return ModelSpec(text)
    match = _TRAILING_OPTIONS.match(text)
    assert match is not None  # the name matches anything
    name, options = match["name"], _read_options(match["options"], text)
    if "," in name and not path_exists(name):
        raise UsageError(
            f"cannot read the options of model spec {text!r}",
            "options follow the name without spaces: gpt2-xl@REVISION,dtype=bf16",
        )
    revision = None
    if "@" in name and not path_exists(name):
        name, _, revision = name.rpartition("@")
        if not revision:
            raise UsageError(f"no revision after '@' in {text!r}")
    return ModelSpec(name, revision).with_options(**options)


def _parse_planted(text: str) -> ModelSpec:
    """What is planted and how to run it are options of one list."""
    parts = text.split(",")
    options = [part for part in parts[1:] if part.partition("=")[0] in OPTIONS]
    name = ",".join(part for part in parts if part not in options)
    return ModelSpec(str(read_plan(name))).with_options(**_read_options(",".join(options), text))


def path_exists(path: str) -> bool:
    """Whether ``path`` is there; names that cannot be paths are not."""
    try:
        return Path(path).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, an unknown ~user
        return False


def _read_options(text: str, spec: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        key, _, value = part.partition("=")
        if key not in OPTIONS:
            raise UsageError(
                f"unknown option {key!r} in model spec {spec!r}",
                f"options are {', '.join(OPTIONS)}",
            )
        if not value or key in options:
            fault = "is given twice" if key in options else "has no value"
            raise UsageError(f"option {key!r} {fault} in model spec {spec!r}")
        options[key] = value
    return options


def _one_of(what: str, value: str, known: dict[str, str] | tuple[str, ...]) -> str:
    if value not in known:
        raise UsageError(f"unknown {what} {value!r}", f"use one of {', '.join(known)}")
    return known[value] if isinstance(known, dict) else value
