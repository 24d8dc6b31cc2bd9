"""Read one vector from a file: numpy, JSON, safetensors or plain text. Pickles are never opened."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float

from residcheck.errors import UsageError, first_line

Vector = Float[np.ndarray, " length"]


def read_vector(path: Path) -> Vector:
    """The vector in ``path``; its name's ending says how it is written.

    Raises:
        UsageError: the file cannot be read, or does not hold one vector of finite numbers.
    """
    try:
        values = _READERS.get(path.suffix.lower(), _text)(path)
    except UsageError:
        raise
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # each format has its own
        raise UsageError(
            f"cannot read a vector from {path}: {first_line(error)}",
            "write .npy, a JSON list, .safetensors with one tensor, or numbers in a text file",
        ) from error
    return _checked(values, path)


def _checked(values: np.ndarray, path: Path) -> Vector:
    values = np.squeeze(np.asarray(values))
    if values.ndim != 1 or values.dtype.kind not in "fiu":
        shape = " x ".join(map(str, values.shape)) or "one number"
        raise UsageError(f"{path} does not hold one vector of numbers ({values.dtype}, {shape})")
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise UsageError(f"the vector in {path} holds NaN or infinity")
    return values


def _npy(path: Path) -> np.ndarray:
    loaded: np.ndarray = np.load(path, allow_pickle=False)
    return loaded


def _json(path: Path) -> np.ndarray:
    values = json.loads(path.read_text(encoding="utf-8-sig"))
    numbers = isinstance(values, list) and all(type(v) in (int, float) for v in values)
    if not numbers:
        raise UsageError(f"{path} is not a JSON list of numbers")
    return np.asarray(values, dtype=np.float64)


def _safetensors(path: Path) -> np.ndarray:
    from safetensors import safe_open

    with safe_open(path, "pt") as tensors:  # as torch tensors: numpy has no bfloat16
        names = list(tensors.keys())
        if len(names) != 1:
            raise UsageError(f"{path} holds {len(names)} tensors, not one vector")
        values: np.ndarray = tensors.get_tensor(names[0]).double().numpy()
    return values


def _text(path: Path) -> np.ndarray:
    words = path.read_text(encoding="utf-8-sig").replace(",", " ").split()
    return np.asarray([float(word) for word in words])


_READERS: dict[str, Callable[[Path], np.ndarray]] = {
    ".npy": _npy,
    ".json": _json,
    ".safetensors": _safetensors,
}
