"""From a spec to a loaded transformers model with a known identity."""

from __future__ import annotations

import difflib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from residcheck.errors import (
    LoadError,
    NonFiniteError,
    UnsupportedModelError,
    UsageError,
    first_line,
)
from residcheck.models.builtin import BUILTIN
from residcheck.models.cache import sha256, weights_digest
from residcheck.models.devices import check_device, refuse_offloaded, set_products
from residcheck.models.gguf import cached_gguf
from residcheck.models.quiet import quiet_libraries
from residcheck.models.shelf import obtained
from residcheck.models.spec import SPREAD, ModelSpec, path_exists
from residcheck.planted import is_planted
from residcheck.progress import Progress, silent
from residcheck.train.arms import MODEL_TYPE as CONTROL


@dataclass(frozen=True)
class LoadedModel:
    """A plain transformers model on its device, its tokenizer, and what it is.

    ``id`` is the name to show and to file snapshots under; ``weights`` identifies
    the numbers: ``sha256:...`` of the files, or ``revision:...`` from a hub.
    """

    id: str
    weights: str
    model: Any
    tokenizer: Any
    spec: ModelSpec

    @property
    def device(self) -> str:
        """Where tokens go and results come together; of a spread model, its first GPU."""
        if self.spec.device != SPREAD:
            return self.spec.device
        return str(next(self.model.parameters()).device)

    @property
    def devices(self) -> list[str]:
        """Every device that holds a part of the model."""
        if self.spec.device != SPREAD:
            return [self.spec.device]
        return list(dict.fromkeys(str(p.device) for p in self.model.parameters()))


@dataclass(frozen=True)
class _Located:
    id: str
    source: str
    revision: str | None
    weights: str | None


def load(spec: ModelSpec, progress: Progress = silent) -> LoadedModel:
    """Load ``spec`` through transformers: safetensors only, no remote code.

    Raises:
        UsageError: an unknown name or a device that is not there.
        LoadError: no network and nothing cached, damaged or pickled weights.
        UnsupportedModelError: not a causal language model.
        NonFiniteError: NaN or infinity in a weight.
    """
    check_device(spec.device)
    set_products(spec)
    if is_planted(spec.name):
        return _placed(_planted(spec))
    located = _locate(spec, progress)
    progress(f"loading {located.id}", 0, None)
    with quiet_libraries():
        _register_own(located)
        config = _config(located)
        _refuse_other_kinds(located.id, config)
        model, tokenizer = _model_and_tokenizer(located, spec)
    _refuse_nonfinite(located.id, model)
    weights = located.weights or f"revision:{config._commit_hash or located.revision}"
    return _placed(LoadedModel(located.id, weights, model, tokenizer, spec))


def _placed(loaded: LoadedModel) -> LoadedModel:
    try:
        _place(loaded)
    except (RuntimeError, MemoryError) as error:
        raise LoadError(
            f"{loaded.id} does not fit on {loaded.spec.device}: {first_line(error)}",
            "try dtype=bf16, a smaller model, or another device",
        ) from error
    loaded.model.eval()
    return loaded


def _place(loaded: LoadedModel) -> None:
    if loaded.spec.device != SPREAD:
        loaded.model.to(loaded.spec.device)
    elif not hasattr(loaded.model, "hf_device_map"):  # one GPU is enough: it was not spread
        loaded.model.to("cuda")


def _planted(spec: ModelSpec) -> LoadedModel:
    import torch

    from residcheck.planted.building import CONSTRUCTION, build
    from residcheck.planted.tokens import tokenizer

    with quiet_libraries():
        how = {"dtype": getattr(torch, spec.torch_dtype), "attn_implementation": _attention(spec)}
        model = build(spec.name, **how)
    return LoadedModel(spec.name, CONSTRUCTION, model, tokenizer(), spec)


def _attention(spec: ModelSpec) -> str | None:
    """TransformerBridge computes attention itself, as eager does; None is transformers' choice."""
    return spec.attention or ("eager" if spec.backend == "transformer_lens" else None)


def check_name(spec: ModelSpec) -> None:
    """What can be told of a name without opening or fetching anything.

    Raises:
        UsageError: no such path, neither a folder nor a ``.gguf`` file, or a slip of the pen.
    """
    if is_planted(spec.name) or spec.name in BUILTIN:
        return
    if not path_exists(spec.name):
        _hub_model(spec)
        return
    path = Path(spec.name).expanduser()
    if not path.is_dir() and path.suffix != ".gguf":
        raise UsageError(f"{path} is neither a model folder nor a .gguf file")


def _locate(spec: ModelSpec, progress: Progress) -> _Located:
    check_name(spec)
    if spec.name in BUILTIN:
        entry = obtained(BUILTIN[spec.name], progress)
        return _Located(spec.name, str(entry.folder), None, entry.weights)
    if not path_exists(spec.name):
        return _hub_model(spec)
    path = Path(spec.name).expanduser()
    if path.is_dir():
        return _local_folder(path.resolve(), progress)
    entry = cached_gguf(path, progress)
    return _Located(path.stem, str(entry.folder), None, entry.weights)


def _hub_model(spec: ModelSpec) -> _Located:
    if spec.name.startswith((".", "~", "/")) or spec.name.endswith(".gguf"):
        raise UsageError(f"there is no {spec.name}")
    _refuse_misspelt(spec.name)
    return _Located(spec.name, spec.name, spec.revision, None)


