"""How big a model is, and about how much memory it takes, without loading its weights."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from residcheck.errors import ResidcheckError, first_line
from residcheck.models import BUILTIN, ModelSpec
from residcheck.models.shelf import at_hand
from residcheck.models.spec import path_exists
from residcheck.planted import is_planted

_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
_LIBRARIES = 350 << 20
"""What a process takes once torch and the model libraries are imported."""
_HORIZONS = 2 << 30
"""What horizons and their logits may take beside the model."""
_NETWORK_SECONDS = 5.0


@dataclass(frozen=True)
class Size:
    """Parameters of a model; ``tied`` are those that input and output embeddings share."""

    parameters: int
    tied: int = 0


@dataclass(frozen=True)
class Estimate:
    """About how big a model is, or why nobody knows yet."""

    size: Size | None
    memory: int | None
    why: str = ""


_UNKNOWN = Estimate(None, None, "unknown until fetched")


def memory(size: Size, dtype: str) -> int:
    """About the most bytes that measuring takes, on the model's device.

    With P parameters of b bytes: ``libraries + max(copies, passes)``, where
    ``copies = P b + P b + P w + T w`` is the model, and while its stream is rotated another
    copy on its way to numbers of w bytes (twice as wide as b, at most 8), in which the T tied
    parameters stand twice; and ``passes = P b + 2 GiB`` is the model, with all that horizons
    may take. Small models take less than these 2 GiB. SmolLM2-135M in float32 took 2.5 GiB:
    copies and libraries are 2.6, passes and libraries 2.8. Batches of long prompts, or
    attention that holds its scores, may take more.
    """
    b = _BYTES[dtype]
    wide = min(2 * b, 8)
    model = size.parameters * b
    copies = 2 * model + (size.parameters + size.tied) * wide
    return _LIBRARIES + max(copies, model + _HORIZONS)


def estimates(specs: Sequence[ModelSpec]) -> list[Estimate]:
    """An estimate for each; hub models' configurations are fetched while the hub answers."""
    online, found = True, list[Estimate]()
    for spec in specs:
        try:
            found.append(_estimate(spec, online))
        except TimeoutError:
            online = False
            found.append(_UNKNOWN)
    return found


def _estimate(spec: ModelSpec, online: bool) -> Estimate:
    try:
        size = _size(spec, online)
    except TimeoutError:
        raise
    except _NotFetched:
        return _UNKNOWN
    except ResidcheckError as error:
        return Estimate(None, None, error.message)
    except Exception as error:  # of whatever kind configurations make transformers raise
        return Estimate(None, None, f"unknown: {first_line(error)[:100]}")
    return Estimate(size, memory(size, spec.dtype))


class _NotFetched(Exception):
    """A model of the hub of which there is nothing here."""


def _size(spec: ModelSpec, online: bool) -> Size:
    if is_planted(spec.name):
        return _planted(spec)
    if spec.name in BUILTIN:
        builtin = BUILTIN[spec.name]
        entry = at_hand(builtin)
        if entry is None:  # converted, its weights are float32
            return Size(builtin.disk_bytes // _BYTES["float32"])
        return _of_config(_config(str(entry.folder)))
    path = Path(spec.name).expanduser()
    if not path_exists(spec.name):
        return _of_config(_hub_config(spec, online))
    return _of_gguf(path) if path.is_file() else _of_config(_config(str(path)))


def _planted(spec: ModelSpec) -> Size:
    """They are small, and made in no time."""
    from residcheck.planted.building import build

    return _counted(build(spec.name))


def _of_gguf(path: Path) -> Size:
    from gguf import GGUFReader

    return Size(int(sum(tensor.n_elements for tensor in GGUFReader(path).tensors)))


def _of_config(config: Any) -> Size:
    import torch
    from transformers import AutoModelForCausalLM

    from residcheck.models.quiet import quiet_libraries

    with quiet_libraries(), torch.device("meta"):
        return _counted(AutoModelForCausalLM.from_config(config, trust_remote_code=False))


def _counted(model: Any) -> Size:
    read, said = model.get_input_embeddings(), model.get_output_embeddings()
    tied = said is not None and said.weight is read.weight
    total = sum(parameter.numel() for parameter in model.parameters())
    return Size(total, read.weight.numel() if tied else 0)


def _config(source: str, **how: Any) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(source, trust_remote_code=False, **how)


def _hub_config(spec: ModelSpec, online: bool) -> Any:
    """From the hub's cache, or else from the hub.

    Raises:
        TimeoutError: the hub does not answer.
    """
    from residcheck.models.quiet import quiet_libraries

    with quiet_libraries():
        try:
            return _config(spec.name, revision=spec.revision, local_files_only=True)
        except Exception as error:  # the hub client raises many kinds
            if not online:
                raise _NotFetched from error
        return _within(_NETWORK_SECONDS, lambda: _config(spec.name, revision=spec.revision))


def _within(seconds: float, fetch: Callable[[], Any]) -> Any:
    """What ``fetch`` gives; clients of the hub try for minutes.

    Raises:
        TimeoutError: it took too long.
    """
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(fetch())
        except Exception:  # no network, no such model, no access
            return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError
    if not found:
        raise _NotFetched
    return found[0]
