"""All backends see the same, and what a tap returns is what the model goes on with."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from tiny import LAYERS, Tiny, architectural
from torch import Tensor

from residcheck.backends import SITES, Backend, Site, Tap, lens, open_backend
from residcheck.corpus import Prompts, shipped
from residcheck.curves import Run
from residcheck.errors import GateError, LoadError
from residcheck.measure import measure
from residcheck.models import ModelSpec, load
from residcheck.tolerances import tolerance

FLOAT32 = tolerance("float32")
BACKENDS = ("transformer_lens", "transformers", "nnsight")
PROMPTS = Prompts("some passages", (*shipped().texts[9:12], "A few words."))
MAX_TOKENS = 24
# A pre-activation within rounding of zero may fall on either side of it: of the tens of
# thousands in these passes one or two are that close (Starcoder2 has one at 2e-8).
FLIPS = 2
FAMILIES = (
    "gpt2", "gpt_neo", "gptj", "codegen", "neox", "neox_sequential", "opt", "bloom", "falcon",
    "mpt", "llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi",
    "phi3", "stablelm", "stablelm_parallel", "olmo", "olmo2", "granite", "cohere", "glm4",
    "starcoder2", "nemotron",
)  # fmt: skip
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def measured(tiny: Tiny, family: str, prompts: Prompts = PROMPTS, **options: str) -> Run:
    spec = ModelSpec(str(tiny(family))).with_options(**options)
    return measure(spec, prompts, max_tokens=MAX_TOKENS, batch_size=3)


def opened(tiny: Tiny, family: str, backend: str, processing: str = "") -> Backend:
    return _opened(str(tiny(family)), backend, processing)


@cache
def _opened(folder: str, backend: str, processing: str) -> Backend:
    return open_backend(load(ModelSpec(folder, backend=backend, processing=processing)))


def assert_same_curves(one: Run, other: Run) -> None:
    per_token = {name for name, curve in one.curves.items() if curve.per_token}
    assert per_token == {name for name, curve in other.curves.items() if curve.per_token}
    assert {"resid_pre_norm", "attn_out_norm", "mlp_out_norm", "resid_post_norm"} <= per_token
    for name in per_token:
        a, b = one[name], other[name]
        assert (np.isnan(a.values) == np.isnan(b.values)).all(), name
        bound, token = FLOAT32.curve, FLOAT32.token
        if name == "activation_rate":
            width = one.model.d_mlp
            assert width is not None
            bound, token = bound + FLIPS / width / one.prompts.tokens, token + FLIPS / width
        relative = a.unit == "norm"
        scale, sizes = (np.abs(a.mean), np.abs(a.values)) if relative else (1.0, 1.0)
        assert np.max(np.abs(a.mean - b.mean) / scale) <= bound, name
        assert np.nanmax(np.abs(a.values - b.values) / sizes) <= token, name


@pytest.mark.parametrize("family", FAMILIES)
def test_all_backends_give_the_same_curves(family: str, tiny: Tiny) -> None:
    one, *others = (measured(tiny, family, backend=backend) for backend in BACKENDS)
    for other in others:
        assert_same_curves(one, other)
        assert architectural(one) == architectural(other)
        assert one.prompts == other.prompts


def test_the_new_falcon_architecture_cannot_be_bridged(tiny: Tiny) -> None:
    with pytest.raises(LoadError, match="cannot bridge falcon_new"):
        opened(tiny, "falcon_new", "transformer_lens")
    one, other = (measured(tiny, "falcon_new", backend=backend) for backend in BACKENDS[1:])
    assert_same_curves(one, other)


def test_the_logits_of_gpt_oss_in_transformer_lens_are_not_its_own(tiny: Tiny) -> None:
    with pytest.raises(GateError, match="logits differ"):
        measured(tiny, "gpt_oss")
    one, other = (measured(tiny, "gpt_oss", backend=backend) for backend in BACKENDS[1:])
    assert_same_curves(one, other)


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama", "gemma3", "olmo2", "bloom", "cohere"])
def test_raw_and_processed_weights_give_the_same_curves(family: str, tiny: Tiny) -> None:
    raw, processed = (measured(tiny, family, processing=p) for p in ("raw", "processed"))
    assert_same_curves(raw, processed)
    assert (raw.model.processing, processed.model.processing) == ("raw", "processed")


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "neox"])
def test_attention_kernels_give_the_same_curves(family: str, tiny: Tiny) -> None:
    eager, sdpa = (
        measured(tiny, family, backend="transformers", attention=kernel)
        for kernel in ("eager", "sdpa")
    )
    assert_same_curves(eager, sdpa)
    assert (eager.model.attention, sdpa.model.attention) == ("eager", "sdpa")


def batch() -> tuple[Tensor, Tensor]:
    tokens = torch.randint(3, 500, (2, 12), generator=torch.Generator().manual_seed(0))
    return tokens, torch.ones_like(tokens)


class Notes:
    """Taps that note a copy of what they see, at every site an anatomy has."""

    def __init__(self, backend: Backend) -> None:
        self.seen: dict[tuple[int, Site], Tensor] = {}
        self.taps = {
            (layer, site): self._tap(layer, site)
            for layer in range(backend.anatomy.n_layers)
            for site in SITES
            if backend.anatomy.has(site)
        }

    def _tap(self, layer: int, site: Site) -> Tap:
        def note(tensor: Tensor) -> None:
            self.seen[layer, site] = tensor.clone()

        return note


FORMS = ("gpt2", "llama", "gemma3", "granite", "neox", "phi", "bloom", "mpt", "opt", "mixtral")


@every_backend
@pytest.mark.parametrize("family", FORMS)
def test_writes_that_a_tap_takes_away_are_missing_from_the_stream(
    family: str, backend: str, tiny: Tiny
) -> None:
    tapped = opened(tiny, family, backend)
    before, after = Notes(tapped), Notes(tapped)
    tapped.forward(*batch(), before.taps, logits=True)
    without = after.taps | {(1, "attn_out"): torch.zeros_like, (1, "mlp_out"): torch.zeros_like}
    tapped.forward(*batch(), without, logits=True)
    assert torch.equal(after.seen[1, "resid_pre"], before.seen[1, "resid_pre"])
    assert torch.equal(after.seen[1, "resid_post"], after.seen[1, "resid_pre"])
    assert torch.equal(after.seen[2, "resid_pre"], after.seen[1, "resid_post"])
    if tapped.anatomy.has("resid_mid"):
        assert torch.equal(after.seen[1, "resid_mid"], after.seen[1, "resid_pre"])
    assert not torch.equal(after.seen[1, "resid_post"], before.seen[1, "resid_post"])


@every_backend
@pytest.mark.parametrize("family", FORMS)
def test_a_write_that_a_tap_doubles_is_added_twice(family: str, backend: str, tiny: Tiny) -> None:
    tapped = opened(tiny, family, backend)
    notes = Notes(tapped)
    tapped.forward(*batch(), notes.taps | {(0, "mlp_out"): lambda x: 2 * x}, logits=False)
    once = Notes(tapped)
    tapped.forward(*batch(), once.taps, logits=False)
    expected = once.seen[0, "resid_post"] + once.seen[0, "mlp_out"]
    error = (notes.seen[0, "resid_post"] - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert float(error.max()) <= FLOAT32.identity


@every_backend
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_a_stream_that_a_tap_replaces_is_what_comes_after(
    family: str, backend: str, tiny: Tiny
) -> None:
    tapped = opened(tiny, family, backend)
    before = Notes(tapped)
    tapped.forward(*batch(), before.taps, logits=True)
    sites: tuple[Site, ...] = ("resid_pre", "ln1_out", "resid_mid", "ln2_out", "resid_post")
    for site in sites:
        after = Notes(tapped)
        tapped.forward(*batch(), after.taps | {(1, site): lambda x: x.flip(-1)}, logits=True)
        assert torch.equal(after.seen[0, "resid_post"], before.seen[0, "resid_post"]), site
        assert not torch.equal(after.seen[2, "resid_post"], before.seen[2, "resid_post"]), site


@every_backend
@pytest.mark.parametrize(
    "family", ["gpt2", "llama", "bloom", "falcon", "gpt_neo", "opt", "mixtral"]
)
def test_heads_can_be_switched_off(family: str, backend: str, tiny: Tiny) -> None:
    tapped = opened(tiny, family, backend)
    notes = Notes(tapped)
    tapped.forward(*batch(), notes.taps | {(1, "z"): torch.zeros_like}, logits=False)
    written = notes.seen[1, "attn_out"]
    assert float((written - written[0, 0]).abs().max()) <= FLOAT32.unit  # the bias, if any


@every_backend
@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom", "opt", "phi3", "granite"])
def test_activations_can_be_switched_off(family: str, backend: str, tiny: Tiny) -> None:
    tapped = opened(tiny, family, backend)
    notes = Notes(tapped)
    tapped.forward(*batch(), notes.taps | {(1, "mlp_post"): torch.zeros_like}, logits=False)
    written = notes.seen[1, "mlp_out"]
    assert float((written - written[0, 0]).abs().max()) <= FLOAT32.unit


@pytest.mark.parametrize("family", FAMILIES)
def test_all_backends_hand_the_same_to_the_output_projections(family: str, tiny: Tiny) -> None:
    # Raw, since processed weights carry the value bias in b_O instead of in z.
    tapped = [opened(tiny, family, backend, "raw") for backend in BACKENDS]
    one, *others = (Notes(backend) for backend in tapped)
    for notes, backend in zip((one, *others), tapped, strict=True):
        backend.forward(*batch(), notes.taps, logits=False)
    places = [place for place in one.seen if place[1] in ("z", "mlp_post")]
    assert len(places) == (LAYERS if family == "mixtral" else 2 * LAYERS)
    for place, other in product(places, others):
        a, b = one.seen[place], other.seen[place]
        assert a.shape == b.shape
        error = (a - b).norm(dim=-1) / b.norm(dim=-1)
        assert float(error.max()) <= FLOAT32.token, place


def test_a_hook_that_transformer_lens_never_fires_is_missing(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(lens.HOOKS, "z", "mlp.hook_in_no_place")
    found = open_backend(load(ModelSpec(str(tiny("llama")))))
    assert "does not fire mlp.hook_in_no_place" in found.anatomy.missing["z"]
    assert "mlp_post" not in found.anatomy.missing


@every_backend
@pytest.mark.parametrize("family", ["gpt2", "llama", "phi3"])  # Phi-3 packs gate and up
def test_hidden_neurons_can_be_switched_off(family: str, backend: str, tiny: Tiny) -> None:
    tapped = opened(tiny, family, backend)
    notes = Notes(tapped)
    off = {(1, "mlp_pre"): torch.zeros_like}  # both GELU and SiLU map zero to zero
    tapped.forward(*batch(), notes.taps | off, logits=False)
    written = notes.seen[1, "mlp_out"]
    assert float((written - written[0, 0]).abs().max()) <= FLOAT32.unit  # the bias, if any


@every_backend
@pytest.mark.parametrize("family", ["gpt2", "neox", "mixtral", "olmo2"])
def test_without_logits_every_tap_still_fires(family: str, backend: str, tiny: Tiny) -> None:
    tapped = opened(tiny, family, backend)
    whole, short = Notes(tapped), Notes(tapped)
    assert tapped.forward(*batch(), whole.taps, logits=True) is not None
    assert tapped.forward(*batch(), short.taps, logits=False) is None
    assert set(short.seen) == set(whole.seen) == set(short.taps)
    assert len({layer for layer, _ in short.seen}) == LAYERS
    assert all(torch.equal(short.seen[where], whole.seen[where]) for where in whole.seen)


@every_backend
def test_taps_are_gone_after_the_pass(backend: str, tiny: Tiny) -> None:
    tapped = opened(tiny, "llama", backend)
    notes = Notes(tapped)
    plain = tapped.forward(*batch(), {}, logits=True)
    tapped.forward(*batch(), {(0, "mlp_out"): torch.zeros_like}, logits=False)
    with pytest.raises(ZeroDivisionError):
        tapped.forward(*batch(), {(1, "mlp_out"): lambda x: 1 / 0}, logits=True)
    again = tapped.forward(*batch(), notes.taps, logits=True)
    assert plain is not None
    assert again is not None
    assert torch.equal(plain, again)


@pytest.mark.parametrize("family", ["gpt2", "neox", "gemma3"])
def test_logits_are_those_of_the_plain_model(family: str, tiny: Tiny) -> None:
    plain = load(ModelSpec(str(tiny(family)), backend="transformers")).model
    with torch.inference_mode():
        expected = plain(input_ids=batch()[0]).logits.log_softmax(-1)
    for backend in BACKENDS:
        logits = opened(tiny, family, backend).forward(*batch(), {}, logits=True)
        assert logits is not None
        difference = (logits.log_softmax(-1) - expected).square().mean().sqrt()
        assert float(difference / expected.std(-1).mean()) <= FLOAT32.logits
