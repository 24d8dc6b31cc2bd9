"""What sublayers make of inputs that no text gave them.

The MLPs are fed through the model itself: one forward pass in which a tap puts the drawn
vectors, normalised, in the place of every layer's normalised input. The number of draws
is the curves' ``draw`` axis; the seeds are named in :mod:`residcheck.seeds`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from residcheck.backends import Affine, Anatomy, Backend, Site, Tap
from residcheck.curves import Curve
from residcheck.measure.identities import normalised
from residcheck.measure.tokens import Encoded, pad
from residcheck.seeds import DRAWS, generator
from residcheck.weights.statistics import as_curve

_ROW = 64
_FIRST_POSITIONS = 6
_PROMPTS = 32
_ON_GAUSSIAN = {"mlp_random_norm", "activation_rate_random"}
_ON_RESAMPLED = {"activation_rate_resampled", "activation_rate_shuffled"}


class Fed(NamedTuple):
    """What every MLP made of its draws: ``[draw, layer]``."""

    rate: Float[Tensor, "draw layer"]
    norm: Float[Tensor, "draw layer"]


def can_be_fed(anatomy: Anatomy) -> bool:
    """Whether a norm gives the MLP its input, so that normalised vectors can take its place."""
    return anatomy.mlp_reads in ("ln1_out", "ln2_out")


def mlp_experiments(
    backend: Backend,
    affines: dict[tuple[int, Site], Affine],
    encoded: Encoded,
    names: Iterable[str],
    device: str,
) -> dict[str, Curve]:
    """The MLPs on Gaussian, resampled and shuffled inputs; those that are asked for.

    * Gaussian: one set of vectors, the same for every layer.
    * resampled: of each layer, streams that its MLP really read, at positions 1 to 6 of
      the prompts, drawn at random.
    * shuffled: each coordinate drawn on its own from those, so that coordinates keep
      their distributions and lose their relations.

    All are normalised as the model's norm does, and get its gain and bias.
    """
    wanted = set(names)
    anatomy = backend.anatomy
    if wanted.isdisjoint(_ON_GAUSSIAN | _ON_RESAMPLED):
        return {}
    feed = _Feeder(backend, affines, encoded, device)
    found: dict[str, Tensor] = {}
    if wanted & _ON_GAUSSIAN:
        x = torch.randn(DRAWS, anatomy.d_model, generator=generator("gaussian"))
        gaussian = feed(lambda layer: x)
        found |= {"mlp_random_norm": gaussian.norm, "activation_rate_random": gaussian.rate}
    if wanted & _ON_RESAMPLED:
        real = _first_streams(backend, encoded, device)
        rows = torch.randint(len(real[0]), (DRAWS,), generator=generator("resampled"))
        found["activation_rate_resampled"] = feed(lambda layer: real[layer][rows]).rate
        size = (DRAWS, anatomy.d_model)
        cells = torch.randint(len(real[0]), size, generator=generator("shuffled"))
        found["activation_rate_shuffled"] = feed(lambda layer: real[layer].gather(0, cells)).rate
    return {name: as_curve(name, values) for name, values in found.items() if name in wanted}


class _Feeder:
    """Runs the model with drawn vectors in the place of what its MLPs read."""

    def __init__(
        self,
        backend: Backend,
        affines: dict[tuple[int, Site], Affine],
        encoded: Encoded,
        device: str,
    ) -> None:
        self._backend, self._affines = backend, affines
        self._site = backend.anatomy.mlp_reads
        width = min(_ROW, encoded.max_tokens)
        # Which tokens does not matter: no MLP reads what they make.
        self._tokens = torch.full((-(-DRAWS // width), width), encoded.ids[0][0], device=device)

    def __call__(self, inputs: Callable[[int], Float[Tensor, "draw d"]]) -> Fed:
        layers = range(self._backend.anatomy.n_layers)
        rates: list[Tensor] = []
        norms: list[Tensor] = []
        taps: dict[tuple[int, Site], Tap] = {}
        for layer in layers:
            taps[layer, self._site] = self._replacing(layer, inputs)
            taps[layer, "mlp_out"] = lambda x: norms.append(self._norm(x))
            if self._backend.anatomy.has("mlp_pre"):
                taps[layer, "mlp_pre"] = lambda x: rates.append((x > 0).float().mean(dim=-1))
        mask = torch.ones_like(self._tokens)
        self._backend.forward(self._tokens, mask, taps, logits=False)
        return Fed(_by_draw(rates), _by_draw(norms))

    def _replacing(self, layer: int, inputs: Callable[[int], Float[Tensor, "draw d"]]) -> Tap:
        anatomy, affine = self._backend.anatomy, self._affines[layer, self._site]

        def replace(x: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch pos d"]:
            filled = torch.zeros(x.shape[0] * x.shape[1], x.shape[2], device=x.device)
            drawn = inputs(layer).to(x.device).float()
            filled[:DRAWS] = normalised(drawn, affine, anatomy)
            return filled.reshape(x.shape).to(x.dtype)

        return replace

    def _norm(self, x: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch pos"]:
        norm: Tensor = self._backend.anatomy.centred(x.float()).norm(dim=-1)
        return norm


def _by_draw(columns: list[Float[Tensor, "batch pos"]]) -> Float[Tensor, "draw layer"]:
    if not columns:
        return torch.empty(DRAWS, 0)
    return torch.stack([column.flatten()[:DRAWS].cpu() for column in columns], dim=-1)


def _first_streams(
    backend: Backend, encoded: Encoded, device: str
) -> list[Float[Tensor, "token d"]]:
    """Per layer the streams that the MLP reads at positions 1 to 6, of the first prompts;
    without their means, which weights may be centred to leave out, under LayerNorm."""
    rows = [ids[: 1 + _FIRST_POSITIONS] for ids in encoded.ids[:_PROMPTS]]
    tokens, mask = pad(rows, encoded.pad_id, "right")
    ordinary = mask.bool()[:, 1:]
    site: Site = "resid_pre" if backend.anatomy.parallel else "resid_mid"
    streams: list[Tensor] = []

    def keep(x: Float[Tensor, "batch pos d"]) -> None:
        streams.append(backend.anatomy.centred(x[:, 1:][ordinary].float()).cpu())

    taps: dict[tuple[int, Site], Tap] = {
        (layer, site): keep for layer in range(backend.anatomy.n_layers)
    }
    backend.forward(tokens.to(device), mask.to(device), taps, logits=False)
    return streams
