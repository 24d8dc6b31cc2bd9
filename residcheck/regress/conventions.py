"""Differences that are no faults: what libraries chose, and what they say they do not support.

Each was looked up in the library's source before it was put here.
"""

from __future__ import annotations

from dataclasses import dataclass

from packaging.version import Version

from residcheck.regress.cells import Cell
from residcheck.regress.judge import Judgement

REFUSALS = (
    "NotImplementedError",
    "not currently supported",
    "Could not determine supported architecture",
    "Unsupported architecture",
    "does not recognize this architecture",
    "not supported",
    "Forward would skip the norm",
    "cannot import: AttributeError",
    # The witness gives sized models the name of a released one, which early releases of
    # transformer-lens 2 do not know: they would refuse it by themselves.
    "cannot access local variable 'hf_config'",
    "unexpected keyword argument 'output_logits_soft_cap'",
)
"""What an error says where a library knows that it has no support."""


@dataclass(frozen=True)
class Convention:
    """A choice of a library; empty fields stand for all."""

    library: str
    quantity: str
    reason: str
    processing: str = ""
    models: tuple[str, ...] = ()
    verdict: str = ""
    until: str = ""


CONVENTIONS: tuple[Convention, ...] = (
    Convention(
        "bridge",
        "centred writes",
        "the adapter says so (supports_center_writing_weights is false): gains are stored less 1",
        models=("nemotron",),
    ),
    Convention(
        "hooked",
        "left padding",
        "until 2.4 an attention mask was for start_at_layer only, as the docstring says; "
        "padding_side was the way (TransformerLens issue 467, pull request 699)",
        until="2.3.1",
    ),
    *(
        Convention(
            "hooked",
            f"{norm}.hook_normalized",
            "until 3.0 LayerNorm's hook was after gain and bias (TransformerLens issue 747)",
            processing="raw",
            verdict="different",
            until="2.18.0",
        )
        for norm in ("ln1", "ln2", "ln_final")
    ),
)


def is_refusal(note: str) -> bool:
    return any(said in note for said in REFUSALS)


def is_convention(cell: Cell, processing: str, one: Judgement) -> bool:
    return any(
        rule.library == cell.library
        and rule.quantity == one.quantity
        and rule.processing in ("", processing)
        and (not rule.models or cell.model in rule.models)
        and rule.verdict in ("", one.verdict)
        and (not rule.until or Version(cell.version) <= Version(rule.until))
        for rule in CONVENTIONS
    )
