"""Bars of long work on standard error, or lines where it is a log."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn


class Bars(AbstractContextManager["Bars"]):
    """A bar for each thing under way, with ``last`` as what ends its row.

    Attributes:
        drawn: whether there are bars; a log gets lines in their place.
    """

    def __init__(self, last: ProgressColumn) -> None:
        self._console = Console(file=sys.stderr, highlight=False)
        self.drawn = self._console.is_terminal
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            last,
            console=self._console,
            transient=True,
        )

    def __enter__(self) -> Self:
        if self.drawn:
            self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.bars.stop()

    def say(self, text: str) -> None:
        """A line above the bars, in rich's markup."""
        self._console.print(text, soft_wrap=True)
