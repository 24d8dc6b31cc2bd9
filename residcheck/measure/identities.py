"""The identities that the tensors of one block must satisfy, tested while a pass runs.

One block's tensors are held at a time. Rounding is judged per token, relative to the
right-hand side of each identity.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from residcheck.backends import SITES, Affine, Anatomy, Backend, Site, Tap, Taps
from residcheck.errors import GateError, NonFiniteError
from residcheck.tolerances import TOLERANCES, Tolerance
from residcheck.weights.gaussian import normalized

HINT = (
    "nothing was measured: the library's hooks do not mean what they say here; "
    "try another backend (transformers, transformer_lens or nnsight)"
)
OVERFLOW_HINT = "the weights may be damaged, or overflow in this dtype: try dtype=float32"
NORMS: tuple[Site, ...] = ("ln1_out", "ln2_out")
RELATED: tuple[Site, ...] = (*NORMS, "resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
"""The sites that the identities speak of; of the others it is only asked that they are
reached and finite."""


@dataclass(frozen=True)
class Mismatch:
    """An identity that does not hold: where, by how much of the right-hand side, and how
    much rounding would explain."""

    layer: int
    identity: str
    size: float
    bound: float
    hooks: tuple[str, ...]


class Identities:
    """Taps that test the identities of one pass, block by block.

    Make it before the pass: reading the norms' gains feeds them vectors, which taps would see.
    """

    def __init__(self, backend: Backend, tolerance: Tolerance) -> None:
        anatomy = backend.anatomy
        self._backend = backend
        self._sum_bound = tolerance.identity
        # Many norm layers compute in float32 whatever the dtype (RMSNorm in float64 models).
        self._norm_bound = max(tolerance.identity, TOLERANCES["float32"].identity)
        self._held = [site for site in SITES if site in RELATED and anatomy.has(site)]
        self._affines = {
            (layer, site): backend.affine(layer, site)
            for layer in range(anatomy.n_layers)
            for site in NORMS
            if anatomy.has(site)
        }
        self._seen: dict[Site, Tensor] = {}
        self._fired: set[tuple[int, Site]] = set()
        self.last_post: Float[Tensor, "batch pos d"] | None = None
        self.mismatches: list[Mismatch] = []

    def taps(self) -> Taps:
        """A tap at every site of every layer.

        Raises (while the pass runs):
            NonFiniteError: NaN or infinity, named by layer and site.
            GateError: a block ends before all of its sites were seen.
        """
        anatomy = self._backend.anatomy
        return {
            (layer, site): self._tap(layer, site)
            for layer in range(anatomy.n_layers)
            for site in SITES
            if anatomy.has(site)
        }

    def _tap(self, layer: int, site: Site) -> Tap:
        def see(tensor: Tensor) -> None:
            self._fired.add((layer, site))
            if not bool(tensor.isfinite().all()):
                hook = self._backend.hook_name(layer, site)
                raise NonFiniteError(
                    f"layer {layer}: {site} holds NaN or infinity ({hook})", OVERFLOW_HINT
                )
            if site in self._held:
                # A copy: some models add to it in place later.
                self._seen[site] = tensor.to(torch.float64, copy=True)
            if site == "resid_post":
                self._close(layer)

        return see

    def _close(self, layer: int) -> None:
        for site in self._held:
            if site not in self._seen:
                raise GateError(
                    f"identity gate: layer {layer}: {site} was never reached "
                    f"(hook {self._backend.hook_name(layer, site)})",
                    HINT,
                )
        if self.last_post is not None:
            stream: tuple[Site, ...] = ("resid_pre",)
            self._test(layer, "resid_post[n-1] = resid_pre[n]", self.last_post, stream)
        self._test_sums(layer)
        self._test_norms(layer)
        self.last_post = self._seen["resid_post"]
        self._seen = {}

    def _test_sums(self, layer: int) -> None:
        sums: tuple[tuple[Site, ...], ...] = (
            ("resid_pre", "attn_out", "resid_mid"),
            ("resid_mid", "mlp_out", "resid_post"),
        )
        if self._backend.anatomy.parallel:
            sums = (("resid_pre", "attn_out", "mlp_out", "resid_post"),)
        for sites in sums:
            *terms, total = sites
            left = torch.stack([self._seen[site] for site in terms]).sum(dim=0)
            self._test(layer, f"{' + '.join(terms)} = {total}", left, sites)

    def _test_norms(self, layer: int) -> None:
        anatomy = self._backend.anatomy
        before_mlp: Site = "resid_pre" if anatomy.parallel else "resid_mid"
        reads: dict[Site, Site] = {"ln1_out": "resid_pre", "ln2_out": before_mlp}
        for site in (site for site in NORMS if anatomy.has(site)):
            stream = reads[site]
            left = normalised(self._seen[stream], self._affines[layer, site], anatomy)
            self._test(layer, f"norm({stream}) = {site}", left, (stream, site))

    def _test(self, layer: int, identity: str, left: Tensor, sites: tuple[Site, ...]) -> None:
        bound = self._norm_bound if sites[-1] in NORMS else self._sum_bound
        right = self._seen[sites[-1]]
        size = distance(left.to(right.device), right)
        if not size <= bound:
            hooks = tuple(self._backend.hook_name(layer, site) for site in sites)
            self.mismatches.append(Mismatch(layer, identity, size, bound, hooks))

    def verify(self) -> None:
        """What the pass has shown, once it is over.

        Raises:
            GateError: an identity failed, or a hook was never reached.
        """
        if self.mismatches:
            raise _mismatch_error(self.mismatches)
        for where in self.taps():
            if where not in self._fired:
                hook = self._backend.hook_name(*where)
                raise GateError(f"identity gate: hook {hook} was never reached", HINT)


def _mismatch_error(mismatches: list[Mismatch]) -> GateError:
    first = mismatches[0]
    others = len({m.layer for m in mismatches}) - 1
    return GateError(
        f"identity gate: layer {first.layer}: {first.identity} fails: off by "
        f"{first.size:.2g} of the right-hand side (tolerance {first.bound:.0e}); "
        f"hooks: {', '.join(first.hooks)}" + (f"; so do {others} more layers" if others else ""),
        HINT,
    )


def distance(left: Float[Tensor, "*token d"], right: Float[Tensor, "*token d"]) -> float:
    """The largest ``|left - right|`` of a token over its ``|right|``; infinite if the
    shapes differ."""
    if left.shape != right.shape:
        return float("inf")
    scale = right.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    return float(((left - right).norm(dim=-1) / scale).max())


def normalised(
    x: Float[Tensor, "batch pos d"], affine: Affine, anatomy: Anatomy
) -> Float[Tensor, "batch pos d"]:
    """What the model's kind of norm layer makes of ``x``, gain and bias applied."""
    x = normalized(x, centre=anatomy.centring, eps=anatomy.norm_eps)
    return x * affine.gain.to(x) + affine.bias.to(x)
