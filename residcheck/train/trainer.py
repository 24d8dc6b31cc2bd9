"""The loop: steps, records and checkpoints, from wherever the run was left."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from residcheck.train import checkpoint, history
from residcheck.train.architecture import build, centred
from residcheck.train.batches import Batches, spread
from residcheck.train.corpus import Corpus
from residcheck.train.growth import measure
from residcheck.train.history import Record, append, recorded_steps
from residcheck.train.loss import model_loss
from residcheck.train.optimiser import adamw, learning_rate, update
from residcheck.train.runs import Run


@dataclass(frozen=True)
class Step:
    """What there is to say after a step; ``seconds_left`` and the speed are estimates."""

    step: int
    loss: float
    tokens_per_second: float
    seconds_left: float


class Watcher(Protocol):
    """Told how a run goes on."""

    def stepped(self, step: Step) -> None: ...

    def recorded(self, record: Record) -> None: ...


class Trainer:
    """A run in memory: made anew from its seed, or as its checkpoint left it.

    Same run, same machine, same versions: the same numbers, however often it was stopped.
    """

    def __init__(self, run: Run, corpus: Corpus) -> None:
        torch.set_num_threads(run.threads)
        self._run, scale = run, run.scale
        self._schedule = run.arm.schedule(scale)
        self._gpu = scale.device == "cuda"
        self._batches = Batches(corpus.training, corpus.mark, scale.context, scale.batch, run.seed)
        self._held_out = self._placed(
            spread(corpus.held_out, corpus.mark, scale.context, scale.held_out_windows)
        )
        vocabulary = corpus.facts.vocabulary
        self.model: Any = build(run.arm, scale, vocabulary, corpus.mark, run.seed)
        self.model.to(scale.device).train()  # without dropout the modes are the same
        self._optimiser = adamw(self.model, run.arm.decay)
        self._parameters = list(self.model.parameters())
        self._loss: Callable[..., Tensor] = model_loss
        if self._gpu:
            self._loss = torch.compile(model_loss)
        self.step, self._seconds = 0, 0.0
        self._loss_sum, self._loss_count = 0.0, 0
        self._resume()

    def _resume(self) -> None:
        state = checkpoint.load(self._run.checkpoint)
        history.rewind(self._run.history, None if state is None else state.step)
        if state is not None:
            self.model.load_state_dict(state.model)
            self._optimiser.load_state_dict(state.optimiser)
            self.step, self._seconds = state.step, state.seconds
            self._loss_sum, self._loss_count = state.loss_sum, state.loss_count

    @property
    def seconds(self) -> float:
        """Spent on training, in all processes together."""
        return self._seconds

    def _placed(self, windows: Any) -> Tensor:
        return torch.from_numpy(windows).to(self._run.scale.device)

    def train(self, watcher: Watcher, stop: Callable[[], bool]) -> bool:
        """Go on to the last step, or until ``stop`` says so after a step; whether it is done.

        Either way the checkpoint is of the last step that was made.
        """
        scale, points = self._run.scale, recorded_steps(self._run.scale.steps)
        begun, first = time.monotonic(), self.step
        marked, last = begun, self.step
        before = self._seconds
        if self.step == 0:
            self._record(watcher, None)
        while self.step < scale.steps and not stop():
            loss = self._update()
            now = time.monotonic()
            self._seconds = before + now - begun
            each = (now - begun) / (self.step - first)
            speed = scale.tokens_per_step / each
            watcher.stepped(Step(self.step, loss, speed, each * (scale.steps - self.step)))
            if self.step in points:
                done = (self.step - last) * scale.tokens_per_step
                self._record(watcher, done / max(now - marked, 1e-9))
                marked, last = time.monotonic(), self.step
            if self.step % scale.checkpoint_every == 0 and self.step < scale.steps:
                self.save()
        self.save()
        return self.step == scale.steps

    def _update(self) -> float:
        scale, value = self._run.scale, 0.0
        windows = self._batches(self.step)
        at_a_time = scale.at_a_time or scale.batch
        for start in range(0, scale.batch, at_a_time):
            some = self._placed(windows[start : start + at_a_time])
            with torch.autocast("cuda", dtype=torch.bfloat16, enabled=self._gpu):
                loss = self._loss(self.model, some, in_blocks=not self._gpu)
            loss = loss * (len(some) / scale.batch)
            loss.backward()  # type: ignore[no-untyped-call]
            value += loss.item()
        update(self._optimiser, self._parameters, learning_rate(self.step, self._schedule))
        self.step += 1
        self._loss_sum, self._loss_count = self._loss_sum + value, self._loss_count + 1
        return value

    def _record(self, watcher: Watcher, speed: float | None) -> None:
        scale = self._run.scale
        grown = measure(self.model, self._held_out, centred=centred(self._run.arm.changes))
        rate = grown.rate(scale.window)
        count = self._loss_count
        record = Record(
            step=self.step,
            tokens=self.step * scale.tokens_per_step,
            train_loss=self._loss_sum / count if count else None,
            held_out_loss=grown.loss,
            learning_rate=learning_rate(max(0, self.step - 1), self._schedule),
            tokens_per_second=speed,
            resid_pre_norm=tuple(grown.pre.mean(axis=(0, 1)).tolist()),
            resid_post_norm=tuple(grown.post.mean(axis=(0, 1)).tolist()),
            rate=rate.value,
            rate_low=rate.low,
            rate_high=rate.high,
        )
        self._loss_sum, self._loss_count = 0.0, 0
        append(self._run.history, record)
        watcher.recorded(record)

    def save(self) -> None:
        """Write the checkpoint of this moment."""
        state = checkpoint.State(
            self.step,
            self._seconds,
            self._loss_sum,
            self._loss_count,
            self.model.state_dict(),
            self._optimiser.state_dict(),
        )
        checkpoint.save(state, self._run.checkpoint)
