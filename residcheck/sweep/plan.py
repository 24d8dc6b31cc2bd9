"""What a sweep is to do: the models of its list, each with its folder and its job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from residcheck.corpus import Prompts
from residcheck.errors import ResidcheckError
from residcheck.sweep.listing import Listed
from residcheck.sweep.store import (
    Entry,
    Job,
    digest,
    folder_name,
    write_job,
    write_prompts,
)


@dataclass(frozen=True)
class Settings:
    """How every model is measured and judged, and the folder that keeps it all."""

    out: Path
    prompts: Prompts
    max_tokens: int | None
    batch_size: int
    snapshots: Path | None

    @property
    def models(self) -> Path:
        return self.out / "models"


def entries(listed: Sequence[Listed], settings: Settings) -> list[Entry]:
    """Each model of the list with its folder. Nothing is written."""
    hashed = digest(settings.prompts)
    return [
        Entry(
            one.text,
            one.spec,
            settings.models / folder_name(one.spec, hashed, settings.max_tokens),
        )
        for one in listed
    ]


def prepare(unfinished: Sequence[Entry], settings: Settings) -> None:
    """Leave each model's job in its folder.

    Raises:
        ResidcheckError: a file cannot be written.
    """
    prompts = settings.out / "prompts" / f"{digest(settings.prompts)[:12]}.json"
    try:
        for folder in (prompts.parent, *(entry.folder for entry in unfinished)):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResidcheckError(f"cannot write to {settings.out}: {error.strerror}") from error
    write_prompts(settings.prompts, prompts)
    for entry in unfinished:
        job = Job(
            entry.text,
            entry.spec,
            settings.prompts,
            settings.max_tokens,
            settings.batch_size,
            settings.snapshots,
        )
        write_job(entry, job, prompts)
