"""The canonical form changes no output, and comes out of every backend the same."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from tiny import LAYERS, Tiny
from torch import Tensor

from residcheck.backends import (
    Affine,
    AttentionWeights,
    Backend,
    LayerWeights,
    MLPWeights,
    Site,
    Tap,
    open_backend,
)
from residcheck.models import BUILTIN, ModelSpec, load
from residcheck.tolerances import tolerance
from residcheck.weights.canonical import as_written, canonical, fold

FLOAT32, FLOAT64 = tolerance("float32"), tolerance("float64")
D, H, KV, W, F = 12, 4, 2, 5, 20
WAYS: tuple[dict[str, str], ...] = (
    {"backend": "transformers"},
    {"processing": "raw"},
    {"processing": "processed"},
)
FAMILIES = (
    "gpt2", "gpt_neo", "gptj", "codegen", "neox", "neox_sequential", "opt", "bloom", "falcon",
    "mpt", "llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi",
    "phi3", "stablelm", "stablelm_parallel", "olmo", "olmo2", "granite", "cohere", "glm4",
    "starcoder2", "nemotron", "apertus",
)  # fmt: skip


def random(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def block() -> tuple[LayerWeights, Affine, Affine]:
    attention = AttentionWeights(
        W_Q=random(H, D, W, seed=1),
        W_K=random(KV, D, W, seed=2),
        W_V=random(KV, D, W, seed=3),
        W_O=random(H, W, D, seed=4),
        b_Q=random(H, W, seed=5),
        b_V=random(KV, W, seed=6),
        b_O=random(D, seed=7),
    )
    mlp = MLPWeights(
        W_in=random(D, F, seed=8),
        W_out=random(F, D, seed=9),
        W_gate=random(D, F, seed=10),
        b_in=random(F, seed=11),
        b_out=random(D, seed=12),
    )
    norms = [Affine(random(D, seed=s), random(D, seed=s + 1)) for s in (13, 15)]
    return LayerWeights(attention, mlp), norms[0], norms[1]


def normalised(x: Tensor) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / x.square().mean(-1, keepdim=True).sqrt()


def error(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def plus(x: Tensor, b: Tensor | None) -> Tensor:
    return x if b is None else x + b


def attend(w: AttentionWeights, read: Tensor, pattern: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and output of attention with a given pattern, one head at a time."""
    per_head = [
        pattern[h] @ plus(read @ w.W_V[h // 2], None if w.b_V is None else w.b_V[h // 2]) @ w.W_O[h]
        for h in range(H)
    ]
    queries = [plus(read @ w.W_Q[h], None if w.b_Q is None else w.b_Q[h]) for h in range(H)]
    keys = [plus(read @ w.W_K[h], None if w.b_K is None else w.b_K[h]) for h in range(KV)]
    return torch.stack(queries), torch.stack(keys), plus(sum(per_head, torch.zeros(())), w.b_O)


def test_folded_attention_does_what_it_did() -> None:
    raw, ln1, ln2 = block()
    folded = fold(raw, ln1, ln2, centre=True).attention
    assert raw.attention is not None
    assert folded is not None
    x = normalised(random(7, D, seed=20))
    pattern = torch.softmax(random(H, 7, 7, seed=21), dim=-1)
    before = attend(raw.attention, x * ln1.gain + ln1.bias, pattern)
    after = attend(folded, x, pattern)
    for one, other in zip(after[:2], before[:2], strict=True):
        assert error(one, other) <= FLOAT64.product
    centred = before[2] - before[2].mean(-1, keepdim=True)
    assert error(after[2], centred) <= FLOAT64.product
    assert folded.b_V is None


def test_a_folded_mlp_does_what_it_did() -> None:
    raw, ln1, ln2 = block()
    folded = fold(raw, ln1, ln2, centre=True).mlp
    assert raw.mlp is not None
    assert folded is not None
    x = normalised(random(7, D, seed=22))
    read = x * ln2.gain + ln2.bias

    def run(w: MLPWeights, x: Tensor) -> Tensor:
        assert w.W_gate is not None
        gate = torch.nn.functional.silu(plus(x @ w.W_gate, w.b_gate))
        return plus(gate * plus(x @ w.W_in, w.b_in) @ w.W_out, w.b_out)

    before = run(raw.mlp, read)
    centred = before - before.mean(-1, keepdim=True)
    assert error(run(folded, x), centred) <= FLOAT64.product


def assert_same(one: LayerWeights, other: LayerWeights, bound: float) -> None:
    for part in ("attention", "mlp"):
        a, b = getattr(one, part), getattr(other, part)
        assert (a is None) == (b is None), part
        for name in () if a is None else [field.name for field in fields(a)]:
            x, y = getattr(a, name), getattr(b, name)
            assert (x is None) == (y is None), name
            if x is not None:
                assert x.shape == y.shape, name
                assert error(x, y) <= bound, name


@pytest.mark.parametrize("centre", [False, True])
def test_what_is_folded_stays_as_it_is(centre: bool) -> None:
    raw, ln1, ln2 = block()
    identity = Affine(torch.ones(D).double(), torch.zeros(D).double())
    once = fold(raw, ln1, ln2, centre=centre)
    assert_same(fold(once, identity, identity, centre=centre), once, 10 * FLOAT64.unit)
    assert_same(fold(once, None, None, centre=centre), once, 10 * FLOAT64.unit)


def test_without_a_layer_norm_means_stay() -> None:
    raw, _, _ = block()
    folded = fold(raw, None, None, centre=False)
    assert raw.mlp is not None
    assert folded.mlp is not None
    assert torch.equal(folded.mlp.W_out, raw.mlp.W_out)
    assert torch.equal(folded.mlp.W_in, raw.mlp.W_in)


def test_value_biases_stay_where_patterns_do_not_sum_to_one() -> None:
    raw, _, _ = block()
    kept = fold(raw, None, None, centre=False, values=False).attention
    assert raw.attention is not None
    assert kept is not None
    assert kept.b_V is not None
    assert raw.attention.b_V is not None
    assert torch.equal(kept.b_V, raw.attention.b_V)


@pytest.mark.parametrize(("dtype", "kept"), [("float64", "float64"), ("bfloat16", "float32")])
def test_precision_is_float32_at_least(dtype: str, kept: str, tiny: Tiny) -> None:
    backend = opened(str(tiny("gpt2")), {"backend": "transformers", "dtype": dtype})
    weights = canonical(backend, 0)
    assert weights.mlp is not None
    assert weights.attention is not None
    assert weights.mlp.W_out.dtype == weights.attention.W_Q.dtype == getattr(torch, kept)


def opened(name: str, options: dict[str, str]) -> Backend:
    return open_backend(load(ModelSpec(name).with_options(**options)))


def assert_all_agree(name: str) -> None:
    plain, raw, processed = (opened(name, way) for way in WAYS)
    for layer in range(plain.anatomy.n_layers):
        expected = canonical(plain, layer)
        # Gains are found by feeding the norm, and folded and unfolded in float32: a few roundings.
        assert_same(canonical(raw, layer), expected, FLOAT32.identity)
        assert_same(canonical(processed, layer), expected, FLOAT32.identity)


@pytest.mark.parametrize("family", FAMILIES)
def test_raw_and_processed_weights_of_both_backends_agree(family: str, tiny: Tiny) -> None:
    assert_all_agree(str(tiny(family)))


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("name", BUILTIN)
def test_the_built_in_models_agree(name: str) -> None:
    assert_all_agree(name)


def test_a_residual_multiplier_is_in_what_is_written(tiny: Tiny) -> None:
    backend = opened(str(tiny("granite")), WAYS[0])
    raw, folded = backend.weights(1).mlp, canonical(backend, 1).mlp
    assert raw is not None
    assert folded is not None
    assert error(folded.W_out, 0.3 * raw.W_out) <= FLOAT32.unit  # 0.3: tiny.FAMILIES


def test_behind_a_post_norm_what_is_written_stays_and_the_gain_is_beside_it(tiny: Tiny) -> None:
    backend = opened(str(tiny("gemma3")), WAYS[2])
    for layer in range(LAYERS):
        raw, folded, norm = (
            backend.weights(layer).mlp,
            canonical(backend, layer).mlp,
            backend.post_norm(layer, "mlp_out"),
        )
        assert raw is not None
        assert folded is not None
        assert norm is not None
        assert torch.equal(folded.W_out, raw.W_out)
        assert not norm.is_identity


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_what_a_post_norm_lets_through_has_the_direction_of_the_written_weights(
    way: dict[str, str], tiny: Tiny
) -> None:
    """A prompt of one token: what attention adds is its normalised input through W_V, W_O and
    the gain, divided by one number; for ordinary weights that number would be 1."""
    backend = opened(str(tiny("gemma3")), way)
    seen: dict[tuple[int, str], Tensor] = {}

    def see(layer: int, site: Site) -> Tap:
        def tap(x: Tensor) -> None:
            seen[layer, site] = x[0, 0].double()

        return tap

    sites: tuple[Site, ...] = ("resid_pre", "attn_out")
    tokens = torch.tensor([[7]])
    taps = {(n, site): see(n, site) for n in range(LAYERS) for site in sites}
    backend.forward(tokens, torch.ones_like(tokens), taps, logits=False)
    for layer in range(LAYERS):
        attention = as_written(backend, layer, canonical(backend, layer)).attention
        assert attention is not None
        values = torch.einsum("d,hde->he", seen[layer, "resid_pre"], attention.W_V.double())
        heads = values.repeat_interleave(attention.queries_per_value, dim=0)
        written = torch.einsum("he,hed->d", heads, attention.W_O.double())
        cosine = torch.cosine_similarity(written, seen[layer, "attn_out"], dim=0)
        assert float(cosine) == pytest.approx(1, abs=1e-9)
