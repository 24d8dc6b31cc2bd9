"""One fault in one tiny model: which channels see it, and how large it is if none does.

The models are those of ``tiny``, with settings that let faults bite: windows shorter than the
prompts, caps and scales far from their defaults, biases everywhere.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from tiny import build
from torch import Tensor

from residcheck.backends import SITES, Backend, open_backend
from residcheck.claim import all_claims
from residcheck.corpus import Prompts, shipped
from residcheck.curves import Run
from residcheck.errors import ResidcheckError, first_line
from residcheck.faults import Fault, Subject, open_faulty
from residcheck.faults.base import nothing
from residcheck.faults.libraries import writes_in_place
from residcheck.logits import logit_distance
from residcheck.measure import gate, open_session, run_session
from residcheck.measure.identities import distance
from residcheck.measure.opening import Session
from residcheck.models import ModelSpec, load
from residcheck.models.quiet import quiet_libraries
from residcheck.names import EVERYTHING, HORIZON
from residcheck.snapshot import compare_documents, curve_document
from residcheck.stats import Outcome
from residcheck.tolerances import tolerance
from residcheck.weights import gate as weights_gate
from residcheck.zoo import SETTINGS as SETTINGS

BACKENDS = ("transformers", "transformer_lens")
NAMES = [name for name in EVERYTHING if name not in HORIZON or name == "loss"]
GATED = ("W_O_frobenius",)
"""A curve that needs both gates."""
EXACT = ("mean-zero", "ln-input-norm", "triangle-bound", "rotation-invariance", "bos-constant")
PROMPTS = Prompts(shipped().source, shipped().texts[:8])
TOKENS = 24
PADDING = 4
ROUNDING = tolerance("float32")

_FOLDER = tempfile.TemporaryDirectory(prefix="residcheck-")


@cache
def folder(model: str) -> Path:
    family, overrides = SETTINGS[model]
    path = Path(_FOLDER.name) / model
    with quiet_libraries():
        return build(family, path, **overrides)


def spec_of(model: str, backend: str) -> ModelSpec:
    return ModelSpec(str(folder(model))).with_options(backend=backend)


Documents = dict[str, dict[str, Any]]


def documents(run: Run) -> Documents:
    return {name: curve_document(run, name) for name in run.curves}


@dataclass
class Sound:
    """A model as it is, opened once by a backend, and what it gives.

    ``noise`` is how far its outputs are from the same model's in float64, or, of experts,
    from those of rows run one by one.
    """

    model: str
    backend: str

    def __post_init__(self) -> None:
        self.spec = spec_of(self.model, self.backend)
        self.session = open_session(self.spec, PROMPTS, TOKENS, names=NAMES)
        self.run = run_session(self.session, NAMES)
        self.documents = documents(self.run)
        self.exact = exact_claims(self.run, Outcome.SUPPORTED)
        plain = load(self.spec).model
        processed = self.spec.processing == "processed"
        self.subject = Subject.of(plain, self.session.backend.anatomy, processed)
        tokens = self.session.gate_tokens
        with torch.inference_mode(), quiet_libraries():
            self.reference = plain(input_ids=tokens, use_cache=False).logits
        self.output = outputs(self.session.backend, tokens)
        self.noise = change(self.output, self._again(tokens))

    def _again(self, tokens: Tensor) -> Outputs:
        """The same numbers with other rounding: in float64, or in rows one by one."""
        try:
            return outputs(open_backend(load(self.spec.with_options(dtype="float64"))), tokens)
        except RuntimeError:  # torch has no float64 kernel for experts
            alone = [outputs(self.session.backend, row[None]) for row in tokens]
            return {place: torch.cat([rows[place] for rows in alone]) for place in self.output}


@cache
def sound(model: str, backend: str) -> Sound:
    return Sound(model, backend)


@cache
def refused(model: str, backend: str) -> str:
    """Why a model cannot be measured at all; empty if it can."""
    try:
        with quiet_libraries():
            sound(model, backend)
    except ResidcheckError as error:
        return first_line(error)
    return ""


def exact_claims(run: Run, outcome: Outcome) -> set[str]:
    """The exact claims that come out so."""
    chosen = [claim for claim in all_claims() if claim.id in EXACT]
    return {claim.id for claim in chosen if claim.evaluate(run).outcome is outcome}


Outputs = dict[str, Tensor]


def outputs(backend: Backend, tokens: Tensor) -> Outputs:
    """Every site of every layer at every token, and the logits; with left padding, too."""
    found: Outputs = {}
    padded = torch.cat([tokens[:, :1].repeat(1, PADDING), tokens], dim=1)
    for kind, row, start in (("", tokens, 0), ("padded ", padded, PADDING)):
        mask = torch.ones_like(row)
        mask[:, :start] = 0
        taps = {
            (layer, site): _keep(found, f"{kind}{site} {layer}", start)
            for layer in range(backend.anatomy.n_layers)
            for site in SITES
            if backend.anatomy.has(site)
        }
        logits = backend.forward(row, mask, taps, logits=True)
        assert logits is not None
        found[f"{kind}logits"] = logits[:, start:].clone()
    return found


def _keep(found: Outputs, name: str, start: int) -> Any:
    def keep(x: Tensor) -> None:
        found[name] = x[:, start:].clone()

    return keep


@dataclass(frozen=True)
class Change:
    """The largest change of the logits, of their spread, and of a site, of its norm."""

    logits: float
    site: float
    where: str

    @property
    def largest(self) -> float:
        return max(self.logits, self.site)


def change(now: Outputs, then: Outputs) -> Change:
    logits, site, where = 0.0, 0.0, "none"
    for name in then.keys() & now.keys():
        if name.endswith("logits"):
            logits = max(logits, logit_distance(now[name], then[name]))
        elif (size := distance(now[name].double(), then[name].double())) > site:
            site, where = size, name
    return Change(logits, site, where)


@dataclass(frozen=True)
class Cell:
    """What happened with one fault in one model, planted by the model or by a backend.

    ``signal`` is the largest difference of a curve from the sound run's over its bound;
    ``across`` the same against the sound run of the other backend. Both are NaN where
    nothing was measured.
    """

    fault: str
    model: str
    backend: str
    by: str
    gate: str = ""
    curve: str = ""
    signal: float = float("nan")
    vanished: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()
    across: float = float("nan")
    effect: Change | None = None
    noise: float = 0.0
    error: str = ""

    @property
    def channels(self) -> tuple[str, ...]:
        there = {
            "gate": bool(self.gate),
            "snapshot": self.signal > 1,
            "claim": bool(self.claims),
            "backends": self.across > 1,
        }
        return tuple(name for name, seen in there.items() if seen)

    @property
    def changes_something(self) -> bool:
        """Whether an output moved by more than rounding does."""
        return self.effect is None or self.effect.largest > self.noise


def cell(fault: Fault, model: str, backend: str, by: str, both: bool = True) -> Cell:
    """Plant a fault, and see who sees it; ``both``: against the other backend, too."""
    base = sound(model, backend)
    found = Cell(fault.name, model, backend, by)
    try:
        session = _opened(fault, base, by)
    except ResidcheckError as error:
        found = replace(found, gate=type(error).__name__ + ": " + _headline(error))
        if by != "model" or backend != "transformers":
            return found
        with gates_open():
            return _measured(found, fault, base, by, both)
    return _through(found, session, base, both)


def _headline(error: ResidcheckError) -> str:
    return first_line(error).partition(";")[0]


def _opened(fault: Fault, base: Sound, by: str) -> Session:
    """A session on the faulty model, past both gates."""
    if fault.apply is nothing and fault.wrap is not writes_in_place:
        session = replace(base.session, backend=fault.wrap(base.session.backend))
        gate.check(session.backend, session.gate_tokens, base.reference, ROUNDING)
        weights_gate.check(session.backend, session.gate_tokens, ROUNDING)
        return session
    names = NAMES if by == "model" else GATED
    return open_faulty(base.spec, fault, PROMPTS, TOKENS, names, by)  # type: ignore[arg-type]


def _measured(found: Cell, fault: Fault, base: Sound, by: str, both: bool) -> Cell:
    """What the other channels would say of what a gate has stopped."""
    try:
        return _through(found, _opened(fault, base, by), base, both)
    except Exception:  # of many kinds: it cannot even be measured
        return found


def _through(found: Cell, session: Session, base: Sound, both: bool) -> Cell:
    run = run_session(session, NAMES)
    now = documents(run)
    worst, signal = _worst(base.documents, now)
    across = float("nan")
    other = next(b for b in BACKENDS if b != found.backend)
    if both and not refused(found.model, other):
        common = agreeing(found.model)
        _, across = _worst({n: sound(found.model, other).documents[n] for n in common}, now)
    found = replace(
        found,
        curve=worst,
        signal=signal,
        vanished=tuple(sorted(base.documents.keys() - now.keys())),
        claims=tuple(sorted(base.exact & exact_claims(run, Outcome.REFUTED))),
        across=across,
    )
    if found.channels:
        return found
    effect = change(outputs(session.backend, session.gate_tokens), base.output)
    return replace(found, effect=effect, noise=base.noise.largest)


@cache
def agreeing(model: str) -> tuple[str, ...]:
    """The curves on which the backends agree about the sound model."""
    one, other = (sound(model, backend).documents for backend in BACKENDS)
    return tuple(n for n in one.keys() & other.keys() if compare_documents(one[n], other[n]).same)


def _worst(then: Documents, now: Documents, axes: tuple[str, ...] = ()) -> tuple[str, float]:
    """The curve that moved most, with its part, and by how much of its bound."""
    worst, signal = "", 0.0
    for name in sorted(then.keys() & now.keys()):  # ties go the same way every time
        if set(axes) & set(then[name]["curve"]["dims"]):
            continue
        compared = compare_documents(then[name], now[name])
        if compared.margin >= signal and compared.closest is not None:
            worst, signal = f"{name} ({compared.closest.part})", compared.margin
    return worst, signal


def false_alarm(fault: Fault, model: str, backend: str) -> tuple[str, float]:
    """Of a change that changes nothing: the curve that moved most, and by how much.

    Raises:
        ResidcheckError: a gate saw it.
    """
    base = sound(model, backend)
    session = open_faulty(base.spec, fault, PROMPTS, TOKENS, NAMES)
    run = run_session(session, NAMES)
    exact = exact_claims(run, Outcome.SUPPORTED)
    assert exact == base.exact, sorted(base.exact ^ exact)
    return _worst(base.documents, documents(run), fault.axes)


@contextmanager
def gates_open() -> Iterator[None]:
    """Let everything through both gates."""
    closed = (patch.object(gate, "check"), patch.object(weights_gate, "check"))
    with closed[0], closed[1]:
        yield
