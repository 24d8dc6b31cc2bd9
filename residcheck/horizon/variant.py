"""What "a layer horizon of k" means, in every variant, and what each of them removes.

The stream before sublayer s is S[s], the embedding and the writes 0 ... s-1 summed: with
S[0] the embedding, S[2n] = resid_pre[n], S[2n+1] = resid_pre[n] + attn_out[n], and S[2L]
what the unembedding reads, for L layers. With horizon k, a sublayer reads

    S[s] - S[c] + a

in the place of S[s], where c is the cut: everything written before it is removed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from residcheck.errors import UsageError

Ablation = Literal["zero", "mean"]
Outputs = Literal["recomputed", "original"]
Enforced = Literal["everywhere", "from", "at", "unembedding"]
Unembedding = Literal["full", "truncated"]
Unit = Literal["layers", "sublayers"]


@dataclass(frozen=True)
class Variant:
    """One way to enforce a horizon; the defaults are the definition of Turner's post.

    Args:
        ablation: what stays of what is removed. ``zero``: a = 0. ``mean``: a is the mean of
            S[c] over the ordinary tokens of the prompts in the unmodified model; position
            0 has its own mean. (The experiment behind the published curve did this.)
        outputs: which writes a truncated read is made of. ``recomputed``: those of the
            modified pass itself, in which earlier sublayers read truncated streams too, so
            that S is that pass's stream. ``original``: those of the unmodified model, so
            that no modified output is read by a sublayer; only the unembedding reads them.
        enforced: on which layers. ``everywhere``: all. ``from``: those from ``layer`` on,
            which makes the number of touched layers the same for k up to ``layer``. ``at``:
            ``layer`` alone. ``unembedding``: none; only the unembedding reads a truncated
            stream. A layer that is not enforced reads the whole stream: the modified one
            where outputs are recomputed, the original one otherwise.
        layer: the layer of ``from`` and ``at``.
        unembedding: ``full``: it reads S[2L], the sum of all that was written.
            ``truncated``: it reads S[2L] - S[c] + a as well.
        unit: what k counts. ``layers``: both sublayers of layer n have the cut
            c = 2 (n - k): attention reads resid_pre[n] - resid_pre[n-k], the MLP that plus
            attn_out[n]; the unembedding's cut is 2 (L - k). ``sublayers``: c = s - k, with
            s = 2n for attention, 2n + 1 for the MLP (2n in a parallel block, where both
            read one stream) and 2L for the unembedding.

    Where c < 0 there is nothing before the cut, not even the embedding, and the sublayer
    reads all. So a horizon of L layers changes no sublayer.

    Raises:
        UsageError: a layer that is missing, or given where it means nothing.
    """

    ablation: Ablation = "zero"
    outputs: Outputs = "recomputed"
    enforced: Enforced = "everywhere"
    layer: int | None = None
    unembedding: Unembedding = "full"
    unit: Unit = "layers"

    def __post_init__(self) -> None:
        placed = self.enforced in ("from", "at")
        if placed and self.layer is None:
            raise UsageError(f"a horizon enforced {self.enforced} a layer needs that layer")
        if not placed and self.layer is not None:
            raise UsageError(f"a horizon enforced {self.enforced} takes no layer")

    @property
    def fields(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def truncates_unembedding(self) -> bool:
        return self.unembedding == "truncated" or self.enforced == "unembedding"

    def longest(self, n_layers: int) -> int:
        """The horizon that reaches back over the whole depth."""
        return n_layers if self.unit == "layers" else 2 * n_layers

    def enforces(self, layer: int) -> bool:
        """Whether this layer's sublayers read truncated streams."""
        if self.enforced == "unembedding":
            return False
        if self.layer is None:
            return True
        return layer >= self.layer if self.enforced == "from" else layer == self.layer

    def check(self, n_layers: int) -> None:
        """Raise ``UsageError`` if the model has no such layer."""
        if self.layer is not None and not 0 <= self.layer < n_layers:
            raise UsageError(
                f"layer {self.layer} does not exist: the model has {n_layers} layers",
                f"layers count from 0 to {n_layers - 1}",
            )


DEFINITION = Variant()


@dataclass(frozen=True)
class Cuts:
    """Where the two reads of a layer are cut; None where a read is whole."""

    attention: int | None
    mlp: int | None


@dataclass(frozen=True)
class Schedule:
    """All that one horizon does to a model.

    Args:
        horizon: k.
        layers: the cuts of each layer; None for a layer that reads all.
        final: the cut of the unembedding's read, or None.
    """

    horizon: int
    layers: tuple[Cuts | None, ...]
    final: int | None

    @property
    def first(self) -> int:
        """The first layer that reads another stream than it would; the depth if none does."""
        depth = len(self.layers)
        return next((n for n, cuts in enumerate(self.layers) if cuts is not None), depth)

    def last_uses(self, original: bool) -> dict[int, int]:
        """Streams of its own that this horizon cuts off, and the last layer where (L: at the end).

        Up to its first layer the streams are the original's. Where truncated reads are of the
        original's stream, only what the unembedding cuts off is its own.
        """
        cuts: dict[int | None, int] = {}
        for layer, both in enumerate(() if original else self.layers):
            cuts |= dict.fromkeys((both.attention, both.mlp) if both else (), layer)
        cuts[self.final] = len(self.layers)
        own = 2 * self.first
        return {cut: last for cut, last in cuts.items() if cut is not None and cut > own}

    def most_kept(self, original: bool) -> int:
        """How many of those are held at a time, at most."""
        uses = self.last_uses(original)
        return max(
            (
                sum(cut <= 2 * layer + 2 and last > layer for cut, last in uses.items())
                for layer in range(len(self.layers))
            ),
            default=0,
        )

    @property
    def untouched(self) -> bool:
        """Whether this horizon is the model as it is."""
        return self.first == len(self.layers) and self.final is None


def schedule(variant: Variant, horizon: int, n_layers: int, parallel: bool) -> Schedule:
    """The cuts of ``horizon`` in a model of ``n_layers``, of parallel blocks or not."""
    layers = tuple(
        _cuts(variant, horizon, n, parallel) if variant.enforces(n) else None
        for n in range(n_layers)
    )
    final = _cut(variant, horizon, n_layers, 2 * n_layers)
    return Schedule(horizon, layers, final if variant.truncates_unembedding else None)


def _cuts(variant: Variant, horizon: int, layer: int, parallel: bool) -> Cuts | None:
    attention = _cut(variant, horizon, layer, 2 * layer)
    mlp = attention if parallel else _cut(variant, horizon, layer, 2 * layer + 1)
    return None if attention is None and mlp is None else Cuts(attention, mlp)


def _cut(variant: Variant, horizon: int, layer: int, sublayer: int) -> int | None:
    cut = 2 * (layer - horizon) if variant.unit == "layers" else sublayer - horizon
    return None if cut < 0 else cut
