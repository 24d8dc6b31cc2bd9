"""Reduce a forward pass to scalars per token and layer while it runs.

Each tap reduces what it sees at once. Between taps only the stream at the block's
input and middle is held, which the pass itself still holds.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from residcheck.backends import Affine, Anatomy, Backend, Site, Tap, Taps
from residcheck.names import QUANTITIES


def available(names: Iterable[str], anatomy: Anatomy) -> list[str]:
    """Those of ``names`` that are taken in the pass and that the architecture has."""
    return [n for n in names if n in QUANTITIES and anatomy.has(QUANTITIES[n].site)]


class Recorder:
    """The taps of one batch and the scalars they leave, each ``[batch, position, layer]``.

    Norms are of centred vectors where the model has LayerNorm, which reads nothing else.
    Sums accumulate in float32, or in float64 for a float64 model.
    """

    def __init__(
        self,
        backend: Backend,
        names: Iterable[str],
        affines: dict[tuple[int, Site], Affine],
        shape: torch.Size,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._anatomy = backend.anatomy
        self._affines = affines
        self._names = set(names)
        size = (*shape, backend.anatomy.n_layers)
        self.values = {
            name: torch.full(size, torch.nan, device=device, dtype=dtype) for name in names
        }
        self._dtype = dtype
        self._stream: Tensor | None = None
        self._stream_norm: Tensor | None = None

    def taps(self) -> Taps:
        sites: set[Site] = {QUANTITIES[name].site for name in self._names}
        streams: tuple[Site, ...] = ("resid_pre", "resid_mid")
        sites |= {site for site in streams if self._anatomy.has(site)}
        return {
            (layer, site): self._reduction(layer, site)
            for layer in range(self._anatomy.n_layers)
            for site in sorted(sites)
        }

    def _reduction(self, layer: int, site: Site) -> Tap:
        if site in ("resid_pre", "resid_mid", "resid_post"):
            return lambda x: self._on_stream(layer, site, x)
        if site in ("attn_out", "mlp_out"):
            return lambda x: self._on_write(layer, site, x)
        if site == "mlp_pre":
            return lambda x: self._on_pre_activation(layer, x)
        if site == "mlp_post":
            return lambda x: self._on_post_activation(layer, x)
        return lambda x: self._on_normalised(layer, site, x)

    def _on_stream(self, layer: int, site: Site, x: Float[Tensor, "batch pos d"]) -> None:
        x = self._centred(x)
        norm = torch.linalg.vector_norm(x, dim=-1)
        self._put(f"{site}_norm", layer, norm)
        held = site != "resid_post"
        self._stream, self._stream_norm = (x, norm) if held else (None, None)

    def _on_write(self, layer: int, site: Site, x: Float[Tensor, "batch pos d"]) -> None:
        x = self._centred(x)
        norm = torch.linalg.vector_norm(x, dim=-1)
        self._put(f"{site}_norm", layer, norm)
        if f"{site}_cosine" in self._names:
            assert self._stream is not None
            assert self._stream_norm is not None
            dot = torch.linalg.vecdot(x, self._stream)
            self._put(f"{site}_cosine", layer, dot / (norm * self._stream_norm))

    def _on_normalised(self, layer: int, site: Site, y: Float[Tensor, "batch pos d"]) -> None:
        affine = self._affines[layer, site]
        x = y.to(self._dtype)
        if not affine.is_identity:  # not folded into the weights that read it
            x = (x if affine.unbiased else x - affine.bias) * affine.inverse_gain
        if not affine.all_invertible:  # a gain of zero hides what was normalised
            x = torch.where(affine.invertible, x, self._normalised_stream())
        name = "ln1_normalized_norm" if site == "ln1_out" else "ln2_normalized_norm"
        self._put(name, layer, torch.linalg.vector_norm(x, dim=-1))

    def _normalised_stream(self) -> Float[Tensor, "batch pos d"]:
        assert self._stream is not None
        variance = self._stream.square().mean(dim=-1, keepdim=True)
        return self._stream * torch.rsqrt(variance + self._anatomy.norm_eps)

    def _on_pre_activation(self, layer: int, x: Float[Tensor, "batch pos d_mlp"]) -> None:
        # 1 where x > 0, else 0, in vector instructions: comparing makes booleans, ten times slower.
        above = x.clamp(0, 1).ceil_().sum(dim=-1, dtype=self._dtype)
        self._put("activation_rate", layer, above / x.shape[-1])

    def _on_post_activation(self, layer: int, x: Float[Tensor, "batch pos d_mlp"]) -> None:
        self._put("mlp_post_norm", layer, torch.linalg.vector_norm(x, dim=-1, dtype=self._dtype))
        self._put("mlp_post_min", layer, x.amin(dim=-1).to(self._dtype))

    def _put(self, name: str, layer: int, value: Float[Tensor, "batch pos"]) -> None:
        if name in self._names:
            self.values[name][:, :, layer] = value

    def _centred(self, x: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch pos d"]:
        return self._anatomy.centred(x.to(self._dtype))
