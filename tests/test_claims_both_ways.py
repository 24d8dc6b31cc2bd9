"""Every claim of families C, D, E and G, on models whose weights settle the answer.

The models are GPT-2s of ten small layers. Directions are drawn at random; sizes are set
layer by layer on the very tokens that are measured, so that growth, activation rates and
what cancels what are planted. Verdicts come out of the whole pipeline: a saved folder,
the measurement, the claim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import BOS, Tiny, new_model, tokenizer
from torch import Tensor

from residcheck.claim import Claim, all_claims
from residcheck.corpus import Prompts, shipped
from residcheck.curves import Run
from residcheck.judging import needed_curves
from residcheck.measure import measure
from residcheck.models import ModelSpec
from residcheck.stats import Outcome, toy
from residcheck.weights import rotate as rotating
from residcheck.weights.gaussian import squared_ratios

SUPPORTED, REFUTED = Outcome.SUPPORTED, Outcome.REFUTED
CLAIMS: dict[str, Claim] = {claim.id: claim for claim in all_claims()}
LAYERS, D, HIDDEN, MAX_TOKENS = 10, 48, 192, 24
GROWTH = 1.3  # of the stream, a layer
TEXTS = shipped().texts[:20]
ENCODED = tokenizer()(list(TEXTS), add_special_tokens=False)["input_ids"]
IDS = torch.tensor([[BOS, *ids][:MAX_TOKENS] for ids in ENCODED])
Size = Callable[[int], float]


def grows(n: int) -> float:
    """Of two independent writes a layer, beside an embedding of norm 1: the stream then
    grows by GROWTH from the first layer on."""
    return float(GROWTH**n * ((GROWTH**2 - 1) / 2) ** 0.5)


def basis(seed: int) -> Any:
    """Orthonormal rows, all of mean zero."""
    x = torch.randn(D, D - 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(x - x.mean(dim=0)).Q.T.float()


def onto(rows: Tensor) -> Any:
    """The projection on the space that orthonormal rows span."""
    return rows.T @ rows


COMMON = basis(0)[0]  # a direction that all streams of some models share


class Maker:
    """A GPT-2 without biases, its matrices random; sizes are set with :meth:`sized`."""

    def __init__(self, hidden: int = HIDDEN) -> None:
        sizes = {"n_layer": LAYERS, "n_embd": D, "n_head": 4, "n_inner": hidden}
        self.model = new_model("gpt2", tie_word_embeddings=False, n_positions=32, **sizes)
        self.model.requires_grad_(requires_grad=False)
        generator = torch.Generator().manual_seed(5)
        for name, parameter in self.model.named_parameters():
            if "ln_" in name:
                parameter.fill_(float(name.endswith("weight")))
            elif parameter.ndim == 1:
                parameter.zero_()
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / D**0.5)
        parts = self.model.transformer
        parts.wpe.weight.zero_()
        self.blocks: list[Any] = list(parts.h)
        self.tokens, self.positions = parts.wte.weight, parts.wpe.weight
        for block in self.blocks:  # patterns that are nearly even
            block.attn.c_attn.weight[:, : 2 * D] *= 0.3

    def writing(self) -> list[Any]:
        return [w for b in self.blocks for w in (b.attn.c_proj.weight, b.mlp.c_proj.weight)]

    def reading(self) -> list[Any]:
        return [w for b in self.blocks for w in (b.attn.c_attn.weight, b.mlp.c_fc.weight)]

    def sized(
        self,
        attention: Size | None = None,
        mlp: Size | None = None,
        rate: Size | None = None,
        special: Callable[[int, Tensor], float | None] = lambda n, mid: None,
    ) -> Maker:
        """Scale what each sublayer writes with so that it writes vectors of this mean norm,
        and move the hidden biases so that this share of neurons is active.

        ``special`` may set an MLP's weights, given what it will read, and returns its scale.
        """
        h = self.tokens[IDS] + self.positions[:MAX_TOKENS]
        for n, block in enumerate(self.blocks):
            written = block.attn(block.ln_1(h))[0] - block.attn.c_proj.bias
            if attention:
                factor = attention(n) / written[:, 1:].norm(dim=-1).mean()
                block.attn.c_proj.weight *= factor
                written = written * factor
            mid = h + written + block.attn.c_proj.bias
            special(n, mid)
            read = block.mlp.c_fc(block.ln_2(mid))
            if rate:
                block.mlp.c_fc.bias -= torch.quantile(read[:, 1:], 1 - rate(n))
            made = block.mlp(block.ln_2(mid))
            if mlp and mlp(n):
                factor = mlp(n) / made[:, 1:].norm(dim=-1).mean()
                block.mlp.c_proj.weight *= factor
                made = made * factor
            h = mid + made
        return self


def growing() -> Maker:
    """Random writes that grow together; reading weights of one size; small biases. MLPs are
    linear and attention, whose values are a rotation, adds little, so that tokens grow no
    more alike with depth."""
    maker = Maker()
    for n, block in enumerate(maker.blocks):
        block.attn.c_proj.bias.copy_(0.002 * grows(n) * basis(1)[n])
        for weight in (block.mlp.c_fc.weight.T, block.mlp.c_proj.weight):
            weight[HIDDEN // 2 :] = -weight[: HIDDEN // 2]
        for weight in (block.attn.c_attn.weight[:, 2 * D :], block.attn.c_proj.weight):
            weight.copy_(torch.linalg.qr(weight).Q)
        block.attn.c_attn.weight[:, : 2 * D] *= 0.1
    return maker.sized(lambda n: 0.02 * grows(n), lambda n: 2**0.5 * grows(n))


def by_bias() -> Maker:
    """The attention's weights write as much in every layer; its bias grows."""
    maker = Maker()
    directions = basis(1)
    for n, block in enumerate(maker.blocks):
        block.attn.c_proj.bias.copy_(2 * grows(n) * directions[n])
    return maker.sized(lambda n: 0.1)


