"""One instrumented pass over the prompts: everything the selected claims need.

The model is loaded, passes the identity gate, and runs once; what each tap sees is
reduced to scalars per token and layer on the device, and nothing else is kept.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from residcheck.backends import Affine, Backend, Site, open_backend
from residcheck.corpus import Prompts, shipped
from residcheck.curves import Curve, ModelInfo, Run
from residcheck.errors import LoadError, NonFiniteError, first_line
from residcheck.measure import gate
from residcheck.measure.probes import centring_probe, padding_probe
from residcheck.measure.recorder import Recorder, available
from residcheck.measure.tokens import Batch, Encoded, batches, encode
from residcheck.models import LoadedModel, ModelSpec, load
from residcheck.models.quiet import quiet_libraries
from residcheck.names import EVERYTHING as EVERYTHING
from residcheck.names import QUANTITIES as QUANTITIES
from residcheck.progress import Progress, silent
from residcheck.tolerances import tolerance

DEFAULT_BATCH_SIZE = 8
_GATE_TOKENS = 16


class MeasurementInterrupted(KeyboardInterrupt):
    """Ctrl-C during a pass; ``run`` holds the prompts that were finished, if any."""

    def __init__(self, run: Run | None) -> None:
        super().__init__("interrupted")
        self.run = run


@dataclass
class Session:
    """A model that passed the gate, with its prompts: ready to be measured."""

    loaded: LoadedModel
    backend: Backend
    encoded: Encoded
    gate_tokens: Int[Tensor, "batch pos"]

    @cached_property
    def affines(self) -> dict[tuple[int, Site], Affine]:
        """Gain and bias at every norm that a sublayer reads through, on the model's device."""
        anatomy, device = self.backend.anatomy, self.gate_tokens.device
        norms: tuple[Site, ...] = ("ln1_out", "ln2_out")
        found: dict[tuple[int, Site], Affine] = {}
        for site in (site for site in norms if anatomy.has(site)):
            for layer in range(anatomy.n_layers):
                affine = self.backend.affine(layer, site)
                found[layer, site] = Affine(affine.gain.to(device), affine.bias.to(device))
        return found


def measure(
    spec: ModelSpec,
    prompts: Prompts | None = None,
    *,
    max_tokens: int | None = None,
    names: Iterable[str] = EVERYTHING,
    batch_size: int = DEFAULT_BATCH_SIZE,
    progress: Progress = silent,
) -> Run:
    """Load ``spec``, pass the gate, and measure ``names`` on ``prompts``.

    Args:
        prompts: the shipped passages unless given.
        max_tokens: longest prompt, counting BOS; 128 unless given.
        names: curves to take, of :data:`EVERYTHING`.
        batch_size: prompts per forward pass.

    Raises:
        ResidcheckError: bad input, or a model that cannot be loaded or trusted.
        MeasurementInterrupted: ctrl-C; carries what was finished.
    """
    session = open_session(spec, prompts or shipped(), max_tokens, progress)
    return run_session(session, names, batch_size, progress)


def describe(spec: ModelSpec, progress: Progress = silent) -> ModelInfo:
    """What a model is built like and which quantities it lacks; it is loaded, not run."""
    loaded = load(spec, progress)
    backend = open_backend(loaded)
    return _model_info(loaded, backend)


def open_session(
    spec: ModelSpec, prompts: Prompts, max_tokens: int | None, progress: Progress = silent
) -> Session:
    """Load a model, encode the prompts, and take the model through the identity gate."""
    loaded = load(spec, progress)
    config = loaded.model.config.get_text_config()
    encoded = encode(prompts, loaded.tokenizer, config, max_tokens)
    progress(f"checking the hooks of {loaded.id}", 0, None)
    tokens = _gate_tokens(encoded).to(spec.device)
    reference = _plain_logits(loaded, tokens)
    backend = open_backend(loaded)
    gate.check(backend, tokens, reference, tolerance(spec.dtype))
    return Session(loaded, backend, encoded, tokens)


