"""The page about trained controls: what was asked, what came out, what it is worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from residcheck.controls import tables
from residcheck.controls.comparison import Comparison
from residcheck.controls.plots import plots
from residcheck.controls.tables import Table
from residcheck.errors import ResidcheckError
from residcheck.files import write_text
from residcheck.report.markdown import pipe_table, plain
from residcheck.report.outline import SYMBOLS, count
from residcheck.result import Judged
from residcheck.verdict import Verdict

_CAPTIONS = {
    "training.svg": "Growth rate of the stream while it trains. Thick: mean of the seeds, which "
    "are thin.",
    "norms.svg": "Norm of the stream after each block of the trained model. Shaded: the window of "
    "the rates.",
    "divisors.svg": "What the stream is divided by before each block: 1.045, or as learned; "
    "below 1 it is multiplied.",
    "differences.svg": "Each arm minus the baseline: interval over seeds, and each pair of one "
    "seed as a ring. Shaded: what counts as no difference of rates.",
    "stored.svg": "Log rates per layer of the stream, of what is written to it, and of gains and "
    "weights.",
}


def write_page(found: Comparison, judged: Sequence[Judged], path: Path) -> list[Path]:
    """Write the page to ``path`` and its plots to the folder of the same name beside it.

    Raises:
        ResidcheckError: a file cannot be written.
    """
    drawn, folder = plots(found), path.with_suffix("")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResidcheckError(f"cannot write {folder}: {error.strerror or error}") from error
    for name, (svg, _) in drawn.items():
        write_text(folder / name, svg)
    texts = {name: text for name, (_, text) in drawn.items()}
    write_text(path, page(found, judged, folder.name, texts))
    return [path, *(folder / name for name in drawn)]


def page(found: Comparison, judged: Sequence[Judged], folder: str, texts: dict[str, str]) -> str:
    """The page in Markdown; ``texts`` are the alternatives of the plots in ``folder``."""
    runs, arms, stored = tables.tables(found)
    blocks = [
        "# Trained controls",
        "Written by `residcheck controls --markdown` from the runs themselves.",
        plain(f"{found.zoo.name}: {tables.subject(found)}."),
        *(plain(f"{line}.") for line in tables.warnings(found)),
        "## What can be concluded",
        _worth(found),
        "## The claims of family H",
        *(_verdict(one) for one in judged),
        *_table(arms),
        plain(f"{tables.noise(found)}."),
        _plot("differences.svg", folder, texts),
        *_table(stored),
        _plot("stored.svg", folder, texts),
        "## How it grows",
        _plot("training.svg", folder, texts),
        _plot("norms.svg", folder, texts),
        *(_plot(name, folder, texts) for name in ("divisors.svg",) if name in texts),
        *_table(runs),
        "## The arms",
        _descriptions(found),
    ]
    return "\n\n".join(blocks) + "\n"


def _worth(found: Comparison) -> str:
    scale = found.zoo.scale
    seeds = sorted({len(found.seeds_of(arm)) for arm in found.all_arms})
    least = f"{seeds[0]} to " if len(seeds) > 1 else ""
    window = scale.window
    return "\n".join(
        [
            f"- These are models of {_parameters(found)} parameters, trained on "
            f"{scale.tokens / 1e6:,.1f} million tokens of one kind of text, Python's own library, "
            f"with {least}{count(seeds[-1], 'seed')} an arm. What holds of them need not hold of "
            "models of other sizes, texts or lengths of training.",
            "- Arms of one seed begin with the same weights and see the same batches. A difference "
            "between them is of the arm and of how training magnifies small differences; the "
            "intervals over seeds are about the second.",
            "- The arms of a question and the baseline are taken as a randomised block design "
            "without interaction: one variance for them, estimated from all of them. That is an "
            "assumption, which few seeds cannot test. It is not made of different questions: "
            "how far seeds differ depends on what is done to the stream (residuals).",
            "- The interval of an arm by itself, as for the first claim, is Student's t over its "
            "own seeds. Whatever moves all arms of a seed is in it: of few seeds it is wide.",
            "- Intervals over held-out windows speak of one trained model. They say nothing of "
            "what another seed would give.",
            "- The intervals are of single comparisons, at 95 %: of twenty that are nothing, one "
            "is expected to seem something.",
            f"- Rates are over layers {window.first}-{window.last}, fixed before anything was "
            "trained. All are of the stream as it trained, before any export.",
        ]
    )


def _parameters(found: Comparison) -> str:
    """Of the baseline, counted from its scale: embeddings, and twelve squares a layer."""
    scale = found.zoo.scale
    embeddings = (scale.vocabulary + scale.context) * scale.width
    blocks = scale.layers * (12 * scale.width**2 + 13 * scale.width) + 2 * scale.width
    return f"{(embeddings + blocks) / 1e6:,.2f} million"


def _verdict(one: Judged) -> str:
    verdict = one.verdict
    lines = [
        f"### `{one.claim.id}`: {SYMBOLS[verdict.outcome]} {plain(one.label)}",
        f"**{plain(one.claim.statement)}**",
        plain(one.claim.how),
    ]
    if verdict.note:
        lines.append(plain(f"{verdict.note}."))
    if verdict.estimates:
        lines.append(_estimates(verdict))
    return "\n\n".join(lines)


def _estimates(verdict: Verdict) -> str:
    rows = [["quantity", "value [95 % over seeds]", "the claim needs"]]
    for e in verdict.estimates:
        needs = "" if e.region is None else str(e.region)
        rows.append([plain(e.name), plain(tables.signed(e)), plain(needs)])
    return pipe_table(rows)


def _table(table: Table) -> list[str]:
    rows = [[plain(cell) for cell in row] for row in (table.head, *table.rows)]
    return [f"## {table.title}", pipe_table(rows), plain(f"{table.note}.")]


def _plot(name: str, folder: str, texts: dict[str, str]) -> str:
    return f"![{plain(texts[name])}]({folder}/{name})\n\n*{_CAPTIONS[name]}*"


def _descriptions(found: Comparison) -> str:
    arms = {run.arm.name: run.arm.description for run in found.zoo.runs}
    return pipe_table([["arm", "what it does"], *([plain(a), plain(d)] for a, d in arms.items())])
