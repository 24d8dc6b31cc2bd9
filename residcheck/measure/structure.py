"""How writes to the stream relate to what was written before, from a sample of positions.

Every write of the sampled tokens is held until the pass ends: the embedding, then
``attn_out`` and ``mlp_out`` of each layer. All else follows from their inner products,
since the stream is their sum. What is held does not grow with the length of the prompts:
:data:`POSITIONS` ordinary positions a prompt, evenly spaced, and position 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from residcheck.backends import Backend, PostNorm, Site, Tap, Taps
from residcheck.weights.canonical import fold

POSITIONS = 16


@dataclass(frozen=True)
class Surroundings:
    """What else acts on what the heads and neurons of one layer write.

    ``constant`` is what every head writes whatever it reads, as W_O is given it: the value
    bias and what the first norm's bias makes of W_V. Folded weights have it in b_O.
    """

    attn_norm: PostNorm | None
    mlp_norm: PostNorm | None
    constant: Float[Tensor, " heads"] | None


class StructureRecorder:
    """The taps of one batch; :meth:`rows` gives one row of every quantity per prompt.

    Args:
        lengths: tokens of each prompt of the batch.
        rotation: orthogonal, ``[d_model, d_model]``, for the kurtosis in a rotated basis.
        around: of every layer, by :func:`surroundings`.
    """

    def __init__(
        self,
        backend: Backend,
        names: Iterable[str],
        lengths: list[int],
        rotation: Float[Tensor, "d d"],
        around: list[Surroundings],
    ) -> None:
        self._backend, self._anatomy = backend, backend.anatomy
        self._names = set(names)
        self._rotation = rotation
        self._around = around
        self._index, self._valid = sampled_positions(lengths, rotation.device)
        self._stream: Float[Tensor, "batch sample d"] = torch.empty(0)
        self._writes: list[Float[Tensor, "batch sample d"]] = []
        self._norms: list[Float[Tensor, "batch sample"]] = []
        self._columns: dict[str, list[Tensor]] = {}

    def taps(self) -> Taps:
        wanted: dict[Site, bool] = {
            "resid_pre": True,
            "z": "head_projection" in self._names,
            "attn_out": True,
            "resid_mid": True,
            "mlp_post": "neuron_projection" in self._names,
            "mlp_out": True,
            "resid_post": "resid_post_kurtosis" in self._names,
        }
        return {
            (layer, site): self._tap(layer, site)
            for layer in range(self._anatomy.n_layers)
            for site, want in wanted.items()
            if want and self._anatomy.has(site)
        }

    def _tap(self, layer: int, site: Site) -> Tap:
        see = {
            "z": self._on_heads,
            "mlp_post": self._on_neurons,
            "attn_out": self._on_write,
            "mlp_out": self._on_write,
            "resid_post": self._on_basis,
        }.get(site, self._on_stream)

        def tap(x: Tensor) -> None:
            index = self._index.to(x.device)[..., None]
            sample = x.gather(1, index.expand(-1, -1, x.shape[-1]))
            see(layer, sample.to(self._rotation.dtype))

        return tap

    def _on_stream(self, layer: int, x: Float[Tensor, "batch sample d"]) -> None:
        self._stream = self._anatomy.centred(x)
        if len(self._norms) == layer:  # at resid_pre, the first of the layer's two
            self._norms.append(self._gathered(self._stream.norm(dim=-1)))
            if layer == 0:
                self._writes.append(self._gathered(self._stream))

    def _on_write(self, layer: int, x: Float[Tensor, "batch sample d"]) -> None:
        self._writes.append(self._gathered(self._anatomy.centred(x)))

    def _on_basis(self, layer: int, x: Float[Tensor, "batch sample d"]) -> None:
        x = self._gathered(self._anatomy.centred(x))
        self._note("resid_post_kurtosis", kurtosis(x))
        self._note("resid_post_kurtosis_rotated", kurtosis(x @ self._rotation))

    def _on_heads(self, layer: int, z: Float[Tensor, "batch sample heads"]) -> None:
        attention = self._backend.weights(layer).attention
        assert attention is not None
        W_O = attention.W_O.flatten(0, 1).to(z.dtype)
        bias, around = attention.b_O, self._around[layer]
        if around.constant is not None:
            constant = around.constant.to(z)
            z, moved = z - constant, constant @ W_O
            bias = moved if bias is None else bias + moved
        along = self._along_stream(z, W_O, bias, around.attn_norm)
        heads = along.reshape(*along.shape[:-1], self._anatomy.n_heads, -1).sum(dim=-1)
        self._note("head_projection", self._over_ordinary(heads))

    def _on_neurons(self, layer: int, post: Float[Tensor, "batch sample d_mlp"]) -> None:
        mlp = self._backend.weights(layer).mlp
        assert mlp is not None
        post_norm = self._around[layer].mlp_norm
        along = self._along_stream(post, mlp.W_out.to(post.dtype), mlp.b_out, post_norm)
        self._note("neuron_projection", self._over_ordinary(along))

    def _along_stream(
        self,
        source: Float[Tensor, "batch sample source"],
        W: Float[Tensor, "source d"],
        bias: Float[Tensor, " d"] | None,
        post_norm: PostNorm | None,
    ) -> Float[Tensor, "batch sample source"]:
        """What each source adds along the stream: ``<source W, stream> / |stream|^2``.

        Under a post-norm the sum of all sources sets the scale that each is divided by.
        """
        stream = self._stream
        direction = stream / stream.square().sum(dim=-1, keepdim=True)
        if post_norm is not None:
            whole = self._anatomy.centred(source @ W if bias is None else source @ W + bias)
            size = (whole.square().mean(dim=-1, keepdim=True) + post_norm.eps).sqrt()
            direction = self._anatomy.centred(direction * post_norm.gain.to(W.dtype)) / size
        return source * (direction @ W.mT) * self._anatomy.residual_scale

    def rows(self) -> dict[str, Float[Tensor, "batch ..."]]:
        """Every quantity, the prompt first; what the model lacks is left out."""
        found = {name: torch.stack(columns, dim=-1) for name, columns in self._columns.items()}
        if {"write_share", "write_kept", "write_removal"} & self._names:
            found |= self._inner_products()
        return {name: table for name, table in found.items() if name in self._names}

    def _inner_products(self) -> dict[str, Tensor]:
        writes = torch.stack(self._writes, dim=2)
        gram = writes @ writes.mT  # [batch, sample, write, write]
        sizes = gram.diagonal(dim1=-2, dim2=-1)
        streams = torch.stack(self._norms, dim=-1)
        share = sizes.sqrt()[..., None] / streams[..., None, :]
        written = _written_before(self._anatomy.n_layers, share.device)
        return {
            "write_share": self._over_ordinary(share).where(written, torch.nan),
            "write_kept": self._kept(gram, sizes).where(written, torch.nan),
            "write_removal": self._removal(gram, sizes),
        }

    def _kept(self, gram: Tensor, sizes: Tensor) -> Float[Tensor, "batch write layer"]:
        """1 + <write, all later writes before the layer> / |write|^2, pooled over tokens."""
        later = torch.triu(gram, diagonal=1).cumsum(dim=-1)
        later = later[..., :-1:2]  # resid_pre[n] holds writes 0 to 2n
        return 1 + self._over_ordinary(later) / self._over_ordinary(sizes)[..., None]

    def _removal(self, gram: Tensor, sizes: Tensor) -> Float[Tensor, "batch write"]:
        scale = sizes.clamp_min(torch.finfo(sizes.dtype).tiny).rsqrt()
        cosines = torch.triu(gram * scale[..., None] * scale[..., None, :], diagonal=1)
        against = self._over_ordinary(cosines.clamp_max(0).abs().sum(dim=-2))
        return against / self._over_ordinary(cosines.abs().sum(dim=-2))

    def _note(self, name: str, column: Tensor) -> None:
        if name.startswith("resid_post"):
            column = column.where(self._valid, torch.nan)
        self._columns.setdefault(name, []).append(column)

    def _over_ordinary(self, x: Float[Tensor, "batch sample ..."]) -> Float[Tensor, "batch ..."]:
        """Mean over the sampled positions but position 0; NaN where a prompt has no other."""
        x = self._gathered(x)
        valid = self._valid[:, 1:].reshape(len(x), -1, *[1] * (x.ndim - 2))
        return x[:, 1:].where(valid, torch.nan).nanmean(dim=1)

    def _gathered(self, x: Tensor) -> Tensor:
        """On one device; layers of a model that is spread over GPUs have each their own."""
        return x.to(self._rotation.device)


def surroundings(backend: Backend) -> list[Surroundings]:
    """Of every layer. Norms are fed to find what they do: not while taps are on them."""
    anatomy, site = backend.anatomy, backend.anatomy.attention_reads
    found = []
    for layer in range(anatomy.n_layers):
        constant = None
        weights = backend.weights(layer)
        if weights.attention is not None and not anatomy.sinks:  # patterns sum to one
            norm = backend.affine(layer, site) if site == "ln1_out" else None
            attention = fold(weights, norm, None, centre=False, values=False).attention
            assert attention is not None
            if attention.b_V is not None:
                per_query = attention.b_V.repeat_interleave(attention.queries_per_value, dim=0)
                constant = per_query.flatten()
        norms = (backend.post_norm(layer, "attn_out"), backend.post_norm(layer, "mlp_out"))
        found.append(Surroundings(*norms, constant))
    return found


def sampled_positions(
    lengths: list[int], device: torch.device
) -> tuple[Int[Tensor, "batch sample"], Bool[Tensor, "batch sample"]]:
    """Position 0 and up to :data:`POSITIONS` ordinary ones of each prompt, evenly spaced;
    and which of them are there (a short prompt has fewer)."""
    index = np.zeros((len(lengths), 1 + POSITIONS), dtype=np.int64)
    valid = np.zeros(index.shape, dtype=bool)
    valid[:, 0] = True
    for row, length in enumerate(lengths):
        spaced = np.linspace(1, length - 1, POSITIONS if length > 1 else 0)
        chosen = np.unique(spaced.round())
        index[row, 1 : 1 + len(chosen)] = chosen
        valid[row, 1 : 1 + len(chosen)] = True
    return torch.from_numpy(index).to(device), torch.from_numpy(valid).to(device)


def _written_before(n_layers: int, device: torch.device) -> Bool[Tensor, "write layer"]:
    """Which writes resid_pre of each layer holds: the embedding and two a layer before."""
    write = torch.arange(2 * n_layers + 1, device=device)[:, None]
    return write <= 2 * torch.arange(n_layers, device=device)


def kurtosis(x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
    """Fourth moment over the squared second, about the mean of the coordinates; 3 if normal."""
    x = x - x.mean(dim=-1, keepdim=True)
    square = x.square()
    return square.square().mean(dim=-1) / square.mean(dim=-1).square()
