"""One instrumented pass over the prompts: everything the selected claims need.

The model is loaded, passes the identity gate, and runs once; what each tap sees is
reduced to scalars per token and layer on the device, and nothing else is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from residcheck.backends import open_backend
from residcheck.corpus import Prompts, shipped
from residcheck.curves import Curve, Floats, ModelInfo, Run
from residcheck.errors import LoadError, UnsupportedModelError
from residcheck.measure.arguments import checked
from residcheck.measure.fingerprints import fingerprints
from residcheck.measure.horizons import WHOLE, HorizonRecording
from residcheck.measure.horizons import HorizonOptions as HorizonOptions
from residcheck.measure.horizons import curves_of as curves_of
from residcheck.measure.invariances import batch_probe, processing_probe, reprocessing_probe
from residcheck.measure.memory import (
    DEFAULT_BATCH_SIZE,
    Free,
    budget,
    free_memory,
    in_pieces,
    out_of_memory,
    pass_bytes,
    prompts_that_fit,
)
from residcheck.measure.opening import Session as Session
from residcheck.measure.opening import open_session as open_session
from residcheck.measure.probes import centring_probe, padding_probe
from residcheck.measure.provenance import absent, model_info
from residcheck.measure.provenance import environment as environment
from residcheck.measure.provenance import installed as installed
from residcheck.measure.provenance import installed_version as installed_version
from residcheck.measure.random_inputs import mlp_experiments
from residcheck.measure.recording import Recording
from residcheck.measure.tokens import batch_of, longest_first
from residcheck.measure.trained_stream import residual_factors, run_as_trained
from residcheck.models import ModelSpec, load
from residcheck.names import EVERYTHING as EVERYTHING
from residcheck.names import HORIZON
from residcheck.names import QUANTITIES as QUANTITIES
from residcheck.progress import Progress, silent
from residcheck.weights.statistics import folded_statistics


class MeasurementInterrupted(KeyboardInterrupt):
    """Ctrl-C during a pass; ``run`` holds the prompts that were finished, if any."""

    def __init__(self, run: Run | None) -> None:
        super().__init__("interrupted")
        self.run = run


def measure(
    spec: ModelSpec,
    prompts: Prompts | None = None,
    *,
    max_tokens: int | None = None,
    names: Iterable[str] = EVERYTHING,
    batch_size: int | None = None,
    horizon: HorizonOptions = WHOLE,
    progress: Progress = silent,
) -> Run:
    """Load ``spec``, pass the gate, and measure ``names`` on ``prompts``.

    Args:
        prompts: the shipped passages unless given.
        max_tokens: longest prompt, counting BOS; 128 unless given.
        names: curves to take, of :data:`EVERYTHING`.
        batch_size: prompts per forward pass; unless given, what free memory has room for on
            a GPU, and 8 elsewhere. What turns out not to fit is taken again in halves.
        horizon: how the curves over layer horizons are taken.

    Raises:
        UsageError: an unknown name, or a batch size below 1.
        ResidcheckError: bad input, or a model that cannot be loaded or trusted.
        MeasurementInterrupted: ctrl-C; carries what was finished.
    """
    wanted = checked(names, batch_size)
    session = open_session(spec, prompts or shipped(), max_tokens, progress, wanted)
    return run_session(session, wanted, batch_size, horizon, progress)


def describe(spec: ModelSpec, progress: Progress = silent) -> ModelInfo:
    """What a model is built like and which quantities it lacks; it is loaded, not run."""
    loaded = load(spec, progress)
    backend = open_backend(loaded)
    return model_info(loaded, backend, absent(backend, spec))


def run_session(
    session: Session,
    names: Iterable[str] = EVERYTHING,
    batch_size: int | None = None,
    horizon: HorizonOptions = WHOLE,
    progress: Progress = silent,
    free: Free = free_memory,
) -> Run:
    """The instrumented pass over the session's prompts, and all that is asked for beside it.

    Args:
        free: how much memory a device has left.

    Raises:
        LoadError: not even one prompt fits into the device's memory.
    """
    wanted = checked(names, batch_size)
    memory = budget(session.loaded.devices, free)
    horizons = HorizonRecording(session, wanted, horizon, batch_size, memory)
    recording = Recording(session, wanted)
    factors = residual_factors(session.loaded.model.config, session.backend.anatomy.n_layers)
    experiments: dict[str, Curve] = {}
    try:
        _check_horizons(horizons, session, wanted)
        experiments = _run_experiments(session, wanted, progress)
        _run_pass(recording, session, batch_size or _room(session, memory), progress)
        horizons.take_all(progress)
        if "reprocessing_shift" in wanted:
            experiments |= _reprocess(session)
    except KeyboardInterrupt:
        if recording.idle:
            recording.done = horizons.done
        unfinished = recording.run(experiments | horizons.curves(), complete=False)
        raise MeasurementInterrupted(_finished(unfinished, horizons, factors)) from None
    except torch.OutOfMemoryError as error:
        raise out_of_memory(session.loaded.device, session.encoded.max_tokens) from error
    whole = recording.run(experiments | horizons.curves(), complete=True)
    finished = _finished(whole, horizons, factors)
    assert finished is not None
    return finished


def _check_horizons(horizons: HorizonRecording, session: Session, wanted: list[str]) -> None:
    """Where other curves are wanted, too, a model without horizons lacks theirs."""
    try:
        horizons.check()
    except UnsupportedModelError as error:
        if set(wanted) <= set(HORIZON):
            raise
        horizons.leave_out()
        session.missing.update(dict.fromkeys(HORIZON, error.message))


def _finished(run: Run | None, horizons: HorizonRecording, factors: Floats | None) -> Run | None:
    if run is None:
        return None
    return run_as_trained(replace(run, horizon=horizons.info()), factors)


def _run_pass(recording: Recording, session: Session, batch_size: int, progress: Progress) -> None:
    label, total = f"measuring {session.loaded.id}", sum(map(len, session.encoded.ids))
    encoded, device = session.encoded, session.loaded.device

    def take(indices: Sequence[int]) -> None:
        progress(label, recording.tokens, total)
        recording.take(batch_of(encoded, indices, device))

    in_pieces(longest_first(encoded), batch_size, take, device)
    progress(label, total, total)


def _room(session: Session, memory: int | None) -> int:
    """How many prompts as long as the longest are run together in ``memory``."""
    if memory is None:
        return DEFAULT_BATCH_SIZE
    tokens, dtype = max(map(len, session.encoded.ids)), session.loaded.spec.torch_dtype
    per_prompt = pass_bytes(session.backend.anatomy, getattr(torch, dtype), tokens)
    return prompts_that_fit(memory, per_prompt, tokens)


def _run_experiments(session: Session, names: list[str], progress: Progress) -> dict[str, Curve]:
    """All that is not taken in the pass: probes, statistics of weights, random inputs."""
    backend, device = session.backend, session.loaded.device
    wanted = [name for name in names if name not in session.missing]
    curves = {name: curve for name, curve in session.stored.items() if name in wanted}
    if {"bos_spread", "padding_spread", "padding_shift"} & set(wanted):
        curves |= padding_probe(backend, session.encoded, device)
    if {"centred_mean", "centring_logit_shift"} & set(wanted):
        centred = session.loaded.spec.processing == "processed"
        curves |= centring_probe(backend, session.gate_tokens, centred)
    if {"resid_post_fingerprint", "logit_fingerprint"} & set(wanted):
        curves |= fingerprints(backend, session.gate_tokens)
    if "batch_shift" in wanted:
        curves |= batch_probe(backend, session.encoded, device)
    if "processing_shift" in wanted:
        curves |= processing_probe(backend, session.gate_tokens, session.reference)
    label = f"weights of {session.loaded.id}"
    curves |= folded_statistics(
        backend, wanted, lambda layer: progress(label, layer, backend.anatomy.n_layers)
    )
    curves |= mlp_experiments(backend, session.affines, session.encoded, wanted, device)
    return {name: curve for name, curve in curves.items() if name in wanted}


def _reprocess(session: Session) -> dict[str, Curve]:
    """The last of all: if the library does not stand it, nothing that follows can be trusted."""
    if "reprocessing_shift" in session.missing:
        return {}
    try:
        return reprocessing_probe(session.backend, session.gate_tokens)
    except LoadError as error:
        session.missing["reprocessing_shift"] = error.message
        return {}
