"""The files that a verification leaves: HTML report, JSON verdicts, Markdown summary."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from residcheck.errors import ResidcheckError
from residcheck.files import partial_of, write_text
from residcheck.report import render_markdown, write_html
from residcheck.result import Failure, ModelResult

SCHEMA = "residcheck.verdicts/1"


def prepare(*paths: Path | None) -> None:
    """Make sure that files can be written where they are asked for, before work begins.

    Raises:
        ResidcheckError: a folder cannot be made or written.
    """
    for path in (p for p in paths if p is not None):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = partial_of(path)
            partial.touch()
            partial.unlink()
        except OSError as error:
            raise ResidcheckError(f"cannot write {path}: {error.strerror or error}") from error


def write_files(
    results: Sequence[ModelResult],
    html: Path | None,
    json_file: Path | None,
    markdown: Path | None,
    failures: Sequence[Failure] = (),
    pages: Sequence[str] = (),
) -> list[Path]:
    """Write what was asked for; returns the paths written.

    Args:
        failures: models that could not be measured, to be named in every file.
        pages: addresses of HTML pages of their own, one for each result.

    Raises:
        ResidcheckError: a file cannot be written.
    """
    if html is not None:
        write_html(results, html, failures, pages)
    if json_file is not None:
        text = json.dumps(verdicts_document(results, failures), indent=1, allow_nan=False)
        write_text(json_file, text + "\n")
    if markdown is not None:
        write_text(markdown, render_markdown(results, failures))
    return [path for path in (html, json_file, markdown) if path is not None]


def verdicts_document(
    results: Sequence[ModelResult], failures: Sequence[Failure] = ()
) -> dict[str, Any]:
    """Verdicts, estimates, drift and provenance of all models as plain data."""
    return {
        "schema": SCHEMA,
        "models": [
            {
                "model": asdict(result.run.model),
                "prompts": asdict(result.run.prompts),
                "environment": dict(result.run.environment),
                "horizon": None if result.run.horizon is None else asdict(result.run.horizon),
                "complete": result.run.complete,
                "verdicts": [
                    judged.verdict.to_json()
                    | {
                        "statement": judged.claim.statement,
                        "published": judged.claim.published,
                        "source": str(judged.claim.source),
                        "recorded": None if judged.recorded is None else judged.recorded.value,
                        "fails": judged.fails,
                    }
                    for judged in result.judged
                ],
                "drifts": [{"curve": d.curve, "message": d.message} for d in result.drifts],
                "status": int(result.status),
            }
            for result in results
        ],
        "failed": [asdict(failure) for failure in failures],
    }
