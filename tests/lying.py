"""Models at the gate, and backends that lie: what the tests of the gate share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import pytest
import torch
from tiny import Tiny
from torch import Tensor

from residcheck.backends import SITES, Backend, Site, Tap, Taps, open_backend
from residcheck.errors import GateError
from residcheck.measure import gate
from residcheck.models import ModelSpec, load
from residcheck.tolerances import tolerance

BACKENDS = ("transformer_lens", "transformers")
both_backends = pytest.mark.parametrize("backend", BACKENDS)
Where = tuple[int, Site]
Seen = Mapping[Where, Tensor]


class Case:
    """A loaded model, of an odd make if ``before`` makes it so; the logits of the plain model;
    then a change, and then its backend."""

    def __init__(
        self,
        tiny: Tiny,
        family: str,
        change: Callable[[Any], object] = lambda model: None,
        overrides: Mapping[str, Any] = MappingProxyType({}),
        before: Callable[[Any], object] = lambda model: None,
        **options: str,
    ) -> None:
        folder = tiny(family, **overrides)
        loaded = load(ModelSpec(str(folder)).with_options(**options))
        self.model = loaded.model
        self.dtype = loaded.spec.dtype
        self.tokens = torch.randint(3, 500, (2, 16), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            before(self.model)
            self.reference = self.model(input_ids=self.tokens, use_cache=False).logits
            change(self.model)
        self.backend: Backend = open_backend(loaded)

    def check(self, backend: Backend | Lying | None = None) -> None:
        gate.check(backend or self.backend, self.tokens, self.reference, tolerance(self.dtype))


CASES: dict[tuple[str, str], Case] = {}


def sound(tiny: Tiny, family: str, backend: str) -> Case:
    """A case that is only looked at, and so can be shared by the tests."""
    if (family, backend) not in CASES:
        CASES[family, backend] = Case(tiny, family, backend=backend)
    return CASES[family, backend]


class Lying:
    """A backend whose taps at some places are handed other tensors than what is there, and
    which may give other logits."""

    def __init__(
        self,
        truth: Backend,
        lies: Mapping[Where, Callable[[Seen], Tensor | None]],
        logits: Callable[[Tensor], Tensor] = lambda logits: logits,
    ) -> None:
        self._truth, self._lies, self._logits = truth, lies, logits
        self.name, self.version, self.anatomy = truth.name, truth.version, truth.anatomy
        self.affine, self.hook_name = truth.affine, truth.hook_name

    def forward(self, tokens: Tensor, mask: Tensor, taps: Taps, *, logits: bool) -> Tensor | None:
        seen: dict[Where, Tensor] = {}

        def keep(where: Where) -> Tap:
            return lambda x: seen.update({where: x.clone()})

        places = [(n, s) for n in range(self.anatomy.n_layers) for s in SITES]
        keeping = {where: keep(where) for where in places if self.anatomy.has(where[1])}
        self._truth.forward(tokens, mask, keeping, logits=False)
        swapped = {where: self._swapped(where, tap, seen) for where, tap in taps.items()}
        result = self._truth.forward(tokens, mask, swapped, logits=logits)
        return None if result is None else self._logits(result)

    def _swapped(self, where: Where, tap: Tap, seen: Seen) -> Tap:
        if where not in self._lies:
            return tap
        wrong = self._lies[where](seen)
        return lambda x: None if wrong is None else tap(wrong)


def instead(layer: int, site: Site) -> Callable[[Seen], Tensor]:
    return lambda seen: seen[layer, site]


def hooks_named(error: GateError) -> list[str]:
    return error.message.partition("hooks: ")[2].partition(";")[0].split(", ")
