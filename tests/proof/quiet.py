"""Pairs of runs that differ in nothing that matters: nothing may raise an alarm.

``PYTHONPATH=tests python tests/proof/quiet.py``, or ``nox -s quiet``, writes the section on
false alarms of ``claims/PROOF.md``, and how small a change of one head of SmolLM2 is seen.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import click
import torch
from proof.cells import BACKENDS, NAMES, TOKENS, documents, refused, spec_of
from proof.page import table, write_section
from rich.progress import Progress
from tiny import FAMILIES
from torch import Tensor

from residcheck.backends import Tap, Taps, open_backend
from residcheck.claim import all_claims
from residcheck.corpus import Prompts, shipped
from residcheck.curves import Run, load_run, save_run
from residcheck.errors import LoadError
from residcheck.faults import Fault, Subject, open_faulty
from residcheck.faults.base import always
from residcheck.faults.taps import Around
from residcheck.measure import HorizonOptions, measure, run_session
from residcheck.measure.opening import open_loaded
from residcheck.models import ModelSpec, load
from residcheck.models.quiet import quiet_libraries
from residcheck.names import QUANTITIES, STRUCTURE
from residcheck.snapshot import compare_documents
from residcheck.tolerances import tolerance

PROMPTS = Prompts(
    shipped().source,
    tuple(text[: 20 + 9 * number] for number, text in enumerate(shipped().texts[:9])),
)
"""Prompts of different lengths, so that batches are padded."""
OF_THE_PASS = (*QUANTITIES, *STRUCTURE, "loss")
IN_PADDING = ("padding_spread", "bos_spread", "padding_shift")
REAL = "smollm2-135m"
HEADS = ((0, 0), (7, 4), (15, 2), (22, 8), (29, 5))
"""Layers and heads of SmolLM2 that are scaled."""


@dataclass(frozen=True)
class Pair:
    """Two runs: the curve that came closest to its bound, and what raised an alarm."""

    kind: str
    model: str
    backend: str
    margin: float
    curve: str
    alarms: tuple[str, ...]


class LeftPadded(Around):
    """Pads on the left what was padded on the right; its taps see the tensors as they were."""

    def forward(self, tokens: Tensor, mask: Tensor, taps: Taps, *, logits: bool) -> Tensor | None:
        behind = (mask[:, -1] == 0).long() * (mask.shape[1] - mask.sum(dim=1))
        places = torch.arange(mask.shape[1])[None] - behind[:, None]
        forth, back = places % mask.shape[1], (places + 2 * behind[:, None]) % mask.shape[1]
        moved = {where: _moved(tap, forth, back) for where, tap in taps.items()}
        rows = (tokens.gather(1, forth), mask.gather(1, forth))
        result = self.inner.forward(*rows, moved, logits=logits)
        return None if result is None else _rolled(result, back)


def _rolled(x: Tensor, places: Tensor) -> Tensor:
    return x.gather(1, places[..., None].expand_as(x))


def _moved(tap: Tap, forth: Tensor, back: Tensor) -> Tap:
    def see(x: Tensor) -> Tensor | None:
        replaced = tap(_rolled(x, back))
        return None if replaced is None else _rolled(replaced, forth)

    return see


def taken(spec: ModelSpec, prompts: Prompts = PROMPTS, batch_size: int = 4) -> Run:
    with quiet_libraries():
        return measure(spec, prompts, max_tokens=TOKENS, names=NAMES, batch_size=batch_size)


@cache
def usual(model: str, backend: str, attention: str = "") -> Run:
    return taken(_spec(model, backend).with_options(attention=attention))


def _spec(model: str, backend: str) -> ModelSpec:
    return spec_of(model, backend) if model in FAMILIES else _real(model, backend)


def _real(model: str, backend: str) -> ModelSpec:
    return ModelSpec(model).with_options(backend=backend)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


Other = Callable[[str, str], Run | None]


def _one_by_one(model: str, backend: str) -> Run:
    return taken(_spec(model, backend), batch_size=1)


def _all_at_once(model: str, backend: str) -> Run:
    return taken(_spec(model, backend), batch_size=16)


def _on_two_threads(model: str, backend: str) -> Run:
    with _threads(2):
        return taken(_spec(model, backend))


def _eager(model: str, backend: str) -> Run | None:
    if backend != "transformers" or usual(model, backend).model.attention != "sdpa":
        return None
    return taken(_spec(model, backend).with_options(attention="eager"))


def _in_float64(model: str, backend: str) -> Run | None:
    try:
        return taken(_spec(model, backend).with_options(dtype="float64"))
    except LoadError:  # torch has no float64 kernel for experts
        return None


def counts_padding(model: str, backend: str) -> bool:
    """Whether the library counts left padding in positions, so that it moves every token."""
    shift = usual(model, backend)["padding_shift"].values
    return bool(shift.max() > tolerance("float32").token)


def _padded_left(model: str, backend: str) -> Run | None:
    if counts_padding(model, backend):
        return None
    with quiet_libraries():
        session = open_loaded(
            load(_spec(model, backend)),
            PROMPTS,
            TOKENS,
            names=NAMES,
            opener=lambda loaded: LeftPadded(open_backend(loaded)),  # type: ignore[arg-type, return-value]
        )
        return run_session(session, NAMES, 4)


def _in_reverse(model: str, backend: str) -> Run:
    return taken(_spec(model, backend), Prompts(PROMPTS.source, PROMPTS.texts[::-1]))


# kind: how the other run is made, and the curves that are left out, with the reason.
KINDS: dict[str, tuple[Other, tuple[str, ...], str]] = {
    "prompts one by one": (_one_by_one, (), ""),
    "16 prompts at once": (_all_at_once, (), ""),
    "two threads": (_on_two_threads, (), ""),
    "eager attention for sdpa": (
        _eager,
        ("padding_spread",),
        "what a padding position holds is the kernel's choice",
    ),
    "padding on the left": (_padded_left, (), ""),
    "prompts in reverse": (
        _in_reverse,
        tuple(name for name in NAMES if name not in OF_THE_PASS),
        "probes and fingerprints are of the first prompts, and so are claims' windows",
    ),
    "float64 for float32": (
        _in_float64,
        IN_PADDING,
        "eager attention makes padding NaN in float64",
    ),
}


def pair(kind: str, model: str, backend: str) -> Pair | None:
    """None where the two runs would be the same, or differ by design."""
    other, left_out, _ = KINDS[kind]
    run = other(model, backend)
    return None if run is None else compared(kind, usual(model, backend), run, left_out)


def compared(kind: str, one: Run, other: Run, left_out: Iterable[str] = ()) -> Pair:
    then, now = documents(one), documents(other)
    margin, curve, alarms = 0.0, "", []
    for name in then.keys() - set(left_out):
        if name not in now:
            alarms.append(f"{name} is gone")
            continue
        found = compare_documents(then[name], now[name])
        if found.margin >= margin:
            margin, curve = found.margin, name
        if not found.same:
            alarms.append(name)
    if kind != "prompts in reverse":
        alarms += _other_verdicts(one, other, left_out)
    return Pair(kind, one.model.id, one.model.backend, margin, curve, tuple(alarms))


def _other_verdicts(one: Run, other: Run, left_out: Iterable[str]) -> list[str]:
    known = {*one.curves, *one.model.missing} - set(left_out)
    return [
        claim.id
        for claim in all_claims()
        if known.issuperset(claim.needs)
        and claim.evaluate(one).outcome is not claim.evaluate(other).outcome
    ]


def families(backend: str) -> list[str]:
    return [family for family in FAMILIES if not refused(family, backend)]


def elsewhere(folder: Path) -> Iterator[Pair]:
    """The same runs from a second process."""
    command = [sys.executable, __file__, "--into", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    for backend in BACKENDS:
        for model in families(backend):
            run = load_run(folder / f"{model}-{backend}.json")
            yield compared("a second process", usual(model, backend), run)


def save_all(folder: Path) -> None:
    for backend in BACKENDS:
        for model in families(backend):
            save_run(usual(model, backend), folder / f"{model}-{backend}.json")


def real_pairs(progress: Progress) -> Iterator[Pair]:
    """A handful on a trained model."""
    kinds = ("prompts one by one", "two threads", "eager attention for sdpa", "padding on the left",
             "float64 for float32")  # fmt: skip
    for kind in progress.track(kinds, description=REAL):
        found = pair(kind, REAL, "transformers")
        if found is not None:
            yield found


def head_scaled(layer: int, head: int) -> Fault:
    def apply(subject: Subject) -> None:
        attention = subject.weights(layer).attention
        assert attention is not None
        attention.W_O[head].mul_(1.01)

    return Fault(f"head {head} of layer {layer}", "times 1.01", "model", always, apply)


def heads_of_a_real_model(progress: Progress) -> Iterator[tuple[object, ...]]:
    """One head of SmolLM2 times 1.01, on the prompts that its snapshots are of."""
    spec = ModelSpec(REAL).with_options(backend="transformers")
    prints = ("resid_post_fingerprint", "logit_fingerprint")
    names, horizon = (*QUANTITIES, "loss", *prints), HorizonOptions(sample=True)
    sound = documents(measure(spec, names=names, horizon=horizon))
    for layer, head in progress.track(HEADS, description="heads"):
        session = open_faulty(spec, head_scaled(layer, head), shipped(), names=names)
        now = documents(run_session(session, names, horizon=horizon))
        found = {name: compare_documents(sound[name], now[name]) for name in sound}
        order = sorted(found, key=lambda name: found[name].margin, reverse=True)
        best = next(name for name in order if name not in prints)
        closest = found[best].closest
        assert closest is not None
        moved = sum(not comparison.same for comparison in found.values())
        yield (
            f"{layer}.{head}", best, f"{closest.part} at layer {closest.index}",
            _times(found[best].margin), _times(found["loss"].margin),
            *(_times(found[name].margin) for name in prints), f"{moved} of {len(found)}",
        )  # fmt: skip


def _times(ratio: float) -> str:
    return "∞" if math.isinf(ratio) else f"{ratio:.3g}"


_HEADER = (
    "pairs differ in", "pairs", "alarms", "largest difference over its bound", "in", "left out",
)  # fmt: skip
_HEADS_HEADER = (
    "head", "curve", "where", "times its bound", "loss", "stream's fingerprint",
    "logits' fingerprint", "curves moved",
)  # fmt: skip


def section(pairs: list[Pair], heads: list[tuple[object, ...]]) -> str:
    versions = ", ".join(f"{n} {version(n)}" for n in ("torch", "transformers", "transformer-lens"))
    alarms = [p for p in pairs if p.alarms]
    worst = max(pairs, key=lambda p: p.margin)
    lines = [
        "## Runs that differ in nothing that matters",
        f"`nox -s quiet`, with {versions}: {len(pairs)} pairs of runs, "
        f"{len({p.model for p in pairs})} models, both backends. Every curve is held against the "
        "other run's as against a snapshot, and every verdict against the other's. "
        f"**Alarms: {len(alarms)}.** The largest difference is {_times(worst.margin)} of its bound "
        f"({worst.curve} of {worst.model}, {worst.kind}).",
        table(_HEADER, _rows(pairs)),
    ]
    if alarms:
        lines += ["### Alarms", table(("pair", "model", "backend", "what"), _listed(alarms))]
    by_design = [f"{m} ({b})" for b in BACKENDS for m in families(b) if counts_padding(m, b)]
    lines.append(
        "Left out of the pairs padded on the left, since the library counts padding in their "
        f"positions: {', '.join(by_design) or 'none'}."
    )
    if heads:
        lines += [
            f"### One head of {REAL} times 1.01",
            "On the prompts of its snapshots, in float32, all in multiples of the bounds: the "
            "curve of the pass, or the loss, that moved most; the loss; the fingerprints.",
            table(_HEADS_HEADER, heads),
        ]
    return "\n\n".join(lines)


def _rows(pairs: list[Pair]) -> Iterator[tuple[object, ...]]:
    for kind in dict.fromkeys(p.kind for p in pairs):
        own = [p for p in pairs if p.kind == kind]
        worst = max(own, key=lambda p: p.margin)
        _, left_out, why = KINDS.get(kind, (None, (), ""))
        named = ", ".join(left_out) if len(left_out) < 4 else f"{len(left_out)} curves"
        yield (
            kind, len(own), sum(bool(p.alarms) for p in own), _times(worst.margin),
            f"{worst.curve}: {worst.model}, {worst.backend}", f"{named}: {why}" if why else "",
        )  # fmt: skip


def _listed(alarms: list[Pair]) -> list[tuple[object, ...]]:
    return [(p.kind, p.model, p.backend, ", ".join(p.alarms)) for p in alarms]


def tiny_pairs(progress: Progress) -> Iterator[Pair]:
    planned: list[tuple[str, str, str]] = [
        (kind, model, backend)
        for backend in BACKENDS
        for model in families(backend)
        for kind in KINDS
    ]
    task = progress.add_task("pairs", total=len(planned))
    for kind, model, backend in planned:
        progress.update(task, description=f"{model}: {kind}")
        found = pair(kind, model, backend)
        if found is not None:
            yield found
        progress.advance(task)


@click.command()
@click.option("--real/--no-real", default=True, help=f"With {REAL}, too.")
@click.option("--into", type=click.Path(path_type=Path), help="Save the runs here, and end.")
def main(real: bool, into: Path | None) -> None:
    """Measure everything twice, and see to it that nothing moves."""
    torch.set_num_threads(1)
    if into is not None:
        save_all(into)
        return
    with Progress() as progress, tempfile.TemporaryDirectory() as folder:
        pairs = [*tiny_pairs(progress), *elsewhere(Path(folder))]
        pairs += real_pairs(progress) if real else []
        heads = list(heads_of_a_real_model(progress)) if real else []
    text = section(pairs, heads)
    if real:
        write_section("quiet", text)
    click.echo(text)
    sys.exit(any(p.alarms for p in pairs))


if __name__ == "__main__":
    main()
