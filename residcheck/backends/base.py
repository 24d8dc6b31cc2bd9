"""What a backend gives: an anatomy, taps on a forward pass, and the logits.

Sites carry TransformerLens' hook names. Shapes: every tap sees
``[batch, position, width]``; width is ``d_model``, or ``d_mlp`` for ``mlp_pre`` and
``mlp_post``, or ``n_heads * d_head``, head after head, for ``z``.

========== ==================================================================
site       tensor
========== ==================================================================
resid_pre  the stream as the block receives it
ln1_out    what the attention sublayer reads: after the first norm
z          what the heads hand to the output projection W_O
attn_out   what the attention sublayer adds to the stream (after a post-norm,
           times a residual multiplier, where the architecture has them)
resid_mid  the stream between the sublayers; sequential blocks only
ln2_out    what the MLP reads: after the second norm
mlp_pre    pre-activations of the hidden neurons; of the gate in a gated MLP
mlp_post   what the MLP hands to its output projection W_out: activations of the
           hidden neurons, times their linear part in a gated MLP
mlp_out    what the MLP adds to the stream
resid_post the stream as the block passes it on
========== ==================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from residcheck.backends.layer_weights import LayerWeights

Site = Literal[
    "resid_pre",
    "ln1_out",
    "z",
    "attn_out",
    "resid_mid",
    "ln2_out",
    "mlp_pre",
    "mlp_post",
    "mlp_out",
    "resid_post",
]
SITES: tuple[Site, ...] = (
    "resid_pre",
    "ln1_out",
    "z",
    "attn_out",
    "resid_mid",
    "ln2_out",
    "mlp_pre",
    "mlp_post",
    "mlp_out",
    "resid_post",
)
Sublayer = Literal["attention", "mlp"]
Tap = Callable[[Tensor], Tensor | None]
"""Sees a tensor as the pass produces it; may return another to go on with."""
Taps = Mapping[tuple[int, Site], Tap]


@dataclass(frozen=True)
class Anatomy:
    """What a model is built like, as far as the claims need to know.

    ``sinks``: attention may rest on nothing (GPT-OSS), so that a pattern sums to less than 1.
    ``residual_scale`` is what a sublayer's output is multiplied with before it is added.
    ``missing`` maps each site that this architecture or library does not have to the reason;
    ``missing_weights`` does so for the sublayers whose weight matrices cannot be given.
    """

    model_type: str
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_mlp: int | None
    norm: str
    norm_eps: float
    parallel: bool
    gated: bool
    activation: str
    residual_scale: float = 1.0
    sinks: bool = False
    missing: Mapping[Site, str] = field(default_factory=dict)
    missing_weights: Mapping[Sublayer, str] = field(default_factory=dict)

    def has(self, site: Site) -> bool:
        return site not in self.missing

    @property
    def centring(self) -> bool:
        """Whether the norms subtract the mean, so that nothing reads the stream's."""
        return self.norm == "LayerNorm"

    def centred(self, x: Float[Tensor, "*more d"]) -> Float[Tensor, "*more d"]:
        """``x`` as the norms see it: without its mean where they subtract it."""
        return x - x.mean(dim=-1, keepdim=True) if self.centring else x

    @property
    def attention_reads(self) -> Site:
        """Where what attention reads is tapped; the stream itself where no norm is before it."""
        return "ln1_out" if self.has("ln1_out") else "resid_pre"

    @property
    def mlp_reads(self) -> Site:
        """The same for the MLP, which in a parallel block may share attention's norm."""
        if self.has("ln2_out"):
            return "ln2_out"
        return self.attention_reads if self.parallel else "resid_mid"


@dataclass(frozen=True)
class Affine:
    """What a norm layer does after normalising: ``x * gain + bias``, each ``[d_model]``."""

    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]

    @cached_property
    def invertible(self) -> Bool[Tensor, " d_model"]:
        """Where x can be recovered from ``x * gain + bias`` without losing its digits."""
        # Rounding of the sum is eps * |bias|, and is divided by the gain.
        bound = max(1e-3, 10 * torch.finfo(self.gain.dtype).eps)
        known: Tensor = self.gain.abs() > bound * self.bias.abs()
        return known

    @cached_property
    def all_invertible(self) -> bool:
        return bool(self.invertible.all())

    @cached_property
    def unbiased(self) -> bool:
        return not bool(self.bias.any())

    @cached_property
    def is_identity(self) -> bool:
        """Gain 1 and bias 0, as where both are folded into the weights that read."""
        rounding = 4 * torch.finfo(self.gain.dtype).eps  # the gain was found by feeding the norm
        return self.unbiased and bool(((self.gain - 1).abs() <= rounding).all())

    @cached_property
    def inverse_gain(self) -> Float[Tensor, " d_model"]:
        return self.gain.reciprocal()


@dataclass(frozen=True)
class PostNorm(Affine):
    """A norm on what a sublayer writes, before it is added to the stream."""

    eps: float
    centring: bool

    def __call__(self, x: Float[Tensor, "*token d_model"]) -> Float[Tensor, "*token d_model"]:
        """What the norm makes of ``x``, in the dtype of ``x``."""
        if self.centring:
            x = x - x.mean(dim=-1, keepdim=True)
        x = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self.eps)
        return x * self.gain.to(x) + self.bias.to(x)


