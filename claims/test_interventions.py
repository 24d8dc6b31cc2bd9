"""Family H: what training otherwise does, answered from trained controls."""

from __future__ import annotations

from residcheck.controls import Comparison
from residcheck.controls.rules import grows_with_heads, growth_removed, moved_by_decay
from residcheck.intervention import intervention
from residcheck.stats import Decision

from .published import COMMENTS


@intervention(
    "rescale-residual",
    statement="Dividing the stream by 1.045 before each block, r(x) = f(x) + x/1.045, removes "
    "its growth.",
    source=COMMENTS,
    published="a question; 1.045 is the rate of GPT2-XL",
    arms=("rescale-residual", "rescale-residual-learned"),
)
def test_rescale_residual(controls: Comparison) -> Decision:
    """Log rate of the trained stream with the division: within 0.005 of 0, where the interval
    is over seeds. Beside it the baseline's, the same with a learned number in the place of
    1.045, and what it costs in loss. A baseline that does not grow decides nothing."""
    return growth_removed(controls)


@intervention(
    "more-heads",
    statement="More heads in the same width raise the growth of the stream.",
    source=COMMENTS,
    published="a question",
    arms=("heads-8", "heads-16"),
)
def test_more_heads(controls: Comparison) -> Decision:
    """Log rate with 16 heads minus that with 4, of one seed each: above 0.005, where the
    interval is over seeds. That of 8 heads is reported beside it."""
    return grows_with_heads(controls)


@intervention(
    "decay-layernorm-gains",
    statement="Weight decay on the norms' gains changes where the growth is stored.",
    source=COMMENTS,
    published="a question",
    arms=("decay-all", "decay-none"),
)
def test_decay_layernorm_gains(controls: Comparison) -> Decision:
    """Log rate per layer of the gains (root mean square over the width, mean of both norms'
    rates), with decay on everything minus with decay on matrices only: more than 0.005 up or
    down, where the interval is over seeds. Beside it how far decay moves the gains as a whole,
    the rates of the weights' norms, and all of it without any decay."""
    return moved_by_decay(controls)
