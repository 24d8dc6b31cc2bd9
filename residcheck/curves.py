"""Labelled curves and runs: what everything above the measurement speaks in.

A :class:`Curve` is a numpy array whose axes have names. A :class:`Run` is all
that was measured on one model with one set of prompts, with the provenance that
makes it repeatable. A run is stored as one JSON file (summaries and provenance,
readable anywhere) and one ``.npz`` file beside it (the per-token arrays).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from residcheck.errors import RunFileError
from residcheck.names import SAMPLED_AXES

SCHEMA = "residcheck.run/1"
_DAMAGE = (AttributeError, KeyError, TypeError, ValueError, OSError, BadZipFile)
TOKEN_DIMS = ("prompt", "position", "layer")
_COUNTED_FROM = {"layer": 0, "horizon": 1}
"""Axes whose places a summary names, and what their first place is called."""

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Curve:
    """A measured quantity with named axes.

    Args:
        name: TransformerLens' name of the quantity, e.g. ``resid_post_norm``.
        dims: the name of each axis of ``values``; per-token curves begin with
            ``("prompt", "position")``.
        values: the numbers; NaN where a prompt has no token at a position.
        unit: what the numbers count, e.g. ``"norm"`` or ``"cosine"``.
    """

    name: str
    dims: tuple[str, ...]
    values: Floats
    unit: str

    def __post_init__(self) -> None:
        if self.values.ndim != len(self.dims):
            raise ValueError(f"{self.name}: {self.values.ndim} axes for dims {self.dims}")

    @property
    def per_token(self) -> bool:
        return self.dims[:2] == TOKEN_DIMS[:2] and len(self.dims) <= len(TOKEN_DIMS)

    @cached_property
    def double(self) -> Floats:
        """The values in float64, as statistics take them."""
        return self.values.astype(np.float64)

    @cached_property
    def ordinary(self) -> Floats:
        """Values at ordinary positions, all but position 0: prompt x position x layer."""
        return self.values[:, 1:].astype(np.float64)

    @cached_property
    def bos(self) -> Floats:
        """Values at position 0: prompt x layer."""
        return self.values[:, 0].astype(np.float64)

    @cached_property
    def mean(self) -> Floats:
        """Mean over all ordinary tokens, per layer."""
        return _nanmean(self.ordinary, (0, 1))

    @cached_property
    def gmean(self) -> Floats:
        """Geometric mean over all ordinary tokens, per layer."""
        return np.exp(_nanmean(_log(self.ordinary), (0, 1)))

    @cached_property
    def prompt_mean(self) -> Floats:
        """Mean over the ordinary tokens of each prompt: prompt x layer."""
        return _nanmean(self.ordinary, 1)

    @cached_property
    def prompt_log(self) -> Floats:
        """Mean log over the ordinary tokens of each prompt: prompt x layer."""
        return _nanmean(_log(self.ordinary), 1)


def _log(values: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(values)


def _nanmean(values: Floats, axis: int | tuple[int, ...]) -> Floats:
    with warnings.catch_warnings():  # a prompt of one token has no ordinary position
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(np.nanmean(values, axis=axis))


@dataclass(frozen=True)
class ModelInfo:
    """Which model was measured, as what, and what it is built like.

    ``weights`` is ``sha256:...`` of the weight files, or ``revision:...`` for a hub
    model at a known commit. Norm kinds: ``LayerNorm`` (subtracts the mean),
    ``RMSNorm`` (does not), ``none`` (sublayers read the stream as it is).
    """

    id: str
    weights: str
    model_type: str
    n_layers: int
    d_model: int
    n_heads: int
    d_mlp: int | None
    norm: str
    norm_eps: float
    parallel: bool
    gated: bool
    activation: str
    dtype: str
    device: str
    backend: str
    processing: str
    attention: str
    missing: Mapping[str, str] = field(default_factory=dict)
    """Quantities that this architecture does not have: name -> reason."""
    residual_factors: tuple[float, ...] = ()
    """What norms in each block were divided by, where the stream that was trained is not that of
    the file (:mod:`residcheck.measure.trained_stream`); empty for other models."""

    @property
    def remark(self) -> str:
        """What is to be known of its curves; empty for most models."""
        if not self.residual_factors:
            return ""
        first, last = self.residual_factors[0], self.residual_factors[-1]
        return (
            "norms are of the stream as it was trained, that of the file divided by its "
            f"residual_factors: {first:.4g} in the first block to {last:.4g} in the last"
        )

    @property
    def norm_eps_of_layers(self) -> Floats:
        """Epsilon of the norms in the unit of the stream's norms, ``[layer]``."""
        factors = np.array(self.residual_factors or [1.0] * self.n_layers)
        return np.asarray(self.norm_eps / factors**2)


