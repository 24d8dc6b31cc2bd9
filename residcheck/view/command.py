"""``residcheck view``. Imported with the command line: nothing heavy at the top."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from residcheck.errors import UsageError
from residcheck.view.grammar import FORMS

_FILE = click.Path(dir_okay=False, path_type=Path)
_LARGE = 60_000
"""So many values make a page that browsers are slow with."""
_GRAMMAR = "\b\nDirections:\n" + "\n".join(f"  {form:<15} {what}" for form, what in FORMS.values())
_EXIT_STATUS = "Exit status: 0 written, 2 wrong usage, 3 could not measure."


@click.command(epilog=f"{_GRAMMAR}\n\n{_EXIT_STATUS}")
@click.argument("model")
@click.option("--text", metavar="TEXT", help="What the model reads.")
@click.option("--text-file", metavar="FILE", type=_FILE, help="Read the text from a UTF-8 file.")
@click.option("--direction", metavar="SPEC", required=True, help="What to look along, see below.")
@click.option("--layers", metavar="LIST", help="Such as embed,0,5,10-20 (default: all).")
@click.option("--site", metavar="SITE", default="resid_post", show_default=True,
              help="Also resid_pre, resid_mid; attn_out, mlp_out (what is added).")  # fmt: skip
@click.option("--out", metavar="FILE.html", type=_FILE, default=Path("view.html"),
              show_default=True, help="HTML file to write.")  # fmt: skip
@click.option("--device", metavar="DEVICE", help="cpu (default), cuda, cuda:N, auto or mps.")
@click.option("--dtype", metavar="DTYPE", help="float32 (default), bf16, fp16, float64.")
@click.option(
    "--backend", metavar="NAME", help="transformer_lens (default), transformers, nnsight."
)
@click.option("--processing", metavar="KIND", help="Weights: processed (default) or raw.")
def view(
    model: str,
    text: str | None,
    text_file: Path | None,
    direction: str,
    layers: str | None,
    site: str,
    out: Path,
    **options: Any,
) -> None:
    """Show each token's residual stream along a direction, layer by layer.

    The page colours every token by the dot product of its stream with the direction, a
    unit vector, or by their cosine. Values are on the page as text too.

    \b
    residcheck view smollm2-135m --text "The Eiffel Tower is in" --direction "token: Paris"
    residcheck view gpt2 --text-file essay.txt --direction head:9.6 --layers 6-11
    """
    from residcheck.console import progress_bars
    from residcheck.models import parse_spec
    from residcheck.output import prepare
    from residcheck.view.page import write_page
    from residcheck.view.terminal import show
    from residcheck.view.viewing import view as look

    said = _given(text, text_file)
    spec = parse_spec(model).with_options(**options)
    prepare(out)
    with progress_bars() as progress:
        seen = look(spec, said, direction, layers=layers, site=site, progress=progress)
    write_page(seen, out)
    show(seen)
    click.echo(f"written: {out}")
    if seen.values.dot.size > _LARGE:
        click.echo("  the page is large; --layers shows fewer layers", err=True)


def _given(text: str | None, text_file: Path | None) -> str:
    from residcheck.view.viewing import read_text

    if text is not None and text_file is None:
        return text
    if text_file is not None and text is None:
        return read_text(text_file)
    raise UsageError("give either --text or --text-file")
