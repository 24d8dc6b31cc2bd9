"""With which version of a library does a model's run change?"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from residcheck.comparison.quantities import Compared
from residcheck.comparison.quantities import document as comparison_document
from residcheck.comparison.refusal import refuse
from residcheck.comparison.settling import compare
from residcheck.comparison.sides import How, Side
from residcheck.curves import Run, load_run
from residcheck.errors import (
    ExitStatus,
    GateError,
    LoadError,
    ResidcheckError,
    RunFileError,
    UsageError,
)
from residcheck.files import write_text
from residcheck.measure import installed
from residcheck.models import ModelSpec
from residcheck.models.cache import home
from residcheck.models.spec import path_exists
from residcheck.overlays import available, overlay, run_residcheck
from residcheck.progress import Progress

SCHEMA = "residcheck.bisection/1"
_GATE = re.compile(r"^error: ((?:identity|weights) gate: .*)$", re.MULTILINE)
_ERROR = re.compile(r"^error: (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Probe:
    """One version, held against A.

    ``same`` is None where it could not be measured. ``said`` is the worst difference, the
    gate that failed, or the error; ``compared`` is there where there is a run to compare.
    """

    version: str
    same: bool | None
    said: str
    compared: Compared | None = None

    @property
    def word(self) -> str:
        return {True: "same", False: "different", None: "not measured"}[self.same]


@dataclass(frozen=True)
class Bisection:
    """What was found of the versions that were measured, in their order.

    ``change`` are the neighbours, of those that were measured, between which the verdict
    turns; None where it is the same at both ends. ``versions`` are all that were asked for.
    """

    package: str
    versions: tuple[str, ...]
    probes: tuple[Probe, ...]
    change: tuple[Probe, Probe] | None

    @property
    def different(self) -> Probe | None:
        """What to show of the difference: next to the change, or any that was found."""
        tried = self.change or self.probes
        return next((probe for probe in tried if probe.same is False), None)

    @property
    def between(self) -> tuple[str, ...]:
        """The versions that the change may be in as well: those that could not be measured."""
        if self.change is None:
            return ()
        first, last = (self.versions.index(probe.version) for probe in self.change)
        return self.versions[first + 1 : last]

    @property
    def status(self) -> ExitStatus:
        if all(probe.same is None for probe in self.probes):
            return ExitStatus.COULD_NOT_MEASURE
        return ExitStatus.OK if self.different is None else ExitStatus.REFUTED_OR_DRIFTED

    @property
    def answer(self) -> str:
        measured = [probe for probe in self.probes if probe.same is not None]
        if not measured:
            return f"no version of {self.package} could be measured"
        if self.change is None:
            word = measured[0].word
            ends = f"{measured[0].version} and {measured[-1].version}"
            return f"{self.package} is {word} at both ends, {ends}: no change to look for between"
        before, after = self.change
        answer = (
            f"{self.package} is {before.word} up to {before.version}, "
            f"{after.word} from {after.version} on"
        )
        if self.between:
            answer += f"; between them, not measured: {', '.join(self.between)}"
        return answer


def wanted_versions(text: str) -> tuple[str, tuple[str, ...]]:
    """``PACKAGE=1.0,1.2`` or ``PACKAGE=1.0..2.0``: the package and its versions, in order.

    Raises:
        UsageError: it cannot be read, or is fewer than two versions.
        LoadError: the package index cannot be asked for those of a range.
    """
    package, _, listed = text.partition("=")
    first, dots, last = listed.partition("..")
    try:
        if dots:
            ends = Version(first), Version(last)
            known = [v for v in available(package.strip()) if ends[0] <= Version(v) <= ends[1]]
        else:
            known = [version.strip() for version in listed.split(",")]
        versions = tuple(sorted(dict.fromkeys(known), key=Version))
    except InvalidVersion as error:
        raise UsageError(
            f"cannot read --bisect {text!r}: {error}",
            "write PACKAGE=1.0,1.2,1.3 or PACKAGE=1.0..1.3",
        ) from error
    if len(versions) < 2:
        raise UsageError(f"--bisect {text!r} leaves fewer than two versions to choose from")
    return package.strip(), versions


def search(package: str, versions: Sequence[str], probe: Callable[[str], Probe]) -> Bisection:
    """Find where the verdict turns, asking for each version at most once.

    Both ends are asked for first. Between them, verdicts are taken to turn once; versions
    that cannot be measured are passed over, the nearest to the middle first.
    """
    probes: dict[int, Probe] = {}

    def ask(index: int) -> bool | None:
        if index not in probes:
            probes[index] = probe(versions[index])
        return probes[index].same

    def found(change: tuple[int, int] | None) -> Bisection:
        told = tuple(probes[index] for index in sorted(probes))
        ends = None if change is None else (probes[change[0]], probes[change[1]])
        return Bisection(package, tuple(versions), told, ends)

    ends = [next((i for i in way if ask(i) is not None), -1) for way in _both_ways(versions)]
    low, high = ends
    if low < 0 or ask(low) == ask(high):
        return found(None)
    while inside := [i for i in range(low + 1, high) if i not in probes]:
        middle = min(inside, key=lambda i: abs(2 * i - sum(ends)))
        if ask(middle) is not None:
            ends = [middle, high] if ask(middle) == ask(low) else [low, middle]
            low, high = ends
    return found((low, high))


def _both_ways(versions: Sequence[str]) -> tuple[range, range]:
    return range(len(versions)), range(len(versions) - 1, -1, -1)


@dataclass(frozen=True)
class Versions:
    """Measures one model with any version of one package, and holds it against A."""

    one: Side
    spec: ModelSpec
    package: str
    how: How
    progress: Progress

    def probe(self, version: str) -> Probe:
        """Raises ``UsageError`` where the runs may not be compared."""
        label = f"{self.package} {version}"
        try:
            run = self.run(version, self.spec.dtype)
            refuse(self.one.run, run, other_weights=self.how.other_weights)
            other = Side(label, run, lambda dtype, names, progress: self.run(version, dtype), True)
            compared = compare(self.one, other, self.progress)
        except UsageError:
            raise
        except GateError as error:
            return Probe(version, False, error.message)
        except ResidcheckError as error:
            return Probe(version, None, error.message)
        worst = compared.worst
        said = compared.summary
        if worst is not None:
            said = ", ".join(filter(None, (f"worst {worst.name}", worst.place, worst.distance)))
        return Probe(version, worst is None, said, compared)

    def run(self, version: str, dtype: str) -> Run:
        """The run with ``version``: measured in a process of its own, or kept from before.

        Raises:
            GateError: it fails a gate.
            LoadError: it cannot be measured.
        """
        folder = overlay(self.package, version, self.progress)
        spec = self.spec.with_options(dtype=dtype)
        kept = home() / "runs" / f"{self._key(spec, version)}.json"
        refused = kept.with_suffix(".gate")
        if (run := self._finished(kept, version)) is not None:
            return run
        if refused.is_file():
            raise GateError(refused.read_text(encoding="utf-8"))
        self.progress(f"measuring {spec} in {dtype} with {self.package} {version}", 0, None)
        kept.parent.mkdir(parents=True, exist_ok=True)
        said = run_residcheck(folder, self._arguments(spec, kept))
        if (run := self._finished(kept, version)) is not None:
            return run
        if gate := _GATE.search(said.stderr):
            write_text(refused, gate[1])
            raise GateError(gate[1])
        error = _ERROR.search(said.stderr)
        lines = said.stderr.strip().splitlines() or ["it said nothing"]
        raise LoadError(error[1] if error else lines[-1])

    def _finished(self, path: Path, version: str) -> Run | None:
        """A run that was measured to its end, with this version; None for anything else."""
        try:
            run = load_run(path)
        except RunFileError:
            return None
        with_version = run.environment.get(self._library, version) == version
        return run if run.complete and with_version else None

    @property
    def _library(self) -> str:
        """The package as a run's environment calls it."""
        return self.package.replace("-", "_")

    def _arguments(self, spec: ModelSpec, out: Path) -> list[str]:
        like = self.one.run.prompts
        name = f"{spec},attention={spec.attention}" if spec.attention else str(spec)
        said = ["measure", name, "--out", str(out), "--max-tokens", str(like.max_tokens)]
        for option in ("dtype", "device", "backend", "processing"):
            said += [f"--{option}", getattr(spec, option)]
        if self.how.prompts_file is not None:
            said += ["--prompts", str(self.how.prompts_file)]
        if self.how.batch_size is not None:
            said += ["--batch-size", str(self.how.batch_size)]
        return said

    def _key(self, spec: ModelSpec, version: str) -> str:
        """Of all that a run depends on; libraries that are laid over are not those here."""
        there = installed(spec.device) | {self._library: version}
        name = str(Path(spec.name).resolve()) if path_exists(spec.name) else spec.name
        said: dict[str, Any] = {
            "spec": repr(spec),
            "name": name,
            "weights": self.one.run.model.weights,
            "prompts": self.one.run.prompts.sha256,
            "max_tokens": self.one.run.prompts.max_tokens,
            "batch_size": self.how.batch_size,
            "environment": there,
        }
        return sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:24]


def document(found: Bisection) -> dict[str, Any]:
    """What was found, as plain data; with all of the comparison that shows the difference."""
    shown = found.different
    return {
        "schema": SCHEMA,
        "status": int(found.status),
        "package": found.package,
        "answer": found.answer,
        "versions": list(found.versions),
        "measured": [
            {"version": probe.version, "verdict": probe.word, "said": probe.said}
            for probe in found.probes
        ],
        "comparison": None
        if shown is None or shown.compared is None
        else comparison_document(shown.compared),
    }
