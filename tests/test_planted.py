"""Planted models hold what their plan says, and specs that cannot be planted are refused.

Expected curves are the plan's own numbers, worked out in float64 before there were weights.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from residcheck.cli import main
from residcheck.corpus import Prompts, shipped
from residcheck.curves import Run
from residcheck.errors import UsageError
from residcheck.measure import QUANTITIES, measure
from residcheck.models import load, parse_spec
from residcheck.planted import options, read_plan
from residcheck.planted.matrices import HEADS, neurons, width
from residcheck.planted.plan import FAMILIES
from residcheck.planted.stream import blocks, norms

PROMPTS = Prompts("some", shipped().texts[:3])
STREAMS = [
    "growth=1.045,layers=24,window=5-18",
    "shape=linear,growth=1.1",
    "shape=power,growth=1.1",
    "shape=super",
    "growth=0.95",
    "growth=1",
    "cosine=0",
    "by=attention",
    "by=mlp",
    "kept=0.5",
    "layers=1",
    "bos=apart",
    "eraser=3.1,basis=standard",
]


def measured(plan: str, *names: str, backend: str = "transformers") -> Run:
    spec = parse_spec(f"planted:{plan},spread=0,backend={backend}")
    return measure(spec, PROMPTS, max_tokens=16, names=names)


def assert_as_planned(run: Run, plan: str) -> None:
    truth = read_plan(f"planted:{plan},spread=0")
    planned = blocks(truth)
    expected = {
        "resid_post_norm": norms(truth),
        "resid_pre_norm": [block.attention.before for block in planned],
        "attn_out_norm": [block.attention.size for block in planned],
        "mlp_out_norm": [block.mlp.size for block in planned],
        "attn_out_cosine": [block.attention.cosine for block in planned],
        "mlp_out_cosine": [block.mlp.cosine for block in planned],
    }
    if not truth.parallel:
        expected["resid_mid_norm"] = [block.mlp.before for block in planned]
    for name, values in expected.items():
        wanted = np.broadcast_to(values, run[name].ordinary.shape)
        wanted = np.where(np.isnan(run[name].ordinary), np.nan, wanted)
        assert run[name].ordinary == pytest.approx(wanted, rel=2e-5, abs=2e-6, nan_ok=True), name


@pytest.mark.parametrize(
    ("plan", "family"),
    [(p, f) for p in STREAMS for f in FAMILIES if (p, f) != ("bos=apart", "gemma3")],
)
def test_every_token_has_the_planned_stream(plan: str, family: str) -> None:
    text = f"family={family},{plan}"
    assert_as_planned(measured(text, *QUANTITIES), text)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_other_library_sees_the_same_stream(family: str) -> None:
    run = measured(f"family={family}", *QUANTITIES, backend="transformer_lens")
    assert_as_planned(run, f"family={family}")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_share_of_active_neurons(family: str) -> None:
    plan = f"family={family},layers=8,active=0.1,activation=1.2"
    count = neurons(read_plan(f"planted:{plan}"))
    found = measured(plan, "activation_rate")["activation_rate"].ordinary
    expected = np.round(0.1 * 1.2 ** np.arange(8) * count) / count
    assert np.nanmax(np.abs(found - expected)) < 1e-6


def test_norms_of_ov_are_in_closed_form() -> None:
    """A head of rank one; the others read what nothing writes, six rows in all."""
    truth = read_plan("planted:random_attention=3,spread=0,bias=0")
    found = measured("random_attention=3,bias=0", "ov_frobenius")["ov_frobenius"].double
    for layer, block in enumerate(blocks(truth)):
        write = block.attention
        active = write.size / (write.share * width(truth) ** 0.5)
        dead = 3 * write.size / 6**0.5 * 2**0.5
        assert found[:, layer] == pytest.approx([active] + [dead] * (HEADS - 1), rel=1e-4)


def test_sizes_of_tokens_differ_only_in_their_own_part() -> None:
    spec = parse_spec("planted:growth=1.08,spread=0.3,backend=transformers")
    run = measure(spec, PROMPTS, max_tokens=16, names=("resid_pre_norm",))
    first = run["resid_pre_norm"].ordinary[..., 0]
    assert np.nanstd(first) > 0.01
    assert np.nanmean(first) == pytest.approx(1, abs=0.05)


def test_the_same_plan_is_the_same_model_in_every_dtype() -> None:
    one, other = (load(parse_spec(f"planted:layers=3,dtype={x}")).model for x in ("f32", "f64"))
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert b.dtype == torch.float64
        assert torch.equal(a, b.float())


@pytest.mark.parametrize(
    ("text", "name", "backend"),
    [
        ("planted:growth=1.08", "planted:family=gpt2", "transformer_lens"),
        ("planted:layers=6,backend=transformers", "planted:family=gpt2,layers=6", "transformers"),
        ("planted:window=2-9,dtype=bf16,family=llama", "planted:family=llama,window=2-9", None),
        ("planted:eraser=3.1", "planted:family=gpt2,eraser=3-1", None),
        ("planted:horizon=4", "planted:family=llama,horizon=4", None),
    ],
)
def test_a_spec_says_what_is_not_as_by_default(text: str, name: str, backend: str | None) -> None:
    spec = parse_spec(text)
    assert spec.name == name
    assert parse_spec(spec.name).name == name
    assert backend in (None, spec.backend)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("planted:grwoth=1", "unknown option 'grwoth'"),
        ("planted:growth=fast", "growth=fast"),
        ("planted:growth=1.1,growth=1.2", "given twice"),
        ("planted:family=bert", "use one of gpt2, llama"),
        ("planted:window=9-3", "window"),
        ("planted:window=3", "window=3"),
        ("planted:layers=0", "layers"),
        ("planted:layers=100000", "layers"),
        ("planted:growth=nan", "growth"),
        ("planted:bos=apart,family=gemma3", "BOS"),
        ("planted:gaussian=1.1,family=llama", "without biases"),
        ("planted:horizon=20,layers=12", "horizon"),
        ("planted:horizon=3,family=gpt2", "llamas"),
        ("planted:horizon=3,growth=1.1", "beside a horizon"),
        ("planted:horizon=3,decay=4", "only one of"),
        ("planted:growth=0.5", "cosine"),
        ("planted:cosine=0.9,growth=0.7", "cosine"),
        ("planted:activation=1.5", "active neurons"),
        ("planted:eraser=0.1", "erasers"),
    ],
)
def test_what_cannot_be_planted_is_explained(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load(parse_spec(text))


def test_a_slip_on_the_command_line_is_no_traceback() -> None:
    result = CliRunner().invoke(main, ["verify", "planted:grow=1.1"])
    assert result.exit_code == 2
    assert "unknown option 'grow'" in result.output
    assert "growth" in result.output


def test_every_option_is_explained() -> None:
    assert all(name and meaning for name, _, meaning in options())