@torch.inference_mode()
def _plain_logits(
    loaded: LoadedModel, tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos vocab"]:
    try:
        with quiet_libraries():
            logits: Tensor = loaded.model(input_ids=tokens, use_cache=False).logits
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = first_line(error)
        raise LoadError(
            f"{loaded.id} loads, but plain transformers cannot run it: {reason}",
            "its configuration may not fit its weights",
        ) from error
    return logits


def _gate_tokens(encoded: Encoded) -> Int[Tensor, "batch pos"]:
    """Two rows of real text, made of the first prompts however short they are."""
    text = [token for ids in encoded.ids[:64] for token in ids[1:]]
    text = (text * (2 * _GATE_TOKENS))[: 2 * _GATE_TOKENS - 2]
    bos, half = encoded.ids[0][0], len(text) // 2
    return torch.tensor([[bos, *text[:half]], [bos, *text[half:]]])


def run_session(
    session: Session,
    names: Iterable[str] = EVERYTHING,
    batch_size: int = DEFAULT_BATCH_SIZE,
    progress: Progress = silent,
) -> Run:
    """The instrumented pass over the session's prompts, and the probes that are asked for."""
    wanted = list(names)
    backend, encoded = session.backend, session.encoded
    device = session.loaded.spec.device
    quantities = available(wanted, backend.anatomy)
    recording = _Recording(session, quantities)
    total = sum(map(len, encoded.ids))
    try:
        probes = _run_probes(session, wanted)
        for batch in batches(encoded, batch_size, device):
            progress(f"measuring {session.loaded.id}", recording.tokens, total)
            recording.take(batch)
        progress(f"measuring {session.loaded.id}", total, total)
    except KeyboardInterrupt:
        raise MeasurementInterrupted(recording.run({}, complete=False)) from None
    except torch.OutOfMemoryError as error:
        raise LoadError(
            f"{device} ran out of memory at {batch_size} prompts of {encoded.max_tokens} tokens",
            "use a smaller --batch-size or --max-tokens",
        ) from error
    finished = recording.run(probes, complete=True)
    assert finished is not None
    return finished


def _run_probes(session: Session, wanted: list[str]) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    if {"bos_spread", "padding_spread"} & set(wanted):
        device = session.loaded.spec.device
        curves |= padding_probe(session.backend, session.encoded, device)
    centring = {"centred_mean", "centring_logit_shift"} & set(wanted)
    if centring and session.backend.anatomy.norm == "LayerNorm":
        centred = session.loaded.spec.processing == "processed"
        curves |= centring_probe(session.backend, session.gate_tokens, centred)
    return {name: curve for name, curve in curves.items() if name in wanted}


class _Recording:
    """The arrays that fill up, batch by batch."""

    def __init__(self, session: Session, names: list[str]) -> None:
        self._session, self._names = session, names
        anatomy, ids = session.backend.anatomy, session.encoded.ids
        double = session.loaded.spec.dtype == "float64"
        self._dtype = torch.float64 if double else torch.float32
        shape = (len(ids), max(map(len, ids)), anatomy.n_layers)
        dtype = np.float64 if double else np.float32
        self._arrays = {name: np.full(shape, np.nan, dtype) for name in names}
        self._done: set[int] = set()
        self.tokens = 0

    def take(self, batch: Batch) -> None:
        recorder = Recorder(
            self._session.backend,
            self._names,
            self._session.affines,
            batch.tokens.shape,
            batch.tokens.device,
            self._dtype,
        )
        self._session.backend.forward(batch.tokens, batch.mask, recorder.taps(), logits=False)
        lengths = batch.mask.sum(dim=1).tolist()
        for name, values in recorder.values.items():
            table = values.cpu().numpy()
            for row, index in enumerate(batch.indices):
                self._arrays[name][index, : lengths[row]] = table[row, : lengths[row]]
        self._refuse_nonfinite(batch.indices, lengths)
        self._done.update(batch.indices)
        self.tokens += sum(lengths)

    def _refuse_nonfinite(self, indices: list[int], lengths: list[int]) -> None:
        """Name the first layer, and in it the first site, at which a norm is not finite."""
        norms = [n for n in self._names if QUANTITIES[n].unit == "norm" and not n.startswith("ln")]
        bad: list[tuple[int, int, int, int]] = []
        for index, length in zip(indices, lengths, strict=True):
            for order, name in enumerate(norms):
                found = np.argwhere(~np.isfinite(self._arrays[name][index, :length]))
                bad += [(layer, order, index, position) for position, layer in found]
        if bad:
            layer, order, index, position = min(bad)
            raise NonFiniteError(
                f"layer {layer}: {norms[order]} is NaN or infinite at prompt {index + 1}, "
                f"position {position}",
                "the activations overflow in this dtype or the weights are damaged",
            )

    def run(self, probes: dict[str, Curve], *, complete: bool) -> Run | None:
        done = sorted(self._done)
        if not done:
            return None
        session = self._session
        curves = {
            name: Curve(name, ("prompt", "position", "layer"), array[done], QUANTITIES[name].unit)
            for name, array in self._arrays.items()
        }
        return Run(
            model=_model_info(session.loaded, session.backend),
            environment=environment(session.loaded.spec.device),
            prompts=session.encoded.select(done).info(),
            curves=curves | probes,
            complete=complete,
        )


def _model_info(loaded: LoadedModel, backend: Backend) -> ModelInfo:
    anatomy = backend.anatomy
    missing = {
        name: anatomy.missing[quantity.site]
        for name, quantity in QUANTITIES.items()
        if not anatomy.has(quantity.site)
    }
    if anatomy.norm != "LayerNorm":
        reason = "the norm does not subtract the mean (RMSNorm), so the stream is not centred"
        missing |= {"centred_mean": reason, "centring_logit_shift": reason}
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


def environment(device: str) -> dict[str, str]:
    """Versions and machine, for the provenance of a run."""
    libraries = {}
    for name in ("residcheck", "torch", "transformers", "transformer-lens", "numpy", "scipy"):
        try:
            libraries[name.replace("-", "_")] = version(name)
        except PackageNotFoundError:
            libraries[name.replace("-", "_")] = "not installed"
    on_gpu = device.startswith("cuda")
    return {
        "python": platform.python_version(),
        **libraries,
        "platform": f"{platform.system()} {platform.machine()}",
        "accelerator": torch.cuda.get_device_name(device) if on_gpu else "none",
    }
