"""The arrays of one measurement, filled batch by batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from residcheck.backends import Tap, Taps
from residcheck.curves import TOKEN_DIMS, Curve, Run
from residcheck.errors import NonFiniteError
from residcheck.measure.opening import Session
from residcheck.measure.provenance import environment, model_info
from residcheck.measure.recorder import Recorder, available
from residcheck.measure.structure import StructureRecorder, surroundings
from residcheck.measure.tokens import Batch
from residcheck.names import QUANTITIES, STRUCTURE
from residcheck.seeds import SEEDS, random_rotation


class Recording:
    """Per-token scalars of the pass, and what the sampled positions give per prompt."""

    def __init__(self, session: Session, wanted: list[str]) -> None:
        self._session = session
        anatomy, ids = session.backend.anatomy, session.encoded.ids
        double = session.loaded.spec.dtype == "float64"
        self._dtype = torch.float64 if double else torch.float32
        self._names = available(wanted, anatomy)
        self._structure = [n for n in wanted if n in STRUCTURE and n not in session.missing]
        device = session.loaded.device
        if self._structure:
            self._rotation = random_rotation(anatomy.d_model).to(device, self._dtype)
            self._around = surroundings(session.backend)
        self._kept: dict[str, Any] = {}
        shape = (len(ids), max(map(len, ids)), anatomy.n_layers)
        self._float = np.float64 if double else np.float32
        self._arrays = {name: np.full(shape, np.nan, self._float) for name in self._names}
        self.done: list[int] = []
        self.tokens = 0

    @property
    def idle(self) -> bool:
        """Whether nothing is wanted of a pass, so that none is run."""
        return not self._names and not self._structure

    def take(self, batch: Batch) -> None:
        """Run a batch and keep what its taps leave: of all its prompts, or of none."""
        if self.idle:
            self.done += batch.indices
            return
        backend = self._session.backend
        lengths: list[int] = batch.mask.sum(dim=1).tolist()
        shape, device = batch.tokens.shape, batch.tokens.device
        affines = self._session.affines
        recorder = Recorder(backend, self._names, affines, shape, device, self._dtype)
        taps = recorder.taps()
        structure = None
        if self._structure:
            structure = StructureRecorder(
                backend, self._structure, lengths, self._rotation, self._around
            )
            taps = both(taps, structure.taps())
        backend.forward(batch.tokens, batch.mask, taps, logits=False)
        sampled = {} if structure is None else structure.rows()
        for name, values in recorder.values.items():
            table = values.cpu().numpy()
            for row, index in enumerate(batch.indices):
                self._arrays[name][index, : lengths[row]] = table[row, : lengths[row]]
        self._refuse_nonfinite(batch.indices, lengths)
        self._keep(batch.indices, sampled)
        self.done += batch.indices
        self.tokens += sum(lengths)

    def _keep(self, indices: list[int], rows: dict[str, Tensor]) -> None:
        for name, table in rows.items():
            values = table.cpu().numpy()
            if name not in self._kept:
                shape = (len(self._session.encoded.ids), *values.shape[1:])
                self._kept[name] = np.full(shape, np.nan, self._float)
            self._kept[name][indices] = values

    def _refuse_nonfinite(self, indices: list[int], lengths: list[int]) -> None:
        """Name the first layer, and in it the first site, at which a norm is not finite."""
        norms = [n for n in self._names if QUANTITIES[n].unit == "norm" and not n.startswith("ln")]
        bad: list[tuple[int, int, int, int]] = []
        for index, length in zip(indices, lengths, strict=True):
            for order, name in enumerate(norms):
                found = np.argwhere(~np.isfinite(self._arrays[name][index, :length]))
                bad += [(layer, order, index, position) for position, layer in found]
        if bad:
            layer, order, index, position = min(bad)
            raise NonFiniteError(
                f"layer {layer}: {norms[order]} is NaN or infinite at prompt {index + 1}, "
                f"position {position}",
                "the activations overflow in this dtype or the weights are damaged",
            )

    def run(self, experiments: dict[str, Curve], *, complete: bool) -> Run | None:
        done = sorted(self.done)
        if not done:
            return None
        session = self._session
        curves = {
            name: Curve(name, TOKEN_DIMS, array[done], QUANTITIES[name].unit)
            for name, array in self._arrays.items()
        }
        curves |= _structure_curves({name: array[done] for name, array in self._kept.items()})
        return Run(
            model=model_info(session.loaded, session.backend, session.missing),
            environment=environment(session.backend, session.loaded.spec.device),
            prompts=session.encoded.select(done).info(),
            curves=curves | experiments,
            complete=complete,
            spec=str(session.loaded.spec),
            seeds=SEEDS,
            shapes=session.shapes,
        )


def _structure_curves(arrays: dict[str, Any]) -> dict[str, Curve]:
    """Neurons are too many to keep for every prompt: their mean and its error are kept."""
    if "neuron_projection" in arrays:
        values = arrays["neuron_projection"]
        n = np.isfinite(values).sum(axis=0)
        arrays["neuron_projection"] = np.nanmean(values, axis=0)
        with np.errstate(invalid="ignore"):  # one prompt has no error
            arrays["neuron_projection_error"] = np.nanstd(values, axis=0) / np.sqrt(n - 1)
    return {
        name: Curve(name, STRUCTURE[name].dims, a, STRUCTURE[name].unit)
        for name, a in arrays.items()
    }


def both(one: Taps, other: Taps) -> Taps:
    """Taps of two observers as one set; neither replaces what it sees."""

    def chain(first: Tap, second: Tap) -> Tap:
        def tap(x: Tensor) -> None:
            first(x)
            second(x)

        return tap

    shared = {where: chain(one[where], other[where]) for where in one.keys() & other.keys()}
    return {**one, **other, **shared}
