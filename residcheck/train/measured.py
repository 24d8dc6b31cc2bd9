"""What is kept of a trained model beside its history: ``measured.json``, small enough to ship.

Norms are of the model as it trained, in float32 and with its true stream, on the held-out
windows of the history.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from residcheck.errors import RunFileError
from residcheck.files import write_text
from residcheck.stats.fits import Floats

SCHEMA = "residcheck.train.measured/1"
NORMS = ("resid_pre_norm", "resid_post_norm", "attn_out_norm", "mlp_out_norm")
WEIGHTS = (
    "ln1_gain_rms",
    "ln2_gain_rms",
    "W_OV_frobenius",
    "W_in_frobenius",
    "W_out_frobenius",
    "W_OV_folded",
    "W_in_folded",
)
_DIGITS = 7  # of float32


@dataclass(frozen=True, eq=False)
class Measured:
    """A trained model on the held-out windows, and its weights.

    Args:
        loss: nats, ``[window]``.
        log_norms: of each of :data:`NORMS` the mean log norm over a window's positions but
            the first, ``[window, layer]``; centred where nothing reads the stream's mean.
            ``attn_out`` and ``mlp_out`` are what is written to the stream, in a post-norm
            block before the norm.
        weights: each of :data:`WEIGHTS`, ``[layer]``: root mean square of the gains of both
            norms, with a fixed factor that acts beside them; Frobenius norms as stored, of W_OV
            the root mean square over heads of ``|W_V W_O|``; and of what reads through a norm
            with its gain, and centred where the norm centres (``folded``).
        divisors: what the stream is divided by before each block, ``[layer]``; 1 where it is not.
    """

    loss: Floats
    log_norms: Mapping[str, Floats]
    weights: Mapping[str, Floats]
    divisors: Floats


def write(path: Path, measured: Measured) -> None:
    """Write ``measured.json``, numbers to seven digits.

    Raises:
        ResidcheckError: the file cannot be written.
    """
    said = {"schema": SCHEMA, **_rounded(asdict(measured))}
    write_text(path, json.dumps(said, separators=(",", ":")) + "\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, np.ndarray):
        return [_rounded(part) for part in value]
    return float(f"{value:.{_DIGITS}g}")


def read(path: Path) -> Measured:
    """What :func:`write` wrote.

    Raises:
        RunFileError: it cannot be read, has another schema, or numbers are missing or not finite.
    """
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        if said["schema"] != SCHEMA:
            raise ValueError(f"its schema is {said['schema']!r}, not {SCHEMA!r}")
        loss, divisors = _numbers(said, "loss", None), _numbers(said, "divisors", None)
        shape = len(loss), len(divisors)
        norms = {name: _numbers(said["log_norms"], name, shape) for name in NORMS}
        weights = {name: _numbers(said["weights"], name, shape[1:]) for name in WEIGHTS}
        return Measured(loss, norms, weights, divisors)
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise RunFileError(f"{path} cannot be read: {what}") from error


def _numbers(said: Mapping[str, Any], name: str, shape: tuple[int, ...] | None) -> Floats:
    """Finite numbers of a shape; without one, of a single dimension."""
    values = np.asarray(said[name], dtype=np.float64)
    if values.shape != shape if shape is not None else (values.ndim != 1 or not values.size):
        raise ValueError(f"{name} has the shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds numbers that are not finite")
    return values