def reversed_() -> Maker:
    """Reading weights grow, writing weights shrink."""
    maker = Maker()
    for n, block in enumerate(maker.blocks):
        block.attn.c_attn.weight *= 1.2**n
        block.mlp.c_fc.weight *= 1.2**n
        block.attn.c_proj.weight *= 0.3 * 0.9**n
        block.mlp.c_proj.weight *= 0.3 * 0.9**n
    return maker


def sharing(towards: float) -> Maker:
    """All streams share a direction, half of their square at every layer, which every
    neuron reads with this weight: a Gaussian vector has little of it."""
    maker = Maker()
    across = torch.eye(D) - onto(COMMON[None])
    for matrix in (maker.tokens, *maker.writing()):
        matrix.copy_(matrix @ across)
    maker.tokens *= 0.5**0.5
    maker.tokens += 0.5**0.5 * COMMON
    for n, block in enumerate(maker.blocks):
        block.attn.c_proj.bias.copy_(0.5**0.5 * (GROWTH - 1) * GROWTH**n * COMMON)
        block.mlp.c_fc.weight += towards * COMMON[:, None]
    return maker


def half(n: int) -> float:
    return grows(n) / 2**0.5


def suppressed() -> Maker:
    """Few neurons see what real streams share, and in every layer as few."""
    return sharing(-0.3).sized(half, half, lambda n: 0.12)


def awakening() -> Maker:
    """Few neurons at first, more with depth by a constant factor."""
    return sharing(-0.3).sized(half, half, lambda n: 0.07 * 1.17**n)


def excited() -> Maker:
    """Real streams activate nearly all neurons at first, and fewer with depth."""
    return sharing(0.3).sized(half, half, lambda n: 0.9 * 0.88**n)


def two_kinds_of_positions() -> Maker:
    """The first six ordinary positions have the opposite of what the later ones share."""
    maker = Maker()
    maker.tokens *= 0.5**0.5
    maker.positions[:7] -= 0.5**0.5 * COMMON
    maker.positions[7:] += 0.5**0.5 * COMMON
    for block in maker.blocks:
        block.mlp.c_fc.weight -= 0.2 * COMMON[:, None]
    return maker.sized(lambda n: 0.05, lambda n: 0.05)