@dataclass(frozen=True)
class PromptInfo:
    """Which text was measured: hash of the token ids, how many prompts and tokens."""

    source: str
    sha256: str
    count: int
    tokens: int
    max_tokens: int
    bos: str


@dataclass(frozen=True)
class HorizonInfo:
    """How the curves over horizons were taken: the variant's fields, and on which prompts.

    The fields are those of :class:`residcheck.horizon.Variant`, which has their formulas.
    """

    ablation: str
    outputs: str
    enforced: str
    layer: int | None
    unembedding: str
    unit: str
    prompts: PromptInfo

    def __str__(self) -> str:
        """``what is further back than k layers is removed, in every layer, with ... outputs``."""
        ablated = {"zero": "removed", "mean": "replaced by its mean"}[self.ablation]
        where = {
            "everywhere": "in every layer",
            "from": f"from layer {self.layer} on",
            "at": f"at layer {self.layer} alone",
            "unembedding": "at the unembedding alone",
        }[self.enforced]
        said = f"what is further back than k {self.unit} is {ablated}, {where}"
        said += f", with {self.outputs} outputs"
        if self.unembedding == "truncated" and self.enforced != "unembedding":
            said += ", the unembedding truncated too"
        return said


@dataclass(frozen=True)
class Run:
    """Everything measured on one model with one set of prompts.

    ``spec`` is the model's name as it was asked for, which its ``id`` may not be (a folder);
    ``seeds`` are those of the experiments; ``shapes`` are those of hooks and weights.
    """

    model: ModelInfo
    environment: Mapping[str, str]
    prompts: PromptInfo
    curves: Mapping[str, Curve]
    complete: bool = True
    horizon: HorizonInfo | None = None
    spec: str = ""
    seeds: Mapping[str, int] = field(default_factory=dict)
    shapes: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Curve:
        return self.curves[name]

    @property
    def n_layers(self) -> int:
        return self.model.n_layers


def summary(curve: Curve) -> dict[str, Any]:
    """What the JSON file says of a curve; the full array is in the ``.npz`` file."""
    head: dict[str, Any] = {"dims": list(curve.dims), "unit": curve.unit}
    for axis in set(_COUNTED_FROM) & set(curve.dims):
        size, first = curve.values.shape[curve.dims.index(axis)], _COUNTED_FROM[axis]
        head[axis] = list(range(first, first + size))
    if not curve.per_token:
        return head | _kept_apart(curve)
    head["mean"] = _plain(curve.mean)
    if curve.unit == "norm":
        head["gmean"] = _plain(curve.gmean)
    if np.isfinite(curve.bos).any():  # nothing predicts BOS: losses have no value there
        head["bos"] = _plain(_nanmean(curve.bos, 0))
    return head


def _kept_apart(curve: Curve) -> dict[str, Any]:
    """Averages over sampled axes; every value of the others, and its mean over heads."""
    sampled = tuple(i for i, dim in enumerate(curve.dims) if dim in SAMPLED_AXES)
    values = _nanmean(curve.double, sampled) if sampled else curve.values
    parts = {"values": _plain(values)}
    if curve.dims == ("head", "layer"):
        parts["mean"] = _plain(_nanmean(values, 0))
    elif sampled:
        parts["draws"] = [curve.values.shape[i] for i in sampled]
    return parts


def _plain(values: Floats) -> Any:
    """Nested lists for JSON; NaN and infinities become null."""
    array = np.asarray(values, dtype=np.float64).astype(object)
    array[~np.isfinite(values)] = None
    return array.tolist()


