"""Family E: why would norms grow exponentially?"""

from __future__ import annotations

from residcheck.claim import claim
from residcheck.curves import Run
from residcheck.stats import overshadowed, overshadowed_not_cancelled, toy_example
from residcheck.verdict import Figure, Finding

from .published import COMMENTS, NORM_GROWTH, growth_phase


@claim(
    "theory2-toy",
    family="E",
    statement="Inputs of equal norm can hold different numbers of features and give outputs of "
    "different norm.",
    source=NORM_GROWTH,
    published="W_in x = (200, 0) and W_in y = (100, 100); after a sigmoid about (1, 0) and (1, 1)",
    needs=(),
    prompts=1,
    layers=1,
)
def test_theory2_toy(run: Run) -> Finding:
    """Exact arithmetic, the same whatever the model: both inputs have norm 1, W_in takes
    them to the published numbers, and the norms after a sigmoid, ReLU and GELU differ by
    more than 5 %."""
    return Finding(toy_example())


@claim(
    "old-outputs-overshadowed",
    family="E",
    statement="An early sublayer's output becomes a vanishing share of what late sublayers read.",
    source=COMMENTS,
    published="5 of a norm of 100 at layer 0 is 5 of 432 at layer 30, at 1.05 per layer",
    needs=("write_share", "resid_post_norm"),
)
def test_old_outputs_overshadowed(run: Run) -> Finding:
    """Writes of the first half of the phase: the log of their share by norm must fall with
    every layer further on (by 0.005 at least), and the share at the phase's last layer be
    at most half of that at the first read."""
    phase, unseen = growth_phase(run)
    decision = overshadowed(run["write_share"].double[unseen], phase)
    figure = Figure(("write_share",), kind="map", phase=phase)
    return Finding(decision.with_note(f"{phase}"), figure)


@claim(
    "overshadow-not-cancel",
    family="E",
    statement="Later writes overshadow earlier ones rather than cancel them.",
    source=NORM_GROWTH,
    published="the favoured explanation of the growth",
    needs=("write_kept", "write_share", "resid_post_norm"),
)
def test_overshadow_not_cancel(run: Run) -> Finding:
    """Writes of the first half of the phase, at its last layer: along its own direction,
    more than half of the median write must still be there after all later writes (1 is
    untouched, 0 cancelled). Its share by norm is reported beside it."""
    phase, unseen = growth_phase(run)
    share, kept = (run[name].double[unseen] for name in ("write_share", "write_kept"))
    figure = Figure(("write_kept",), kind="map", log=False, phase=phase)
    return Finding(overshadowed_not_cancelled(share, kept, phase).with_note(f"{phase}"), figure)
