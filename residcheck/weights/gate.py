"""The weights gate: before any claim about weights, they must be those the model runs on.

On every layer, multiplied out in float64 on what the taps see:

* ``z @ W_O + b_O = attn_out`` and ``mlp_post @ W_out + b_out = mlp_out``, through the
  post-norm and the residual multiplier where the architecture has them;
* what the MLP reads ``@ W_in + b_in = mlp_pre`` (``W_gate`` and ``b_gate`` in a gated MLP);
* gated MLPs, with every gate held at one: ``mlp_post`` is what the MLP reads
  ``@ W_in + b_in`` times one number, the activation of one;
* prompts of one token, which attend to themselves alone: what attention reads
  ``@ W_V + b_V``, each value for the query heads that share it, is ``z``. With attention
  sinks a part of the pattern rests on nothing: then ``z`` is that times a number between
  0 and 1 for each head.

W_Q and W_K have no such identity: what they make is rotated and scaled on its way.
Libraries have shipped transposed, stale and zero weight matrices while every hook and
the logits stayed right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from residcheck.backends import Anatomy, Backend, PostNorm, Site, Tap, Taps
from residcheck.errors import GateError
from residcheck.tolerances import TOLERANCES, Tolerance

_HINT = (
    "nothing was measured of the weights: the library's matrices are not what it computes "
    "with here; try another backend (transformers, transformer_lens or nnsight)"
)
_PROMPTS = 8  # of one token each
_WRITTEN: tuple[Site, Site] = ("attn_out", "mlp_out")


@dataclass(frozen=True)
class WeightMismatch:
    """A matrix that does not give what the model computes: where, and by how much of it."""

    layer: int
    identity: str
    size: float
    bound: float
    hooks: tuple[str, ...]


_Left = Callable[[Tensor, Tensor], Tensor]
_Norms = Mapping[tuple[int, Site], PostNorm | None]


@dataclass(frozen=True)
class _Product:
    """``left(what the tap at reads saw) = what the tap at gives saw``, at one layer."""

    name: str
    reads: Site
    gives: Site
    left: _Left
    through_norm: bool = False


_Products = Callable[[Backend, int, _Norms], Iterator[_Product]]


def check(backend: Backend, tokens: Int[Tensor, "batch pos"], tolerance: Tolerance) -> None:
    """Pass the weights gate, or raise.

    Raises:
        GateError: a weight matrix is not what the model computes with.
    """
    found = mismatches(backend, tokens, tolerance)
    if not found:
        return
    first, layers = found[0], len({m.layer for m in found})
    more = f"; so do {layers - 1} more layers" if layers > 1 else ""
    raise GateError(
        f"weights gate: layer {first.layer}: {first.identity} fails: {_how_far(first)}; "
        f"hooks: {', '.join(first.hooks)}{more}",
        _HINT,
    )


def _how_far(one: WeightMismatch) -> str:
    if one.size == float("inf"):
        return "a hook gave nothing, shapes do not fit, or a value is not finite"
    return f"off by {one.size:.2g} of the right-hand side (tolerance {one.bound:.0e})"


def mismatches(
    backend: Backend, tokens: Int[Tensor, "batch pos"], tolerance: Tolerance
) -> list[WeightMismatch]:
    """Every identity that fails, in the order of the layers."""
    anatomy = backend.anatomy
    _refuse_unseen(anatomy)
    singles = torch.unique(tokens)[:_PROMPTS, None]
    passes: list[tuple[Tensor, _Products, Taps]] = [(tokens, _writes, {}), (singles, _values, {})]
    if anatomy.gated and "mlp" not in anatomy.missing_weights:
        held: Taps = {(n, "mlp_pre"): torch.ones_like for n in range(anatomy.n_layers)}
        passes.append((tokens, _linear_parts, held))
    # Before any pass: reading a post-norm feeds it vectors, which taps would see.
    norms = {(n, s): backend.post_norm(n, s) for n in range(anatomy.n_layers) for s in _WRITTEN}
    found: list[WeightMismatch] = []
    for prompts, products, edits in passes:
        found += _Pass(backend, tolerance, products, norms).run(prompts, edits)
    return sorted(found, key=lambda m: m.layer)


def _refuse_unseen(anatomy: Anatomy) -> None:
    """Weights whose effect no hook shows cannot be checked."""
    sites: dict[Site, bool] = {
        "z": "attention" not in anatomy.missing_weights,
        "mlp_pre": "mlp" not in anatomy.missing_weights,
        "mlp_post": "mlp" not in anatomy.missing_weights,
    }
    for site, needed in sites.items():
        if needed and not anatomy.has(site):
            raise GateError(
                f"weights gate: {site} is needed to check the weights: {anatomy.missing[site]}",
                _HINT,
            )


def _writes(backend: Backend, layer: int, norms: _Norms) -> Iterator[_Product]:
    """What is written to the stream, and what the hidden neurons are given."""
    weights, scale = backend.weights(layer), backend.anatomy.residual_scale
    if weights.attention is not None:
        W, b = weights.attention.W_O.flatten(0, 1), weights.attention.b_O
        norm = norms[layer, "attn_out"]
        left = _written(W, b, norm, scale)
        yield _Product("z @ W_O + b_O = attn_out", "z", "attn_out", left, norm is not None)
    if weights.mlp is not None:
        mlp, reads = weights.mlp, backend.anatomy.mlp_reads
        into, bias = ("W_in", "b_in") if mlp.W_gate is None else ("W_gate", "b_gate")
        left = _affine(getattr(mlp, into), getattr(mlp, bias))
        yield _Product(f"{reads} @ {into} + {bias} = mlp_pre", reads, "mlp_pre", left)
        norm = norms[layer, "mlp_out"]
        left = _written(mlp.W_out, mlp.b_out, norm, scale)
        name = "mlp_post @ W_out + b_out = mlp_out"
        yield _Product(name, "mlp_post", "mlp_out", left, norm is not None)


def _values(backend: Backend, layer: int, norms: _Norms) -> Iterator[_Product]:
    """What a token's own values are, for every query head."""
    anatomy, attention = backend.anatomy, backend.weights(layer).attention
    if attention is None:
        return
    W_V, b_V, share = attention.W_V, attention.b_V, attention.queries_per_value
    reads, width = anatomy.attention_reads, W_V.shape[-1]
    values = _affine(W_V.movedim(0, 1).flatten(1), None if b_V is None else b_V.flatten())

    def left(x: Tensor, z: Tensor) -> Tensor:
        made = values(x, z)
        heads = made.view(*made.shape[:-1], -1, width).repeat_interleave(share, dim=-2)
        if anatomy.sinks:
            heads = heads * _factor(heads, z.view(heads.shape)).clamp(0, 1)
        return heads.flatten(-2)

    yield _Product(f"{reads} @ W_V + b_V = z of a single token", reads, "z", left)