class Backend(Protocol):
    """A model that can be tapped."""

    name: str
    anatomy: Anatomy
    version: str

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        mask: Int[Tensor, "batch pos"],
        taps: Taps,
        *,
        logits: bool,
    ) -> Float[Tensor, "batch pos vocab"] | None:
        """Run the model; without ``logits`` the pass ends at the last block."""
        ...

    def device(self, layer: int) -> torch.device:
        """Where the block computes; all of its taps see tensors there."""
        ...

    def alone(
        self,
        layer: int,
        stream: Float[Tensor, "batch pos d_model"],
        tokens: Int[Tensor, "batch pos"],
        mask: Int[Tensor, "batch pos"],
        taps: Taps,
    ) -> None:
        """Run one block on a stream of one's own, with ``taps`` on that block."""
        ...

    def unembed(self, stream: Float[Tensor, "token d_model"]) -> Float[Tensor, "token vocab"]:
        """The logits that the model makes of the stream after its last block."""
        ...

    def affine(self, layer: int, site: Site) -> Affine:
        """Gain and bias still applied at ``ln1_out`` or ``ln2_out``."""
        ...

    def hook_name(self, layer: int, site: Site) -> str:
        """What the library calls this place, for error messages."""
        ...

    def weights(self, layer: int) -> LayerWeights:
        """The block's weight matrices as the library holds them, as views where possible."""
        ...

    def post_norm(self, layer: int, site: Site) -> PostNorm | None:
        """The norm on what a sublayer writes, at ``attn_out`` or ``mlp_out``, if there is one."""
        ...

    def embedding(self) -> Float[Tensor, "vocab d_model"]:
        """What each token puts into the stream, an embedding multiplier included, before
        positions are added and before an embedding norm (BLOOM)."""
        ...

    def unembedding(
        self,
    ) -> tuple[Float[Tensor, "d_model vocab"], Float[Tensor, " vocab"] | None]:
        """Weight and bias of the last linear layer; scales and caps of the logits follow it."""
        ...

    def final_norm(self) -> Affine | None:
        """Gain and bias still applied before the unembedding; None without a norm there."""
        ...

    def process_again(self) -> None:
        """Ask the library to process its weights once more, where it has processed them.

        Raises:
            LoadError: the library fails at it.
        """
        ...


class EndOfPass(Exception):
    """Raised at the last tap to leave a forward pass whose rest nobody needs."""


def affine_of(norm: Any, d_model: int) -> Affine:
    """Gain and bias of a norm module, found by feeding it, not by reading attributes.

    For x of plus and minus ones with mean zero, the normalised vector is x / sqrt(1+eps),
    so ``(norm(x) - norm(-x)) / 2`` is gain * x / sqrt(1 + eps) and ``(norm(x) + norm(-x)) / 2``
    is the bias: true of LayerNorm, RMSNorm and Gemma's (1 + weight) alike. An odd width
    gets a zero in one place; a second x with the zero elsewhere fills it.
    """
    signs = _signs(norm, d_model)
    probes = [signs]
    if d_model % 2:
        probes = [signs.clone(), signs.clone()]
        probes[0][-1] = 0
        probes[1][0] = 0
    gain, bias = torch.zeros_like(signs), torch.zeros_like(signs)
    eps = norm_eps(norm, d_model)
    for x in probes:
        up, down = _feed(norm, x), _feed(norm, -x)
        scale = (x.double().square().mean() + eps).sqrt().to(x.dtype)
        gain = torch.where(x != 0, (up - down) / 2 / x * scale, gain)
        bias = (up + down) / 2
    return Affine(gain, bias)


def post_norm_of(norm: Any, d_model: int) -> PostNorm:
    """A post-norm module, found by feeding it as in :func:`affine_of`."""
    affine = affine_of(norm, d_model)
    return PostNorm(affine.gain, affine.bias, norm_eps(norm, d_model), is_centring(norm, d_model))


def norm_eps(norm: Any, d_model: int) -> float:
    """The epsilon of a norm module: an attribute, or found by feeding it a small vector.

    For x of size s, the normalised vector has size s / sqrt(s^2 + eps): with r the ratio of
    the outputs at s and at 1, eps = s^2 (1 - r^2) / (r^2 - s^2).
    """
    for name in ("eps", "variance_epsilon", "norm_eps", "epsilon"):
        if isinstance(getattr(norm, name, None), float):
            return float(getattr(norm, name))
    small, signs = 1e-3, _signs(norm, d_model)
    sizes = [(_feed(norm, s * signs) - _feed(norm, -s * signs)).norm() for s in (small, 1.0)]
    ratio = float((sizes[0] / sizes[1]) ** 2)
    return max(0.0, small**2 * (1 - ratio) / (ratio - small**2))


def is_centring(norm: Any, d_model: int) -> bool:
    """Whether a norm module subtracts the mean: found by shifting its input by one."""
    x = torch.randn(d_model, generator=torch.Generator().manual_seed(0)).to(_signs(norm, d_model))
    shift = (_feed(norm, x + 1) - _feed(norm, x)).float().norm()
    return bool(shift < _feed(norm, x).float().norm() / 10)  # 0.02 against 0.7 in bfloat16


def _signs(norm: Any, d_model: int) -> Float[Tensor, " d_model"]:
    """Plus and minus ones in turn, of the dtype and device of the norm's weights."""
    weight = next(norm.parameters(), torch.empty(0))
    signs = torch.ones(d_model, dtype=weight.dtype, device=weight.device)
    signs[1::2] = -1
    return signs


@torch.no_grad()
def _feed(norm: Any, x: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
    output: Tensor = norm(x[None, None])
    return output[0, 0]
