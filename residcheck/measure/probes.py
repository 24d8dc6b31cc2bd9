"""Two small experiments beside the pass: what padding does, and what centring does."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from residcheck.backends import Backend, Site, Tap, Taps
from residcheck.curves import Curve
from residcheck.logits import logit_distance
from residcheck.measure.tokens import Encoded, pad
from residcheck.models import LoadedModel
from residcheck.seeds import SEEDS

_PROMPTS = 3
_TOKENS = 8
_PADDING = 4


def padding_probe(backend: Backend, encoded: Encoded, device: str) -> dict[str, Curve]:
    """How far BOS and padding positions differ between prompts of different text.

    Prompts are padded on the left. Gives, in units of the norm of the first prompt's vector,
    the largest distance of another prompt's ``resid_post``: ``bos_spread`` per layer,
    ``padding_spread`` per padding position and layer. And ``padding_shift`` per layer: the
    largest distance that padding moves a token's ``resid_post`` from where it is without, in
    units of the norm of the latter. It is rounding where tokens neither see padding nor count
    it in their positions; learned positions count it in many libraries.

    BOS sees no text. What a padding position holds is the attention kernel's choice, since
    all that it could see is masked: of torch's sdpa it gets zeros, so that it is the same in
    every prompt; where eager attention adds the least number to all of its scores alike, it
    reads all positions, the text's included, so that it differs. In float64, transformers'
    eager attention hands that number to a softmax in float32, where it is -inf: padding is
    then NaN, and from the next layer on so is all that padding is masked from, since zero
    times NaN is NaN. Such values are NaN in the curves and say nothing about the weights.
    They are NaN throughout, too, where there are no two prompts of different text, or no
    room for them after the padding (a model of two positions).
    """
    width = encoded.room(_PADDING + _TOKENS)
    padding = max(1, min(_PADDING, width - 2))  # BOS and a token of text fit after it
    texts = _different_texts(encoded, width - padding)
    tokens, mask = pad(texts, encoded.pad_id, "left", max(map(len, texts)) + padding)
    spreads: list[Float[Tensor, " pos"]] = []
    streams: list[Float[Tensor, "batch pos d"]] = []
    shifts: list[float] = []

    def spread(x: Float[Tensor, "batch pos d"]) -> None:
        streams.append(x[:, padding:].double())
        x = x[:, : padding + 1].double()
        distance = (x - x[:1]).norm(dim=-1).amax(dim=0)
        spreads.append((distance / x[0].norm(dim=-1)).cpu())

    def shift(x: Float[Tensor, "batch pos d"]) -> None:
        away = (streams[len(shifts)] - x).norm(dim=-1) / x.double().norm(dim=-1)
        shifts.append(float(away.max()))

    layers = range(backend.anatomy.n_layers)
    for tap, start in ((spread, 0), (shift, padding)):
        taps: Taps = {(n, "resid_post"): tap for n in layers}
        rows = (tokens[:, start:].to(device), mask[:, start:].to(device))
        backend.forward(*rows, taps, logits=False)
    table = torch.stack(spreads, dim=-1).numpy()
    if len(texts) < 2:  # nothing to compare with
        table = np.full_like(table, np.nan)
    unit = "relative distance"
    return {
        "bos_spread": Curve("bos_spread", ("layer",), table[padding], unit),
        "padding_spread": Curve("padding_spread", ("position", "layer"), table[:padding], unit),
        "padding_shift": Curve("padding_shift", ("layer",), np.asarray(shifts), unit),
    }


def _different_texts(encoded: Encoded, tokens: int) -> list[tuple[int, ...]]:
    """The beginnings of some prompts, of one length of at most ``tokens``."""
    different = list(dict.fromkeys(ids[:tokens] for ids in encoded.ids))
    longest = max(map(len, different))
    return [ids for ids in different if len(ids) == longest][:_PROMPTS]


def centring_probe(
    backend: Backend, tokens: Int[Tensor, "batch pos"], centred_weights: bool
) -> dict[str, Curve]:
    """What changes when every write to the stream has its mean subtracted.

    Subtracting the mean of what is written is what centred writing weights do. Where the
    library says that its weights are centred, the stream's mean is taken as it comes;
    where they are raw, with the subtraction. Gives ``centred_mean``, the largest
    ``|mean| * sqrt(d_model) / norm`` of ``resid_post`` over tokens, per layer, and
    ``centring_logit_shift``, the distance of the log-probabilities.
    """
    anatomy = backend.anatomy
    means: list[float] = []

    def centre(x: Tensor) -> Tensor:
        return x - x.mean(dim=-1, keepdim=True)

    def note_mean(x: Float[Tensor, "batch pos d"]) -> None:
        x = x.double()
        share = x.mean(dim=-1).abs() * anatomy.d_model**0.5 / x.norm(dim=-1)
        means.append(float(share.max()))

    layers = range(anatomy.n_layers)
    noting: dict[tuple[int, Site], Tap] = {(n, "resid_post"): note_mean for n in layers}
    centring: dict[tuple[int, Site], Tap] = {(0, "resid_pre"): centre}
    for layer in layers:
        centring[layer, "attn_out"] = centring[layer, "mlp_out"] = centre
    mask = torch.ones_like(tokens)
    if centred_weights:
        plain = backend.forward(tokens, mask, noting, logits=True)
        centred = backend.forward(tokens, mask, centring, logits=True)
    else:
        plain = backend.forward(tokens, mask, {}, logits=True)
        centred = backend.forward(tokens, mask, centring | noting, logits=True)
    assert plain is not None
    assert centred is not None
    shift = np.asarray([logit_distance(centred, plain)])
    return {
        "centred_mean": Curve("centred_mean", ("layer",), np.asarray(means), "relative mean"),
        "centring_logit_shift": Curve("centring_logit_shift", ("pass",), shift, "relative shift"),
    }


def rotation_probe(loaded: LoadedModel, tokens: Int[Tensor, "batch pos"]) -> dict[str, Curve]:
    """How far a random rotation of the stream moves the log-probabilities.

    ``rotation_logit_shift``: every matrix of the canonical model that reads or writes the
    stream is rotated; the distance of the outputs from the model's own.
    """
    from residcheck.weights.rotate import rotation_shift

    shift = np.asarray([rotation_shift(loaded, tokens, SEEDS["rotation"])])
    return {
        "rotation_logit_shift": Curve("rotation_logit_shift", ("pass",), shift, "relative shift")
    }
