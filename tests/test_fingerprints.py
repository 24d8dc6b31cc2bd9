"""Fingerprints see what norms and averages do not, and agree between the backends."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lying import both_backends
from tiny import LAYERS, Tiny, load_double

from residcheck.backends import open_backend
from residcheck.corpus import Prompts, shipped
from residcheck.curves import Curve
from residcheck.measure.fingerprints import fingerprints
from residcheck.measure.opening import Session, open_session
from residcheck.models import ModelSpec
from residcheck.seeds import generator
from residcheck.tolerances import tolerance

PROMPTS = Prompts("x", shipped().texts[:2])
FLOAT32 = tolerance("float32")


def opened(tiny: Tiny, family: str, backend: str) -> Session:
    spec = ModelSpec(str(tiny(family))).with_options(backend=backend)
    return open_session(spec, PROMPTS, 24)


def taken(tiny: Tiny, family: str, backend: str) -> dict[str, Curve]:
    session = opened(tiny, family, backend)
    return fingerprints(session.backend, session.gate_tokens)


@both_backends
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_fingerprints_are_projections_of_hidden_states(
    family: str, backend: str, tiny: Tiny
) -> None:
    session = opened(tiny, family, backend)
    model = load_double(tiny(family))
    with torch.no_grad():
        output = model(session.gate_tokens, output_hidden_states=True)
    stream, logits = output.hidden_states[1][:, -1], output.logits[:, -1]
    if family == "gpt2":
        stream = stream - stream.mean(dim=-1, keepdim=True)
    curves = fingerprints(session.backend, session.gate_tokens)
    assert curves["resid_post_fingerprint"].values.shape == (2, 4, LAYERS)
    first = curves["resid_post_fingerprint"].values[:, :, 0]
    assert np.abs(first - by_hand(stream)).max() <= FLOAT32.token
    ends = curves["logit_fingerprint"].values
    assert np.abs(ends - by_hand(logits - logits.mean(dim=-1, keepdim=True))).max() <= FLOAT32.token


def by_hand(x: torch.Tensor) -> np.ndarray:
    directions = torch.randn(4, x.shape[-1], generator=generator("fingerprint")).double()
    return torch.einsum("bd,kd->bk", x / x.norm(dim=-1, keepdim=True), directions).numpy()


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "neox", "bloom"])
def test_both_backends_have_the_same_fingerprints(family: str, tiny: Tiny) -> None:
    one, other = (taken(tiny, family, b) for b in ("transformers", "transformer_lens"))
    for name, curve in one.items():
        assert np.abs(curve.values - other[name].values).max() <= FLOAT32.token, name


def test_a_stream_in_another_basis_keeps_its_norms_and_loses_its_fingerprint(tiny: Tiny) -> None:
    session = opened(tiny, "llama", "transformers")
    before = fingerprints(session.backend, session.gate_tokens)
    model = session.loaded.model
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # coordinates in the opposite order
            axes = {"embed": 1, "lm_head": 1, "o_proj": 0, "down_proj": 0, "norm": 0}
            axis = next((axis for part, axis in axes.items() if part in name), 1)
            parameter.copy_(parameter.flip(axis).clone())
    after = fingerprints(open_backend(session.loaded), session.gate_tokens)
    change = np.abs(
        after["resid_post_fingerprint"].values - before["resid_post_fingerprint"].values
    )
    assert change.min(axis=(0, 1)).min() > 0
    assert change.max(axis=(0, 1)).min() > 0.1
    same = np.abs(after["logit_fingerprint"].values - before["logit_fingerprint"].values)
    assert same.max() <= FLOAT32.token
