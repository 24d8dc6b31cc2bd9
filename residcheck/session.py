"""The measurements of one pytest session: each model once, shared between workers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from residcheck.claim import Claim
from residcheck.corpus import Prompts, read_prompts
from residcheck.curves import Run, load_run, save_run
from residcheck.judging import DEFAULT_SNAPSHOTS, judge_run, needed_curves
from residcheck.models import BUILTIN, DEFAULT_MODEL, ModelSpec, parse_spec
from residcheck.models.shelf import at_hand
from residcheck.models.spec import path_exists


@dataclass
class Measurements:
    """What a session measures and what it has measured.

    ``specs`` maps each model as it was asked for to its spec with the session's options.
    """

    specs: dict[str, ModelSpec]
    prompts: Prompts
    max_tokens: int | None
    batch_size: int | None
    snapshots: Path
    _claims: dict[str, Claim] = field(default_factory=dict)
    _curves: dict[str, None] = field(default_factory=dict)
    _runs: dict[ModelSpec, Run] = field(default_factory=dict)

    @classmethod
    def of(cls, options: Any, folder: Path) -> Measurements:
        """From pytest's options, given in ``folder``; raises ``UsageError`` for what is wrong."""
        texts = options.residcheck_models or [DEFAULT_MODEL]
        specs = {
            text: parse_spec(text).with_options(
                device=options.residcheck_device,
                dtype=options.residcheck_dtype,
                backend=options.residcheck_backend,
            )
            for text in texts
        }
        return cls(
            specs,
            read_prompts(options.residcheck_prompts),
            options.residcheck_max_tokens,
            options.residcheck_batch_size,
            options.residcheck_snapshots or folder / DEFAULT_SNAPSHOTS,
        )

    def want(self, claims: Iterable[Claim], curves: Iterable[str]) -> None:
        """Note what was collected: the union is measured in one pass."""
        self._claims |= {claim.id: claim for claim in claims}
        self._curves |= dict.fromkeys((*needed_curves(list(self._claims.values())), *curves))

    def run(self, spec: ModelSpec, shared: Path) -> Run:
        """The run of ``spec``, measured by the first process that asks for it."""
        if spec not in self._runs:
            from filelock import FileLock

            from residcheck.measure import HorizonOptions, measure

            path = self._run_file(spec, shared)
            with FileLock(path.with_suffix(".lock")):
                if path.is_file():
                    self._runs[spec] = load_run(path)
                else:
                    self._runs[spec] = measure(
                        spec,
                        self.prompts,
                        max_tokens=self.max_tokens,
                        names=self._curves,
                        batch_size=self.batch_size,
                        horizon=HorizonOptions(sample=True),
                    )
                    save_run(self._runs[spec], path)
        return self._runs[spec]

    @staticmethod
    def _run_file(spec: ModelSpec, shared: Path) -> Path:
        return shared / f"residcheck-{sha256(repr(spec).encode()).hexdigest()[:16]}.json"

    def write_files(self, html: Path | None, markdown: Path | None, shared: Path | None) -> None:
        """Judge what was measured, here or by the workers; write the report and the summary."""
        from residcheck.output import write_files

        runs = []
        for spec in self.specs.values():
            if spec in self._runs:
                runs.append(self._runs[spec])
            elif shared is not None and self._run_file(spec, shared).is_file():
                runs.append(load_run(self._run_file(spec, shared)))
        claims = list(self._claims.values()) or None
        results = [judge_run(run, claims, self.snapshots) for run in runs]
        write_files(results, html, None, markdown)


def needs_network(spec: ModelSpec) -> bool:
    """Whether loading ``spec`` may reach for the package index or the model hub."""
    if spec.name in BUILTIN:
        return at_hand(BUILTIN[spec.name]) is None
    return not path_exists(spec.name)