def save_run(run: Run, path: Path) -> None:
    """Write ``path`` (JSON) and its ``.npz``; both or neither replace what is there."""
    arrays = path.with_name(f"{path.name.removesuffix('.json')}.npz")
    partial_arrays = arrays.with_name(f".{arrays.stem}.{os.getpid()}.npz")
    partial_json = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tables: dict[str, Any] = {name: curve.values for name, curve in run.curves.items()}
        np.savez(partial_arrays, **tables)
        document = {
            "schema": SCHEMA,
            "complete": run.complete,
            "spec": run.spec,
            "model": asdict(run.model),
            "environment": dict(run.environment),
            "prompts": asdict(run.prompts),
            "horizon": None if run.horizon is None else asdict(run.horizon),
            "seeds": dict(run.seeds),
            "shapes": dict(run.shapes),
            "arrays": {"file": arrays.name, "sha256": _sha256(partial_arrays)},
            "curves": {name: summary(curve) for name, curve in run.curves.items()},
        }
        text = json.dumps(document, indent=1, allow_nan=False)
        partial_json.write_text(text + "\n", encoding="utf-8")
        with _in_place_of(arrays, partial_arrays):
            partial_json.replace(path)
    except OSError as error:
        raise RunFileError(f"could not write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            partial_arrays.unlink(missing_ok=True)
            partial_json.unlink(missing_ok=True)


@contextlib.contextmanager
def _in_place_of(target: Path, replacement: Path) -> Iterator[None]:
    """Replace ``target``; put the old file back if what is done within fails."""
    kept = target.with_name(f".{target.name}.old")
    if target.exists():
        target.replace(kept)
    try:
        replacement.replace(target)
        yield
    except BaseException:
        target.unlink(missing_ok=True)
        if kept.exists():
            kept.replace(target)
        raise
    kept.unlink(missing_ok=True)


def load_run(path: Path) -> Run:
    """Read a run file and the arrays beside it.

    Raises:
        RunFileError: the file is missing, damaged, or of another schema.
    """
    document = read_json(path, SCHEMA)
    try:
        arrays = path.with_name(Path(document["arrays"]["file"]).name)
        if not arrays.is_file():
            raise RunFileError(
                f"{path} has no per-token arrays beside it: {arrays.name} is missing",
                "copy the .npz file together with its .json file",
            )
        if _sha256(arrays) != document["arrays"]["sha256"]:
            raise RunFileError(f"{arrays} does not belong to {path}: its sha256 differs")
        with arrays.open("rb") as file, np.load(file, allow_pickle=False) as tables:
            curves = {
                name: Curve(name, tuple(head["dims"]), tables[name], head["unit"])
                for name, head in document["curves"].items()
            }
        return Run(
            model=_model_info(document["model"]),
            environment=document["environment"],
            prompts=PromptInfo(**document["prompts"]),
            curves=curves,
            complete=bool(document["complete"]),
            horizon=_horizon_info(document.get("horizon")),
            spec=str(document.get("spec", "")),
            seeds=dict(document.get("seeds", {})),
            shapes=dict(document.get("shapes", {})),
        )
    except _DAMAGE as error:
        raise RunFileError(f"{path} is damaged: {error}") from error


def _model_info(stored: dict[str, Any]) -> ModelInfo:
    factors = tuple(map(float, stored.get("residual_factors", ())))
    return ModelInfo(**stored | {"residual_factors": factors})


def _horizon_info(stored: dict[str, Any] | None) -> HorizonInfo | None:
    if stored is None:
        return None
    return HorizonInfo(**stored | {"prompts": PromptInfo(**stored["prompts"])})


def read_json(path: Path, schema: str) -> dict[str, Any]:
    """A JSON document that must carry ``schema``; raises :class:`RunFileError` if not."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RunFileError(f"cannot read {path}: {reason}") from error
    found = document.get("schema") if isinstance(document, dict) else None
    if found != schema:
        raise RunFileError(
            f"{path} has schema {found!r}; this version reads {schema!r}",
            "write it again with this version of residcheck",
        )
    assert isinstance(document, dict)
    return document


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
