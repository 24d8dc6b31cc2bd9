"""What a person reads after a run: a self-contained HTML page, and a short Markdown summary.

Nothing here decides anything. Both forms are pure functions of the results: the same
results give the same bytes. matplotlib and jinja2 are imported when a page is rendered,
not before.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from residcheck.errors import ResidcheckError

if TYPE_CHECKING:
    from residcheck.result import Failure, ModelResult

__all__ = ["render_html", "render_markdown", "write_html", "write_page"]


def render_html(
    results: Sequence[ModelResult], failures: Sequence[Failure] = (), pages: Sequence[str] = ()
) -> str:
    """One HTML page about all ``results``, with its style and plots inside it.

    Args:
        pages: addresses of pages of their own, one for each result; plots are left to those.
    """
    from residcheck.report.page import render

    return render(results, failures, pages)


def render_markdown(results: Sequence[ModelResult], failures: Sequence[Failure] = ()) -> str:
    """A job summary in GitHub's Markdown: the verdicts, and what needs attention."""
    from residcheck.report.markdown import render

    return render(results, failures)


def write_html(
    results: Sequence[ModelResult],
    path: Path,
    failures: Sequence[Failure] = (),
    pages: Sequence[str] = (),
) -> None:
    """Write the page about ``results`` to ``path``.

    Raises:
        ResidcheckError: the file cannot be written.
    """
    write_page(render_html(results, failures, pages), path)


def write_page(page: str, path: Path) -> None:
    """Write a page to ``path``; what was there stays whole until the new page is.

    Raises:
        ResidcheckError: the file cannot be written.
    """
    partial = path.parent / f".{path.name}.{os.getpid()}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Names of files that are no Unicode carry lone surrogates; they must not
            # cost the report.
            partial.write_text(page, encoding="utf-8", errors="xmlcharrefreplace", newline="\n")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise ResidcheckError(
            f"could not write the report {path}: {error.strerror or error}",
            "name a file in a folder that can be written to",
        ) from error
