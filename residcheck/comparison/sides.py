"""The two sides of a comparison: run files, and models that are measured on the spot."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from residcheck.comparison.refusal import refuse_other_prompts, refuse_other_weights
from residcheck.corpus import SHIPPED, Prompts, read_prompts, shipped
from residcheck.curves import HorizonInfo, Run, load_run
from residcheck.errors import UsageError
from residcheck.horizon import Variant
from residcheck.measure import (
    EVERYTHING,
    HorizonOptions,
    installed_version,
    open_session,
    run_session,
)
from residcheck.models import ModelSpec, parse_spec
from residcheck.progress import Progress, silent

LIBRARIES = ("torch", "transformers", "transformer_lens")
Again = Callable[[str, Iterable[str], Progress], Run]
"""Measures a side again: dtype, curves, progress. Raises ``ResidcheckError`` where it cannot."""


@dataclass(frozen=True)
class How:
    """How live sides are measured: prompts, and what else the command line says.

    ``prompts_file`` is None for the shipped passages, and where the other side's count.
    """

    prompts_file: Path | None = None
    max_tokens: int | None = None
    batch_size: int | None = None
    other_weights: bool = False


@dataclass(frozen=True)
class Side:
    """A run, what to call it, and how to have it again.

    ``fresh``: it was measured just now, so that measuring it again would show nothing.
    """

    label: str
    run: Run
    again: Again
    fresh: bool


def from_file(path: Path, how: How) -> Side:
    """A side that was measured before.

    Raises:
        RunFileError: no run file, or a damaged one.
    """
    run = load_run(path)
    return Side(str(path), run, lambda *args: _measured_again(run, how, *args), fresh=False)


def live(label: str, spec: ModelSpec, how: How, like: Run | None, progress: Progress) -> Side:
    """A side that is measured now; on the prompts of ``like``, and its curves, if given.

    Raises:
        UsageError: other weights than those of ``like``, or prompts that are not at hand.
        ResidcheckError: the model cannot be measured.
    """

    def measured(dtype: str, names: Iterable[str], progress: Progress = silent) -> Run:
        return _measure(spec.with_options(dtype=dtype), how, like, names, progress)

    names = EVERYTHING if like is None else _names(like)
    return Side(label, measured(spec.dtype, names, progress), measured, fresh=True)


def spec_of(run: Run) -> ModelSpec:
    """The model of a run, as it was run.

    Raises:
        UsageError: a name that is none.
    """
    model = run.model
    return parse_spec(run.spec or model.id).with_options(
        dtype=model.dtype,
        device=model.device,
        backend=model.backend,
        processing=model.processing,
        attention=model.attention,
    )


def _measured_again(
    run: Run, how: How, dtype: str, names: Iterable[str], progress: Progress
) -> Run:
    for library in dict.fromkeys((*LIBRARIES, run.model.backend)):
        then, here = run.environment.get(library), installed_version(library)
        if then != here:
            raise UsageError(f"it was measured with {library} {then}, and {here} is here")
    return _measure(spec_of(run).with_options(dtype=dtype), how, run, names, progress)


def _measure(
    spec: ModelSpec, how: How, like: Run | None, names: Iterable[str], progress: Progress
) -> Run:
    """Measure; what may not be compared is refused before the long part."""
    prompts = _prompts(how, like)
    max_tokens = how.max_tokens if like is None else like.prompts.max_tokens
    wanted = list(names)
    session = open_session(spec, prompts, max_tokens, progress, wanted)
    if like is not None:
        if not how.other_weights:
            refuse_other_weights(like.model.weights, session.loaded.weights)
        refuse_other_prompts(like.prompts, session.encoded.info())
    horizon = HorizonOptions(sample=how.prompts_file is None)
    if like is not None and like.horizon is not None:
        sampled = like.horizon.prompts.sha256 != like.prompts.sha256
        horizon = HorizonOptions(_variant(like.horizon), sample=sampled)
    return run_session(session, wanted, how.batch_size, horizon, progress)


def _prompts(how: How, like: Run | None) -> Prompts:
    if how.prompts_file is not None:
        return read_prompts(how.prompts_file)
    if like is None or like.prompts.source == SHIPPED:
        return shipped()
    raise UsageError(
        f"the run was measured on {like.prompts.source!r}, which is not in the run file",
        "say where it is with --prompts",
    )


def _names(run: Run) -> list[str]:
    """What a run has, or says that it cannot have."""
    return [name for name in EVERYTHING if name in run.curves or name in run.model.missing]


def _variant(info: HorizonInfo) -> Variant:
    return Variant(**{field.name: getattr(info, field.name) for field in fields(Variant)})
