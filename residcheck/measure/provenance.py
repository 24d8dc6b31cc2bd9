"""What a run says of its model and machine."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

import torch

from residcheck.backends import Anatomy, Backend, Site
from residcheck.curves import ModelInfo
from residcheck.measure.random_inputs import can_be_fed
from residcheck.models import LoadedModel, ModelSpec, on_gpu
from residcheck.models.spec import SPREAD
from residcheck.names import OF_PROCESSING, QUANTITIES, STATISTICS, Part
from residcheck.weights.canonical import canonical


def model_info(loaded: LoadedModel, backend: Backend, missing: Mapping[str, str]) -> ModelInfo:
    """``missing`` is what :func:`absent` found, and what the measurement could not do."""
    anatomy = backend.anatomy
    return ModelInfo(
        id=loaded.id,
        weights=loaded.weights,
        model_type=anatomy.model_type,
        n_layers=anatomy.n_layers,
        d_model=anatomy.d_model,
        n_heads=anatomy.n_heads,
        d_mlp=anatomy.d_mlp,
        norm=anatomy.norm,
        norm_eps=anatomy.norm_eps,
        parallel=anatomy.parallel,
        gated=anatomy.gated,
        activation=anatomy.activation,
        dtype=loaded.spec.dtype,
        device=loaded.spec.device,
        backend=backend.name,
        processing=loaded.spec.processing,
        attention=str(getattr(loaded.model.config, "_attn_implementation", "")),
        missing=missing,
    )


def absent(backend: Backend, spec: ModelSpec) -> dict[str, str]:
    """Every curve that this architecture or library has not, or not of these weights, and why."""
    anatomy = backend.anatomy
    found = {
        name: anatomy.missing[quantity.site]
        for name, quantity in QUANTITIES.items()
        if not anatomy.has(quantity.site)
    }
    if not anatomy.centring:
        reason = "the norm does not subtract the mean (RMSNorm), so the stream is not centred"
        found |= {"centred_mean": reason, "centring_logit_shift": reason}
    if spec.processing == "raw":
        found |= dict.fromkeys(OF_PROCESSING, "the weights are raw: the library processed none")
    if anatomy.n_layers < 2:
        found["horizon_loss_from_middle"] = "a model of one layer has no upper half"
    for name, statistic in STATISTICS.items():
        reasons = (_lacks(anatomy, part) for part in statistic.parts)
        if reason := next(filter(None, reasons), ""):
            found[name] = reason
    return _without_biases(backend) | found


def _without_biases(backend: Backend) -> dict[str, str]:
    """Which biases no layer has, once those of its norms and values are folded in."""
    reasons: dict[str, str] = {
        "b_O_norm": "attention adds no bias",
        "b_in_W_out_norm": "the MLP's hidden neurons have no bias",
        "b_out_norm": "the MLP adds no bias",
    }
    for layer in range(backend.anatomy.n_layers):
        weights = canonical(backend, layer)
        attention, mlp = weights.attention, weights.mlp
        biases = {
            "b_O_norm": attention and attention.b_O,
            "b_in_W_out_norm": mlp and mlp.b_in,
            "b_out_norm": mlp and mlp.b_out,
        }
        reasons = {name: why for name, why in reasons.items() if biases[name] is None}
        if not reasons:
            break
    written: tuple[tuple[str, Site], ...] = (("b_O_norm", "attn_out"), ("b_out_norm", "mlp_out"))
    for name, site in written:
        if backend.post_norm(0, site) is not None:
            why = "what is written is normalised before it is added, and its bias with it"
            reasons.setdefault(name, why)
    return reasons


def _lacks(anatomy: Anatomy, part: Part) -> str:
    """Why a model has not what a statistic is about; empty if it has."""
    if part == "attention" or part == "mlp":
        return anatomy.missing_weights.get(part, "")
    if part == "gate":
        return "" if anatomy.gated else "the MLP is not gated"
    if part == "fed":
        return "" if can_be_fed(anatomy) else anatomy.missing["ln2_out"]
    if part == "stream":
        return ""
    return anatomy.missing.get(part, "")


def environment(backend: Backend, device: str) -> dict[str, str]:
    """Versions, that of the library which taps the model included, and machine, for the
    provenance of a run."""
    return installed(device) | {backend.name: backend.version}


def installed(device: str) -> dict[str, str]:
    """Versions of what every run goes through, and the machine."""
    libraries = ("residcheck", "torch", "transformers", "transformer_lens", "numpy", "scipy")
    return {
        "python": platform.python_version(),
        **{name: installed_version(name) for name in libraries},
        "platform": f"{platform.system()} {platform.machine()}",
        "accelerator": "none",
        **(_gpu(device) if on_gpu(device) else {}),
    }


def _gpu(device: str) -> dict[str, str]:
    """The GPUs by name, and how they multiply float32 matrices: highest is in float32 itself."""
    spread = device == SPREAD
    places = range(torch.cuda.device_count()) if spread else [device]
    names = Counter(torch.cuda.get_device_name(place) for place in places)
    said = [name if count == 1 else f"{count} x {name}" for name, count in names.items()]
    return {
        "accelerator": ", ".join(said),
        "cuda": str(torch.version.cuda),
        "float32_products": torch.get_float32_matmul_precision(),
    }


def installed_version(library: str) -> str:
    """The version of a library by the name that runs call it by."""
    try:
        return version(library.replace("_", "-"))
    except PackageNotFoundError:
        return "not installed"
