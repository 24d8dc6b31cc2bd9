"""Where a curve bends."""

from __future__ import annotations

from residcheck.stats.fits import Floats

_SHORTEST = 3  # layers on either side of a bend


def change_point(log_curve: Floats) -> int | None:
    """The layer at which a broken line through ``log_curve`` bends, or None if too short.

    ruptures' optimal partition with a continuous piecewise-linear cost; ``jump=1``, since
    its default of 5 considers only every fifth layer.
    """
    if len(log_curve) < 2 * _SHORTEST + 1:
        return None
    import ruptures

    search = ruptures.Dynp(model="clinear", min_size=_SHORTEST, jump=1)
    # Its break is the first point of the second piece; the pieces join one point before.
    return int(search.fit(log_curve[:, None]).predict(n_bkps=1)[0]) - 1
