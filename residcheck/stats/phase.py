"""The phase of growth: the layer window on which a model's claims are judged."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from residcheck.stats.fits import Floats, evidence_for_exponential, r_squared, slopes

MIN_LAYERS = 4
"""Three steps are the fewest that can tell shapes of one parameter apart."""
EVIDENCE = 2.0
"""AIC difference from which one shape is said to beat another."""
STRONG_EVIDENCE = 6.0
"""AIC difference (20 to 1) asked for where the window is looked for among many."""


@dataclass(frozen=True)
class Phase:
    """An inclusive window of layers.

    ``origin`` says where it is from: ``published``, or ``chosen on half of the prompts``.
    ``exponential`` says whether the exponential won where the window was chosen.
    """

    first: int
    last: int
    origin: str
    exponential: bool = True

    @property
    def layers(self) -> Floats:
        return np.arange(self.first, self.last + 1, dtype=np.float64)

    @property
    def window(self) -> slice:
        return slice(self.first, self.last + 1)

    @property
    def inside(self) -> Phase:
        """The blocks between the phase's first and last stream: its layers but the first.

        What block n reads and adds lies between resid_post[n-1] and resid_post[n].
        """
        return replace(self, first=self.first + 1)

    def __str__(self) -> str:
        return f"layers {self.first}-{self.last} ({self.origin})"


def choose_phase(log_norm: Floats) -> Phase:
    """The longest window, of at least half the layers, on which the exponential clearly wins.

    Of windows of one length, the one that a straight line in logs fits best. Where the
    exponential wins nowhere, the window that it fits best, marked as not exponential.

    Args:
        log_norm: mean log norm per layer, of prompts that are not used for testing.
    """
    n_layers = len(log_norm)
    shortest = max(MIN_LAYERS, (n_layers + 1) // 2)
    origin = "chosen on half of the prompts"
    best: tuple[float, Phase] | None = None
    for length in range(n_layers, shortest - 1, -1):
        winners: list[tuple[float, Phase]] = []
        for first in range(n_layers - length + 1):
            phase = Phase(first, first + length - 1, origin)
            y = log_norm[phase.window]
            fit = float(r_squared(y, phase.layers))
            grows = slopes(y, phase.layers) > 0
            if grows and evidence_for_exponential(y, phase.layers) >= STRONG_EVIDENCE:
                winners.append((fit, phase))
            elif best is None or fit > best[0]:
                best = (fit, Phase(phase.first, phase.last, origin, exponential=False))
        if winners:
            return max(winners, key=lambda pair: pair[0])[1]
    assert best is not None
    return best[1]