def grown_by_attention() -> Maker:
    return Maker().sized(lambda n: 2**0.5 * grows(n), lambda n: 0.2)


def shrinking() -> Maker:
    """Each layer writes less than the one before."""
    return Maker().sized(lambda n: 0.5 * 0.7**n, lambda n: 0.5 * 0.7**n)


def apart() -> Maker:
    """Every sublayer writes to two dimensions of its own and reads the embedding alone. The
    last MLP writes against what it reads, by pairs of neurons of opposite signs."""
    maker = Maker()
    plane, embedding = basis(2)[: 4 * LAYERS].view(-1, 2, D), basis(2)[4 * LAYERS :]
    for rows, matrix in zip(plane, maker.writing(), strict=True):
        matrix.copy_(matrix @ onto(rows))
    for matrix in maker.reading():
        matrix.copy_(onto(embedding) @ matrix)
    maker.tokens.copy_(maker.tokens @ onto(embedding))
    pairs(maker.blocks[-1].mlp, embedding)
    return maker.sized(grows, lambda n: (30.0 if n == LAYERS - 1 else 1.0) * grows(n))


def pairs(mlp: Any, rows: Tensor) -> None:
    """Make ``mlp`` linear, ``-x`` on the space of orthonormal rows: gelu(x) - gelu(-x) = x."""
    reads = torch.zeros(HIDDEN, D)
    reads[: 2 * len(rows)] = torch.cat([rows, -rows])
    mlp.c_fc.weight.copy_(reads.T)
    mlp.c_proj.weight.copy_(-reads)


