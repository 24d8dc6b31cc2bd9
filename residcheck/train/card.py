"""The model card: what the model is, of what and how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def card(provenance: Mapping[str, Any], *, plain: bool) -> str:
    """Markdown from what ``provenance.json`` holds; ``plain``: it was written as a plain GPT-2."""
    arm, scale, corpus = (provenance[name] for name in ("arm", "scale", "corpus"))
    versions = ", ".join(f"{name} {number}" for name, number in provenance["versions"].items())
    first, last = provenance["rate_window"]
    lines = [
        "---",
        "license: apache-2.0",
        "library_name: transformers",
        "tags: [residcheck, trained-control]",
        "---",
        f"# {arm['name']}, seed {provenance['seed']}",
        "",
        arm["description"],
        "",
        _form(arm["changes"], plain),
        "",
        "| | |",
        "| --- | --- |",
        f"| question | {arm['question']} |",
        f"| scale | {scale['name']}: {scale['layers']} layers, width {scale['width']}, "
        f"{arm['heads']} heads, context {scale['context']} |",
        f"| trained on | {provenance['tokens']:,} tokens in {scale['steps']:,} steps, "
        f"{provenance['device']} |",
        f"| loss | {_nats(provenance['train_loss'])} in training, "
        f"{_nats(provenance['held_out_loss'])} on all held-out text |",
        f"| growth | {provenance['rate']:.4f} per layer of the trained stream, "
        f"layers {first}-{last} |",
        f"| text | the standard library of Python {corpus['python']}, "
        f"{corpus['documents']} files, {corpus['training_tokens']:,} tokens; "
        f"{corpus['held_out_documents']} files held out |",
        "| licence | Apache-2.0; that of the text it learnt from is the PSF's |",
        f"| sha256 of the text | {corpus['sha256']} |",
        f"| versions | {versions} |",
    ]
    if "export_log_probability_shift" in provenance:
        moved = provenance["export_log_probability_shift"]
        lines.append(f"| largest change of a log-probability by the export | {moved:.1e} |")
    return "\n".join(lines) + "\n"


def _form(changes: Mapping[str, Any], plain: bool) -> str:
    if changes["post_norm"]:
        return (
            "An architecture of residcheck's own. Its stream is normalised after each addition, "
            "so it is no running sum and the identity gate refuses it; what was measured while "
            "it trained is in `history.jsonl`."
        )
    if not plain:
        return (
            "An architecture of residcheck's own: load it with residcheck and "
            "`backend=transformers`."
        )
    if changes["rescale"] is None:
        return "Written as a plain GPT-2."
    return (
        "Written as a plain GPT-2 whose stream is the trained one times `residual_factors` of "
        "its configuration; divide by them for norms of the trained stream."
    )


def _nats(loss: float | None) -> str:
    return "unknown" if loss is None else f"{loss:.3f} nats"
