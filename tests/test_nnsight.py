"""The nnsight backend is plain transformers with another library's eyes and hands: whatever
is replaced has the same effect, and what goes wrong in a trace comes out as it went in.

test_backends.py holds its curves, its taps and its logits against the other backends'.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from typing import Any

import pytest
import torch
from tiny import Tiny
from torch import Tensor

from residcheck.backends import SITES, Backend, Site, Tap, open_backend
from residcheck.corpus import Prompts
from residcheck.errors import GateError, ResidcheckError, UnsupportedModelError, UsageError
from residcheck.measure import measure, opening
from residcheck.models import ModelSpec, load
from residcheck.tolerances import tolerance

FLOAT32 = tolerance("float32")
PROMPTS = Prompts("two", ("A few words.", "And some other words."))
FAMILIES = (
    "gpt2", "gptj", "neox", "neox_sequential", "opt", "bloom", "falcon", "llama", "mixtral",
    "gpt_oss", "qwen3", "gemma2", "gemma3", "phi3", "olmo2", "granite",
)  # fmt: skip


def opened(tiny: Tiny, family: str) -> list[Backend]:
    """The same model, plain and through nnsight."""
    return [_opened(str(tiny(family)), backend) for backend in ("transformers", "nnsight")]


@cache
def _opened(folder: str, backend: str) -> Backend:
    return open_backend(load(ModelSpec(folder, backend=backend)))


def batch() -> tuple[Tensor, Tensor]:
    tokens = torch.randint(3, 500, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[1, 8:] = 0
    return tokens, mask


def logits(backend: Backend, *taps: tuple[Site, Tap]) -> Tensor:
    found = backend.forward(*batch(), {(1, site): tap for site, tap in taps}, logits=True)
    assert found is not None
    return found


def sites(backend: Backend) -> list[Site]:
    return [site for site in SITES if backend.anatomy.has(site)]


def of_the_first_row(x: Tensor) -> Tensor:
    """The tensor with its first row turned round."""
    return torch.stack([x[0].flip(-1), x[1]])


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm(dim=-1).max() / b.norm(dim=-1).mean())


@pytest.mark.parametrize("family", FAMILIES)
def test_what_replaces_one_row_moves_that_row_as_in_the_plain_model(
    family: str, tiny: Tiny
) -> None:
    plain, traced = opened(tiny, family)
    before = logits(traced)
    assert difference(before, logits(plain)) <= FLOAT32.token
    assert sites(traced) == sites(plain)
    for site in sites(plain):
        expected, found = (logits(x, (site, of_the_first_row)) for x in (plain, traced))
        assert difference(found, expected) <= FLOAT32.token, site
        assert difference(found[0], before[0]) > 10 * FLOAT32.token, site
        assert difference(found[1], before[1]) <= FLOAT32.token, site


@pytest.mark.parametrize("family", ["gpt2", "neox", "opt", "mixtral", "gemma3", "granite"])
def test_a_block_alone_and_the_unembedding_are_the_plain_models(family: str, tiny: Tiny) -> None:
    plain, traced = opened(tiny, family)
    width = plain.anatomy.d_model
    stream = torch.randn(2, 12, width, generator=torch.Generator().manual_seed(1))
    seen: list[dict[Site, Tensor]] = []
    for backend in (plain, traced):
        notes: dict[Site, Tensor] = {}
        inside = sites(plain)[1:]  # the first is what the block is given
        taps = {(1, site): lambda x, s=site, n=notes: n.update({s: x}) for site in inside}
        backend.alone(1, stream, *batch(), taps)
        seen.append(notes)
    assert set(seen[0]) == set(seen[1]) == set(sites(plain)[1:])
    for site, expected in seen[0].items():
        assert difference(seen[1][site], expected) <= FLOAT32.token, site
    one, other = (backend.unembed(stream[0]) for backend in (plain, traced))
    assert difference(other, one) <= FLOAT32.token


@pytest.mark.parametrize("error", [GateError("said so", "do so"), KeyboardInterrupt()])
@pytest.mark.parametrize("whole", [True, False])
def test_an_error_in_a_tap_comes_out_as_it_is(
    error: BaseException, whole: bool, tiny: Tiny
) -> None:
    _, traced = opened(tiny, "llama")
    before = logits(traced)

    def fail(x: Tensor) -> None:
        raise error

    taps: dict[tuple[int, Site], Tap] = {(0, "mlp_out"): torch.zeros_like, (1, "attn_out"): fail}
    with pytest.raises(type(error)) as caught:
        traced.forward(*batch(), taps, logits=whole)
    assert caught.value is error
    assert torch.equal(logits(traced), before)


def test_values_that_nnsight_serves_wrongly_are_caught_at_the_gate(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nnsight.intervention.interleaver import Mediator

    honest = Mediator.value

    def served(location: str) -> Any:
        value = honest(location)
        return (2 * value[0], *value[1:]) if location.endswith("self_attn.output") else value

    monkeypatch.setattr(Mediator, "value", served)
    with pytest.raises(GateError, match=r"output of model\.layers\.0\.self_attn"):
        measure(ModelSpec(str(tiny("llama")), backend="nnsight"), PROMPTS, max_tokens=8)


def test_a_part_that_never_runs_is_named(tiny: Tiny) -> None:
    loaded = load(ModelSpec(str(tiny("gpt2")), backend="nnsight"))
    loaded.model.transformer.h[1].mlp.forward = lambda x: x  # its layers stay, and idle
    backend = open_backend(loaded)
    backend.forward(*batch(), {(1, "mlp_out"): lambda x: None}, logits=True)
    with pytest.raises(UnsupportedModelError, match=r"nnsight .* gpt2: '.*\.1\.mlp\.c_proj\.input"):
        backend.forward(*batch(), {(1, "mlp_post"): lambda x: None}, logits=True)


def test_what_cannot_be_served_plainly_cannot_be_served_through_nnsight(tiny: Tiny) -> None:
    for family, reason in (("mamba", "attention"), ("openai_gpt", "identity gate")):
        with pytest.raises(ResidcheckError, match=reason):
            measure(ModelSpec(str(tiny(family)), backend="nnsight"), PROMPTS, max_tokens=8)


def test_without_nnsight_the_error_says_how_to_install_it(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nnsight", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "residcheck.backends.insight", raising=False)
    measure(ModelSpec(str(tiny("llama")), backend="transformers"), PROMPTS, max_tokens=8)
    monkeypatch.setattr(opening, "load", None)  # nothing is fetched for it
    with pytest.raises(UsageError, match="backend nnsight") as caught:
        measure(ModelSpec(str(tiny("llama")), backend="nnsight"), PROMPTS)
    assert "pip install 'residcheck[nnsight]'" in caught.value.hint


def test_nnsight_is_imported_for_its_own_backend_only_and_harms_no_other(tiny: Tiny) -> None:
    script = f"""
import sys
from residcheck.cli import main
from residcheck.corpus import Prompts
from residcheck.measure import measure
from residcheck.models import ModelSpec

def run(backend):
    return measure(ModelSpec({str(tiny("llama"))!r}, backend=backend), Prompts("p", ("A word.",)))

run("transformers")
assert "nnsight" not in sys.modules
found = run("nnsight")
assert found.model.backend == "nnsight" and found.environment["nnsight"]
assert "nnsight" not in run("transformer_lens").environment
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