def _local_folder(folder: Path, progress: Progress) -> _Located:
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"{folder} is not a model folder: it has no config.json",
            "give the folder that save_pretrained wrote",
        )
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
        raise LoadError(
            f"{folder} has no safetensors weights"
            + (f", only {pickles[0].name}, which would have to be unpickled" if pickles else ""),
            "save it again with save_pretrained (safetensors); pickles are never opened",
        )
    digest = weights_digest({file.name: sha256(file, progress) for file in files})
    return _Located(folder.name, str(folder), None, digest)


def _refuse_misspelt(name: str) -> None:
    """A bare name close to a built-in one is a slip, not a hub id."""
    close = difflib.get_close_matches(name.lower(), BUILTIN, n=1, cutoff=0.6)
    if close and "/" not in name:
        raise UsageError(
            f"unknown model {name!r}; did you mean {close[0]!r}?",
            "residcheck models lists the built-in ones; "
            "any hub id, model folder or .gguf file works too",
        )


def _offline() -> bool:
    truthy = {"1", "true", "yes", "on"}
    flags = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(flag, "").lower() in truthy for flag in flags)


def _register_own(located: _Located) -> None:
    """Let transformers know residcheck's own architecture, where a folder is of it."""
    try:
        said = json.loads((Path(located.source) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # on the hub, or damaged: told of by who reads it
        return
    if isinstance(said, dict) and said.get("model_type") == CONTROL:
        from residcheck.train.architecture import register

        register()


def _config(located: _Located) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            located.source, revision=located.revision, trust_remote_code=False
        )
    except Exception as error:  # the hub client raises many kinds
        raise _cannot_load(located, error) from error


def _cannot_load(located: _Located, error: Exception) -> LoadError:
    reason = first_line(error)
    if "trust_remote_code" in str(error):
        return UnsupportedModelError(
            f"{located.id} needs code of its own, which residcheck never runs",
            "use a model that transformers implements itself",
        )
    if located.weights is not None:
        return LoadError(
            f"cannot load {located.source}: {reason}",
            "the folder may be damaged or incomplete; save or copy it again",
        )
    close = difflib.get_close_matches(located.id.lower(), BUILTIN, n=1, cutoff=0.4)
    nearest = close[0] if close else ", ".join(BUILTIN)
    why = "offline mode is set and it is not cached" if _offline() else reason
    return LoadError(
        f"cannot get {located.id!r} from the model hub: {why}",
        f"check the name and the network; built in and needing no hub: {nearest}",
    )


def _refuse_other_kinds(model_id: str, config: Any) -> None:
    from transformers.models.auto import modeling_auto

    known = {**modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, CONTROL: "ControlModel"}
    causal = set(known.values())
    declared = list(getattr(config, "architectures", None) or [])
    if getattr(config, "is_encoder_decoder", False):
        kind = "an encoder-decoder"
    elif config.model_type not in known:
        kind = f"of type {config.model_type!r}, which transformers has no causal language model for"
    elif declared and not causal & set(declared) and not declared[0].endswith("Model"):
        kind = f"a {declared[0]}"
    else:
        return
    raise UnsupportedModelError(
        f"{model_id} is not a causal language model: it is {kind}",
        "residcheck measures decoder-only models, where each token reads the earlier ones",
    )


def _model_and_tokenizer(located: _Located, spec: ModelSpec) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    common = {"revision": located.revision, "trust_remote_code": False}
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            located.source,
            dtype=getattr(torch, spec.torch_dtype),
            attn_implementation=_attention(spec),
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused by name below
            device_map="auto" if spec.device == SPREAD else None,
            **common,
        )
        tokenizer = AutoTokenizer.from_pretrained(located.source, **common)
    except Exception as error:  # safetensors, the hub and torch raise many kinds
        raise _cannot_load(located, error) from error
    refuse_offloaded(located.id, model)
    _refuse_other_weights(located.id, model.config.get_text_config(), info)
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers made an empty one
        raise LoadError(
            f"{located.id} has no tokenizer",
            "save the tokenizer into the model's folder too",
        )
    return model, tokenizer


def _refuse_other_weights(model_id: str, config: Any, info: Any) -> None:
    """Weights must be those that the configuration calls for, no fewer, no other layers."""
    hint = "the files are incomplete or belong to another configuration"
    sizes = {str(key[0]) for key in info["mismatched_keys"]}
    absent = sorted({*info["missing_keys"], *sizes})
    if absent:
        what = (
            "has weights of another size" if sizes else "lacks weights that its architecture needs"
        )
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        raise LoadError(f"{model_id} {what}: {', '.join(absent[:3])}{more}", hint)
    for key in info["unexpected_keys"]:
        numbers = [int(part) for part in str(key).split(".") if part.isdigit()]
        if numbers and numbers[0] >= config.num_hidden_layers:
            layers = config.num_hidden_layers
            raise LoadError(f"{model_id} has weights beyond its {layers} layers: {key}", hint)


def _refuse_nonfinite(model_id: str, model: Any) -> None:
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise NonFiniteError(
                f"{model_id} has NaN or infinity in its weights: {name}",
                "the checkpoint is damaged or was saved from a diverged run",
            )
