"""Every measured curve against its stored snapshot, within the rounding of its dtype."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from residcheck.curves import Run
from residcheck.names import EVERYTHING


@pytest.mark.parametrize("curve", EVERYTHING)
def test_curve_is_as_stored(
    curve: str, residcheck_run: Run, residcheck_curve: Callable[[Run, str], None]
) -> None:
    """A model without a snapshot of its own has nothing to compare with: skipped."""
    residcheck_curve(residcheck_run, curve)
