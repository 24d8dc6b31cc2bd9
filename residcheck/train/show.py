"""What people see of runs in the terminal: a bar for each, or lines in a log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.progress import TaskID, TextColumn
from rich.table import Table

from residcheck.console import terminal
from residcheck.course import Bars
from residcheck.train.arms import Arm
from residcheck.train.runs import Run
from residcheck.train.scales import Scale


class Course(Bars):
    """Runs as they go."""

    def __init__(self, runs: int, finished: int) -> None:
        super().__init__(TextColumn("{task.fields[said]}"))
        self._total, self._done = runs, finished
        self._under_way: dict[Run, TaskID] = {}
        self._left: dict[Run, str] = {}

    def began(self, run: Run) -> None:
        self._under_way[run] = self.bars.add_task(run.name, total=run.scale.steps, said="")
        if not self.drawn:
            self.say(f"training {run.name}")

    def told(self, run: Run, said: dict[str, Any]) -> None:
        if said["kind"] == "step":
            speed, left = said["tokens_per_second"], said["seconds_left"] / 60
            self._left[run] = f"{speed:,.0f} tokens/s, {left:.0f} min left"
            text = f"loss {said['loss']:.3f}, {self._left[run]}"
            self.bars.update(self._under_way[run], completed=said["step"], said=text)
        elif said["kind"] == "record" and not self.drawn:
            self.say(f"{run.name}: {_in_words(said, run.scale)}, {self._left.get(run, 'begins')}")

    def ended(self, run: Run, trouble: str) -> None:
        self.bars.remove_task(self._under_way.pop(run))
        if trouble:
            self.say(f"[red]failed[/]   {run.name}: {escape(trouble)}")
            return
        self._done += 1
        self.say(f"[green]finished[/] {run.name} [dim]({self._done} of {self._total})[/]")


def _in_words(said: dict[str, Any], scale: Scale) -> str:
    train = said["train_loss"]
    trained = "" if train is None else f"loss {train:.3f}, "
    return (
        f"step {said['step']:,} of {scale.steps:,}, {trained}held out {said['held_out_loss']:.3f}, "
        f"growth {said['rate']:.4f}"
    )


def show_arms(arms: Sequence[Arm], scales: Sequence[Scale]) -> None:
    """The arms and the scales."""
    table = Table()
    for name in ("arm", "question", "what it does"):
        table.add_column(name, no_wrap=name == "arm")
    for arm in arms:
        table.add_row(arm.name, arm.question, escape(arm.description))
    sizes = Table()
    for name in ("scale", "layers", "width", "context", "steps", "tokens", "device"):
        sizes.add_column(name, justify="left" if name in ("scale", "device") else "right")
    for scale in scales:
        numbers = (scale.layers, scale.width, scale.context, scale.steps, scale.tokens)
        sizes.add_row(scale.name, *(f"{number:,}" for number in numbers), scale.device)
    console = terminal()
    console.print(table)
    console.print(sizes)
