"""The pages: everything is there, nothing of a library's text is read as markup."""

from __future__ import annotations

import re
from typing import ClassVar

from residcheck.errors import GateError
from residcheck.regress.causes import Cause
from residcheck.regress.cells import Cell
from residcheck.regress.findings import findings
from residcheck.regress.judge import Judgement
from residcheck.regress.page import Shown, render_html, render_markdown
from residcheck.regress.reproduce import script
from residcheck.regress.table import Table, tabulate

EVIL = "KeyError: <script>alert(1)</script> | a_b `c` (x.py:1)"
CRASH = Judgement("load", "cannot load", note=EVIL)
LIE = Judgement("hook_attn_out", "different", 0.25, 0.25, 1)
PADDED = Judgement("left padding", "different", 0.0, float("inf"))
FINE = Judgement("loss", "same", 1e-8, 1e-16)
VERSIONS = {"bridge": ["4.0.0", "4.1.0"], "hooked": [], "transformers": ["5.0.0"]}
JUDGED = {
    Cell("bridge", "4.0.0", "gpt2"): {"raw": [FINE]},
    Cell("bridge", "4.1.0", "gpt2"): {"raw": [LIE]},
    Cell("bridge", "4.0.0", "llama"): {"raw": [CRASH]},
    Cell("bridge", "4.1.0", "llama"): {"raw": [FINE]},
    Cell("transformers", "5.0.0", "gpt2"): {"raw": [PADDED]},
    Cell("transformers", "5.0.0", "llama"): {"raw": [FINE]},
}
CAUSES = [Cause("a|cause", library) for library in VERSIONS]
FOUND = findings(JUDGED, VERSIONS, CAUSES)  # type: ignore[arg-type]
TABLE = Table(
    VERSIONS,  # type: ignore[arg-type]
    ["gpt2", "llama"],
    {cell: said["raw"][0] for cell, said in JUDGED.items()},
    len(JUDGED),
    FOUND,
    {"odd": "no <b>reference</b>"},
)
SHOWN = [Shown(f, "print('<i>')", "1 & 2") for f in FOUND]
BESIDE = {"torch": "2.13.0"}


def test_markdown_has_cells_findings_and_no_markup_of_a_library() -> None:
    page = render_markdown(TABLE, SHOWN, BESIDE, 12.0)
    newest, earlier = page.split("## In earlier releases")
    assert "| 1 | TransformerBridge | hook\\_attn\\_out | raw | 4.1.0 (good in 4.0.0) |" in newest
    assert "2.5e-01 (2.5e-01 in float64) at layer 1 | a\\|cause |" in newest
    assert "| 4.0.0 or earlier | 4.0.0 (good in 4.1.0) | llama |" in earlier
    assert "<script>" not in page
    assert "| gpt2 | = | ≠ |" in page
    assert "| llama | ✗ | = |" in page
    rows = [re.sub(r"\\.", "", line) for line in page.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {4, 3, 10}  # as many cells as each table has


def test_html_is_one_page_without_markup_of_a_library() -> None:
    page = render_html(TABLE, SHOWN, BESIDE, 12.0)
    assert "<script" not in page
    assert "cannot load: KeyError: &lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "no &lt;b&gt;reference&lt;/b&gt;" in page
    assert "print(&#39;&lt;i&gt;&#39;)" in page
    assert "src=" not in page
    assert "href=" not in page


def test_scripts_use_the_library_only_and_compile() -> None:
    for finding in FOUND:
        source = script(finding, "5.23.0")
        compile(source, "script", "exec")
        assert "residcheck" not in source
    by_quantity = {f.quantity: script(f, "5.23.0") for f in FOUND}
    assert "float64" in by_quantity["left padding"]
    assert "'blocks.1.hook_attn_out'" in by_quantity["hook_attn_out"]
    assert "rope_theta=3000.0" not in by_quantity["hook_attn_out"]  # GPT-2 has none


class OneVersion:
    """A matrix of one version of one library: the reference is run, and was not asked for."""

    versions: ClassVar = {"bridge": ["4.1.0"]}
    models = ("gpt2", "odd")
    cells: ClassVar = [Cell("transformers", "5.0.0", "gpt2"), Cell("bridge", "4.1.0", "gpt2")]

    def reference(self, model: str) -> None:
        if model == "odd":
            raise GateError("no reference")

    def judged(self, cell: Cell) -> dict[str, list[Judgement]]:
        return {"raw": [LIE if cell.library == "bridge" else PADDED]}


def test_only_what_was_asked_for_is_in_the_table() -> None:
    table = tabulate(OneVersion())  # type: ignore[arg-type]
    assert list(table.cells) == [Cell("bridge", "4.1.0", "gpt2")]
    assert [found.quantity for found in table.findings] == ["hook_attn_out"]
    assert table.unjudged == {"odd": "no reference"}
