"""One instrumented pass over the prompts: everything the selected claims need.

The model is loaded, passes the identity gate, and runs once; what each tap sees is
reduced to scalars per token and layer on the device, and nothing else is kept.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from residcheck.backends import open_backend
from residcheck.corpus import Prompts, shipped
from residcheck.curves import Curve, ModelInfo, Run
from residcheck.errors import LoadError
from residcheck.measure.arguments import checked
from residcheck.measure.opening import Session as Session
from residcheck.measure.opening import open_session as open_session
from residcheck.measure.probes import centring_probe, padding_probe
from residcheck.measure.provenance import absent, model_info
from residcheck.measure.provenance import environment as environment
from residcheck.measure.random_inputs import mlp_experiments
from residcheck.measure.recording import Recording
from residcheck.measure.tokens import batches
from residcheck.models import ModelSpec, load
from residcheck.names import EVERYTHING as EVERYTHING
from residcheck.names import QUANTITIES as QUANTITIES
from residcheck.progress import Progress, silent
from residcheck.weights.statistics import folded_statistics

DEFAULT_BATCH_SIZE = 8


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
        UsageError: an unknown name, or a batch size below 1.
        ResidcheckError: bad input, or a model that cannot be loaded or trusted.
        MeasurementInterrupted: ctrl-C; carries what was finished.
    """
    wanted = checked(names, batch_size)
    session = open_session(spec, prompts or shipped(), max_tokens, progress, wanted)
    return run_session(session, wanted, batch_size, progress)


def describe(spec: ModelSpec, progress: Progress = silent) -> ModelInfo:
    """What a model is built like and which quantities it lacks; it is loaded, not run."""
    loaded = load(spec, progress)
    backend = open_backend(loaded)
    return model_info(loaded, backend, absent(backend))


def run_session(
    session: Session,
    names: Iterable[str] = EVERYTHING,
    batch_size: int = DEFAULT_BATCH_SIZE,
    progress: Progress = silent,
) -> Run:
    """The instrumented pass over the session's prompts, and the probes that are asked for."""
    wanted = checked(names, batch_size)
    device = session.loaded.spec.device
    recording = Recording(session, wanted)
    total = sum(map(len, session.encoded.ids))
    try:
        experiments = _run_experiments(session, wanted, progress)
        for batch in batches(session.encoded, batch_size, device):
            progress(f"measuring {session.loaded.id}", recording.tokens, total)
            recording.take(batch)
        progress(f"measuring {session.loaded.id}", total, total)
    except KeyboardInterrupt:
        raise MeasurementInterrupted(recording.run({}, complete=False)) from None
    except torch.OutOfMemoryError as error:
        raise LoadError(
            f"{device} ran out of memory at {batch_size} prompts of "
            f"{session.encoded.max_tokens} tokens",
            "use a smaller --batch-size or --max-tokens",
        ) from error
    finished = recording.run(experiments, complete=True)
    assert finished is not None
    return finished


def _run_experiments(session: Session, names: list[str], progress: Progress) -> dict[str, Curve]:
    """All that is not taken in the pass: probes, statistics of weights, random inputs."""
    backend, device = session.backend, session.loaded.spec.device
    wanted = [name for name in names if name not in session.missing]
    curves = {name: curve for name, curve in session.stored.items() if name in wanted}
    if {"bos_spread", "padding_spread"} & set(wanted):
        curves |= padding_probe(backend, session.encoded, device)
    if {"centred_mean", "centring_logit_shift"} & set(wanted):
        centred = session.loaded.spec.processing == "processed"
        curves |= centring_probe(backend, session.gate_tokens, centred)
    label = f"weights of {session.loaded.id}"
    curves |= folded_statistics(
        backend, wanted, lambda layer: progress(label, layer, backend.anatomy.n_layers)
    )
    curves |= mlp_experiments(backend, session.affines, session.encoded, wanted, device)
    return {name: curve for name, curve in curves.items() if name in wanted}
