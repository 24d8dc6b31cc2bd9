"""From the name of a planted model to the model."""

from __future__ import annotations

from typing import Any

from residcheck.planted import families, horizons
from residcheck.planted.plan import read_plan

CONSTRUCTION = "planted/1"
"""Stands for the weights' hash: to be counted up when the same plan gives other weights."""


def build(name: str, **how: Any) -> Any:
    """A transformers model in memory; ``how`` goes to transformers (dtype, attention)."""
    plan = read_plan(name)
    model = (horizons if plan.by_horizon else families).build(plan, **how)
    model.config.architectures = [type(model).__name__]  # as a saved model says
    return model