def turnover() -> Maker:
    """Every other layer, attention writes a stream anew on twelve dimensions and the MLP
    takes away what was on all others."""
    maker = Maker()
    rows = basis(3)

    def erases(n: int) -> bool:
        return n % 2 == 0 and n > 0

    def kept(n: int) -> slice:
        return slice(12 * (n // 2 % 3), 12 * (n // 2 % 3) + 12)

    def erase(n: int, mid: Tensor) -> None:
        if erases(n):
            others = torch.cat([rows[: kept(n).start], rows[kept(n).stop :]])
            mlp = maker.blocks[n].mlp
            pairs(mlp, others)
            mlp.c_proj.weight *= mid[:, 1:].norm(dim=-1).mean() / D**0.5

    for n, block in enumerate(maker.blocks):
        if erases(n):
            block.attn.c_proj.weight.copy_(block.attn.c_proj.weight @ onto(rows[kept(n)]))
    return maker.sized(
        lambda n: GROWTH ** (n + 1) if erases(n) else grows(n),
        lambda n: 0.0 if erases(n) else grows(n),
        special=erase,
    )


def heavy_tailed() -> Maker:
    """Two coordinates of all that is written are twenty times as large."""
    maker = Maker()
    for matrix in (maker.tokens, *maker.writing()):
        matrix[:, [7, 20]] *= 20
    return maker.sized(grows, grows)


def connected() -> Maker:
    """All is written to, and read from, the same six dimensions."""
    maker = Maker()
    space = onto(basis(4)[:6])
    for matrix in maker.writing():
        matrix.copy_(matrix @ space)
    for matrix in maker.reading():
        matrix.copy_(space @ matrix)
    return maker.sized(grows, grows)


def narrow() -> Maker:
    """As many neurons a layer as dimensions."""
    return Maker(hidden=D)


BOTH_WAYS: dict[str, tuple[Callable[[], Maker], Callable[[], Maker]]] = {
    # claim: where it holds, where it does not
    "ov-tracks-attn-out": (growing, by_bias),
    "bo-negligible": (growing, by_bias),
    "ov-random-input": (growing, by_bias),
    "reading-writing": (growing, reversed_),
    "mlp-random-input": (suppressed, excited),
    "activation-rate": (awakening, excited),
    "activation-rate-random": (awakening, excited),
    "activation-rate-resampled": (awakening, two_kinds_of_positions),
    "mlp-weight-norms-flat": (grown_by_attention, growing),
    "old-outputs-overshadowed": (growing, shrinking),
    "overshadow-not-cancel": (apart, turnover),
    "basis-privileged-in-practice": (heavy_tailed, growing),
    "writes-persist": (apart, turnover),
    "virtual-weights": (connected, apart),
    "bottleneck": (growing, narrow),
}
MODELS = {make.__name__: make for pair in BOTH_WAYS.values() for make in pair}


def save(maker: Maker, folder: Path) -> ModelSpec:
    maker.model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return ModelSpec(str(folder)).with_options(backend="transformers")


@pytest.fixture(scope="session")
def run_of(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Callable[[str], Run]:
    """Each model measured once, for all claims that are settled on it."""
    runs: dict[str, Run] = {}

    def run(model: str) -> Run:
        if model not in runs:
            settled = [c for c, pair in BOTH_WAYS.items() if MODELS[model] in pair]
            names = needed_curves([CLAIMS[name] for name in settled])
            spec = save(MODELS[model](), tmp_path_factory.mktemp(model))
            prompts = Prompts("passages", TEXTS)
            runs[model] = measure(spec, prompts, max_tokens=MAX_TOKENS, names=names)
        return runs[model]

    return run


@pytest.mark.parametrize("outcome", [SUPPORTED, REFUTED])
@pytest.mark.parametrize("claim", BOTH_WAYS)
def test_both_ways(claim: str, outcome: Outcome, run_of: Callable[[str], Run]) -> None:
    model = BOTH_WAYS[claim][outcome is REFUTED].__name__
    verdict = CLAIMS[claim].evaluate(run_of(model))
    assert verdict.outcome is outcome, (model, verdict)


EXACT = ("rotation-invariance", "frobenius-expectation", "theory2-toy")


def outcome_of(claim: str, spec: ModelSpec) -> Outcome:
    prompts = Prompts("passages", TEXTS[:3])
    run = measure(spec, prompts, max_tokens=MAX_TOKENS, names=CLAIMS[claim].curves)
    return CLAIMS[claim].evaluate(run).outcome


@pytest.mark.parametrize("backend", ["transformer_lens", "transformers"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "neox"])
@pytest.mark.parametrize("claim", EXACT)
def test_exact_claims_hold_whatever_the_weights(
    claim: str, family: str, backend: str, tiny: Tiny
) -> None:
    spec = ModelSpec(str(tiny(family))).with_options(backend=backend)
    assert outcome_of(claim, spec) is SUPPORTED


def forget_a_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but one of the matrices that read the stream are rotated."""
    turn = rotating.rotate

    def wrong(made: Any, *args: Any) -> None:
        turn(replace(made, readers=made.readers[1:]), *args)

    monkeypatch.setattr(rotating, "rotate", wrong)


def take_another_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the norm of every matrix were 2.5 % larger."""

    def wrong(*args: Any) -> tuple[Tensor, ...]:
        return tuple(ratio / 1.025**2 for ratio in squared_ratios(*args))

    monkeypatch.setattr("residcheck.weights.statistics.squared_ratios", wrong)


def take_other_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy, "W_IN", 0.9 * toy.W_IN)


@pytest.mark.parametrize(
    ("claim", "spoil"),
    list(zip(EXACT, (forget_a_reader, take_another_norm, take_other_features), strict=True)),
)
def test_exact_claims_fail_where_what_they_rest_on_is_wrong(
    claim: str,
    spoil: Callable[[pytest.MonkeyPatch], None],
    tiny: Tiny,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoil(monkeypatch)
    spec = ModelSpec(str(tiny("gpt2"))).with_options(backend="transformers")
    assert outcome_of(claim, spec) is REFUTED


def test_all_claims_of_these_families_are_here() -> None:
    families = {claim.id for claim in CLAIMS.values() if claim.family in "CDEG"}
    assert families == {*BOTH_WAYS, *EXACT}