def _linear_parts(backend: Backend, layer: int, norms: _Norms) -> Iterator[_Product]:
    """What the gates multiply; asked with all gates open by the same amount."""
    mlp, reads = backend.weights(layer).mlp, backend.anatomy.mlp_reads
    if mlp is None:
        return
    linear = _affine(mlp.W_in, mlp.b_in)

    def left(x: Tensor, post: Tensor) -> Tensor:
        made = linear(x, post)
        return made * _factor(made.flatten(), post.flatten())

    name = f"{reads} @ W_in + b_in = mlp_post over act(1), gates held at 1"
    yield _Product(name, reads, "mlp_post", left)


def _factor(x: Float[Tensor, "*more d"], y: Float[Tensor, "*more d"]) -> Float[Tensor, "*more 1"]:
    """The number that brings ``x`` closest to ``y``."""
    return (x * y).sum(-1, keepdim=True) / x.square().sum(-1, keepdim=True)


def _affine(W: Float[Tensor, "d_in d_out"], b: Float[Tensor, " d_out"] | None) -> _Left:
    def left(x: Tensor, right: Tensor) -> Tensor:
        made: Tensor = x @ W.to(x)
        return made if b is None else made + b.to(x)

    return left


def _written(
    W: Float[Tensor, "d_in d_model"],
    b: Float[Tensor, " d_model"] | None,
    norm: PostNorm | None,
    scale: float,
) -> _Left:
    product = _affine(W, b)

    def left(x: Tensor, right: Tensor) -> Tensor:
        made = product(x, right)
        return scale * (made if norm is None else norm(made))

    return left


class _Pass:
    """Taps that multiply out the products of one pass, block by block."""

    def __init__(
        self, backend: Backend, tolerance: Tolerance, products: _Products, norms: _Norms
    ) -> None:
        self._backend, self._products, self._norms = backend, products, norms
        self._bound = tolerance.product
        # Many norm layers compute in float32 whatever the dtype.
        self._norm_bound = max(tolerance.product, TOLERANCES["float32"].product)
        self._seen: dict[Site, Tensor] = {}
        self._open = set(range(backend.anatomy.n_layers))
        self.found: list[WeightMismatch] = []

    def _taps(self, edits: Taps) -> Taps:
        taps: dict[tuple[int, Site], Tap] = {}
        sites = {
            s for p in self._products(self._backend, 0, self._norms) for s in (p.reads, p.gives)
        }
        for layer in range(self._backend.anatomy.n_layers):
            taps |= {(layer, site): self._hold(site) for site in sites}
            taps[layer, "resid_post"] = self._close(layer)
        return {**taps, **edits}

    def _hold(self, site: Site) -> Tap:
        def hold(x: Tensor) -> None:
            # A copy: some models add to it in place later.
            self._seen[site] = x.to(torch.float64, copy=True)

        return hold

    def _close(self, layer: int) -> Tap:
        def close(x: Tensor) -> None:
            for product in self._products(self._backend, layer, self._norms):
                self._test(layer, product)
            self._seen = {}
            self._open.discard(layer)

        return close

    def run(self, tokens: Int[Tensor, "batch pos"], edits: Taps) -> list[WeightMismatch]:
        """Every product of the pass that fails.

        Raises:
            GateError: the end of a block was never reached.
        """
        self._backend.forward(tokens, torch.ones_like(tokens), self._taps(edits), logits=False)
        for layer in self._open:
            hook = self._backend.hook_name(layer, "resid_post")
            raise GateError(f"weights gate: hook {hook} was never reached", _HINT)
        return self.found

    def _test(self, layer: int, product: _Product) -> None:
        hooks = tuple(self._backend.hook_name(layer, s) for s in (product.reads, product.gives))
        bound = self._norm_bound if product.through_norm else self._bound
        read, right = (self._seen.get(site) for site in (product.reads, product.gives))
        size = float("inf")
        if read is not None and right is not None:
            size = _distance(product.left, read, right)
        if not size <= bound:
            self.found.append(WeightMismatch(layer, product.name, size, bound, hooks))


def _distance(left: _Left, read: Tensor, right: Tensor) -> float:
    """The largest error of a token over its norm; infinite where the shapes do not fit."""
    try:
        error = left(read, right) - right
    except RuntimeError:  # torch's error for shapes that do not multiply
        return float("inf")
    scale = right.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    return float((error.norm(dim=-1) / scale).max())
