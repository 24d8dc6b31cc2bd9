"""Which cells there are, and everything a run of them needs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path

from packaging.version import Version

from residcheck import tolerances, zoo
from residcheck.errors import GateError, UsageError
from residcheck.models.quiet import quiet_libraries
from residcheck.overlays import available
from residcheck.progress import Progress, silent
from residcheck.regress import expected, runner
from residcheck.regress import judge as judging
from residcheck.regress.cells import (
    LIBRARIES,
    PACKAGE,
    Cell,
    Library,
    Seen,
    code_hash,
    folder_digest,
    key_of,
    read,
    seconds_of,
)
from residcheck.regress.environments import (
    LENS,
    OLD_LENS,
    TRANSFORMERS,
    Environment,
    newest_patches,
    prepare,
)
from residcheck.regress.judge import Judgement, judge

OLD_TRANSFORMERS = ("4.46.3", "4.51.3", "4.57.6")
LIMIT = 120.0
"""Seconds for a cell, which takes two on an idle core."""


def default_versions() -> dict[Library, list[str]]:
    """What a plain run covers, oldest first.

    Of TransformerLens 2 the newest patch of every minor release, of 3 and 4 every release; of
    transformers some of 4, and of 5 the newest patch of every minor release up to the one that
    is installed.
    """
    lens = sorted(map(Version, available(LENS)))
    old = newest_patches(str(v) for v in lens if v.major == 2)
    three = [str(v) for v in lens if v.major == 3]
    four = [str(v) for v in lens if v.major >= 4]
    installed = Version(version(TRANSFORMERS))
    new = [v for v in map(Version, available(TRANSFORMERS)) if v.major >= 5 and v <= installed]
    return {
        "bridge": [*three, *four],
        "hooked": [*old, *three],
        "transformers": [*OLD_TRANSFORMERS, *newest_patches(map(str, new))],
    }


@dataclass(frozen=True)
class Matrix:
    """Versions of each library, models, and the cache that holds what is known of them."""

    versions: dict[Library, list[str]]
    models: tuple[str, ...]
    cache: Path

    @property
    def cells(self) -> list[Cell]:
        """The reference first, then version by version, newest first."""
        pairs = sorted(
            ((library, v) for library in LIBRARIES for v in self.versions.get(library, [])),
            key=lambda pair: (PACKAGE[pair[0]] == LENS, Version(pair[1])),
            reverse=True,
        )
        order = [("transformers", version(TRANSFORMERS)), *pairs]
        return [Cell(lib, v, m) for lib, v in dict.fromkeys(order) for m in self.models]

    def run(self, limit: float = LIMIT, progress: Progress = silent, jobs: int = 1) -> None:
        (self.cache / "cells").mkdir(parents=True, exist_ok=True)
        runner.run(
            self.cells,
            lambda package, wanted: prepare(package, wanted, self.cache, progress),
            self._place,
            limit,
            progress,
            jobs=jobs,
        )

    def environment(self, library: Library, wanted: str) -> Environment:
        return prepare(PACKAGE[library], wanted, self.cache)

    def transformers_of(self, library: Library, wanted: str) -> str:
        """The version of transformers that a version of a library runs beside."""
        if library == "transformers":
            return wanted
        pinned = next(p for p in OLD_LENS if p.startswith("transformers=="))
        old = Version(wanted) < Version("3")
        return pinned.partition("==")[2] if old else version(TRANSFORMERS)

    def _place(self, cell: Cell, environment: Environment) -> tuple[Path, Path]:
        folder, digest = self.model(cell.model)
        return folder, self.cache / "cells" / key_of(cell, environment, digest)

    def model(self, name: str) -> tuple[Path, str]:
        """Folder and digest of a model of the zoo, made where it is not there yet."""
        return _saved(name, self.cache / "zoo")

    def path(self, cell: Cell) -> Path:
        """Where what is kept of a cell lies, without suffix."""
        environment = prepare(PACKAGE[cell.library], cell.version, self.cache)
        return self._place(cell, environment)[1]

    def seconds(self) -> float:
        """What all cells took, one after the other."""
        return sum(seconds_of(self.path(cell)) for cell in self.cells)

    def seen(self, cell: Cell) -> Seen:
        """What is kept of a cell that was run."""
        return read(self.path(cell))

    def reference(self, model: str) -> Seen:
        """Plain transformers, as installed.

        Raises:
            GateError: it does not pass residcheck's identity gate: there is no judge then.
        """
        seen = _reference(self._reference_path(model))
        said = [*seen.errors.values(), *filter(None, seen.facts.get("gate", {}).values())]
        if said:
            raise GateError(f"no reference for {model}: {said[0]}")
        return seen

    def judged(self, cell: Cell) -> dict[str, list[Judgement]]:
        """The judgements of a cell by processing; kept beside it as long as the judge stays.

        Raises:
            GateError: there is no reference for the model.
        """
        path = self.path(cell)
        kept = path.with_name(f"{path.name}.judged.json")
        key = "\n".join((_judge_key(), self._reference_path(cell.model).name))
        try:
            document = json.loads(kept.read_text(encoding="utf-8"))
            if document["key"] == key:
                return {
                    p: [Judgement(**one) for one in ones] for p, ones in document["said"].items()
                }
        except (OSError, ValueError, KeyError, TypeError):
            pass
        seen, reference = read(path), self.reference(cell.model)
        processings = ("raw",) if cell.library == "transformers" else ("raw", "processed")
        found = {p: judge(seen, reference, cell.library, p) for p in processings}
        listed = {p: [asdict(one) for one in ones] for p, ones in found.items()}
        kept.write_text(json.dumps({"key": key, "said": listed}), encoding="utf-8")
        return found

    def _reference_path(self, model: str) -> Path:
        return self.path(Cell("transformers", version(TRANSFORMERS), model))


@lru_cache(maxsize=64)
def _reference(path: Path) -> Seen:
    return read(path)


def _judge_key() -> str:
    return " ".join(code_hash(module.__file__) for module in (judging, expected, tolerances))


@cache
def _saved(name: str, zoo_folder: Path) -> tuple[Path, str]:
    """A model's folder and digest; libraries see no name that they could know it by."""
    made = zoo_folder / ".making"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    with quiet_libraries():
        zoo.save(name, made)
    digest = folder_digest(made)
    folder = zoo_folder / digest[:16]
    if folder.exists():
        shutil.rmtree(made)
    else:
        made.replace(folder)
    return folder, digest


def chosen_models(wanted: Sequence[str]) -> tuple[str, ...]:
    """Raises :class:`UsageError` on a name that the zoo does not have."""
    unknown = [name for name in wanted if name not in zoo.MODELS]
    if unknown:
        raise UsageError(f"the zoo has no {', '.join(unknown)}", f"it has: {', '.join(zoo.MODELS)}")
    return tuple(wanted) or tuple(zoo.MODELS)
