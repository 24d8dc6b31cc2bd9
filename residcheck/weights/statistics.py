"""All statistics of a model's weights as curves, one layer in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from residcheck.backends import AttentionWeights, Backend, LayerWeights
from residcheck.curves import Curve
from residcheck.names import MATRICES, RANDOM_INPUTS, STATISTICS, WEIGHTS
from residcheck.seeds import DRAWS, generator
from residcheck.weights.canonical import as_written, canonical
from residcheck.weights.gaussian import (
    attention_on_gaussian,
    matrix,
    normalized,
    squared_ratios,
)
from residcheck.weights.norms import (
    frobenius,
    neuron_cosine,
    ov_eigenvalue_sign,
    ov_frobenius,
    w_in_w_out_frobenius,
)
from residcheck.weights.virtual import virtual_weights

Columns = dict[str, Tensor | float]


@dataclass
class _Table:
    """One column a layer for each curve."""

    wanted: frozenset[str]
    columns: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, layer_columns: Columns) -> None:
        for name in self.wanted & layer_columns.keys():
            column = torch.as_tensor(layer_columns[name]).detach().cpu()
            self.columns.setdefault(name, []).append(column)

    def curves(self) -> dict[str, Curve]:
        return {name: as_curve(name, torch.stack(c, dim=-1)) for name, c in self.columns.items()}


def as_curve(name: str, values: Tensor) -> Curve:
    """A curve with the axes and unit of :data:`~residcheck.names.STATISTICS`."""
    statistic = STATISTICS[name]
    return Curve(name, statistic.dims, values.cpu().numpy().astype(np.float32), statistic.unit)


@torch.inference_mode()
def raw_statistics(backend: Backend, names: Iterable[str]) -> dict[str, Curve]:
    """Frobenius norms of the weights as they are stored; ``backend`` over the plain model."""
    table = _Table(frozenset(name for name in names if name.endswith("_raw")))
    for layer in range(backend.anatomy.n_layers if table.wanted else 0):
        weights = backend.weights(layer)
        table.add(_norms(weights, "_raw"))
        if weights.attention is not None:
            table.add({"ov_frobenius_raw": ov_frobenius(weights.attention)})
    return table.curves()


@torch.inference_mode()
def folded_statistics(
    backend: Backend, names: Iterable[str], progress: Callable[[int], None] = lambda layer: None
) -> dict[str, Curve]:
    """Statistics of the canonical weights, those that write as they reach the stream, and of
    what they make of Gaussian vectors."""
    wanted = frozenset(n for n in names if n in WEIGHTS | RANDOM_INPUTS and not n.endswith("_raw"))
    table = _Table(wanted)
    anatomy = backend.anatomy
    for layer in range(anatomy.n_layers if wanted else 0):
        progress(layer)
        weights = canonical(backend, layer)
        written = as_written(backend, layer, weights)
        table.add(_norms(written, ""))
        table.add(_of_attention(written, wanted))
        table.add(_of_mlp(written))
        table.add(_on_gaussian(written, wanted))
        if "ov_random_norm" in wanted and weights.attention is not None:
            table.add({"ov_random_norm": _written_on_gaussian(backend, layer, weights.attention)})
    curves = table.curves()
    if "virtual_weights" in wanted and not anatomy.missing_weights:
        scores = virtual_weights(
            lambda layer: as_written(backend, layer, canonical(backend, layer)),
            anatomy.n_layers,
            anatomy.parallel,
            centred=anatomy.centring,
        )
        curves["virtual_weights"] = as_curve("virtual_weights", torch.from_numpy(scores))
    return curves


def _norms(weights: LayerWeights, form: str) -> Columns:
    found = {name: matrix(weights, name) for name in MATRICES}
    return {f"{n}_frobenius{form}": frobenius(W) for n, W in found.items() if W is not None}


def _of_attention(weights: LayerWeights, wanted: frozenset[str]) -> Columns:
    attention = weights.attention
    if attention is None:
        return {}
    columns: Columns = {"ov_frobenius": ov_frobenius(attention)}
    if "ov_eigenvalues" in wanted:
        columns["ov_eigenvalues"] = ov_eigenvalue_sign(attention)
    columns["b_O_norm"] = 0.0 if attention.b_O is None else frobenius(attention.b_O)
    return columns


def _of_mlp(weights: LayerWeights) -> Columns:
    mlp = weights.mlp
    if mlp is None:
        return {}
    columns: Columns = {
        "W_in_W_out_frobenius": w_in_w_out_frobenius(mlp),
        "neuron_cosine": neuron_cosine(mlp),
    }
    columns["b_in_W_out_norm"] = 0.0 if mlp.b_in is None else frobenius(mlp.b_in @ mlp.W_out)
    columns["b_out_norm"] = 0.0 if mlp.b_out is None else frobenius(mlp.b_out)
    return columns


def _on_gaussian(weights: LayerWeights, wanted: frozenset[str]) -> Columns:
    if weights.attention is None or weights.mlp is None:
        return {}
    forms = ("frobenius_gaussian", "frobenius_normalized")
    if wanted.isdisjoint(forms):
        return {}
    matrices = (matrix(weights, name) for name in MATRICES)
    device = weights.mlp.W_in.device
    absent = (torch.full((DRAWS,), torch.nan, dtype=torch.float64, device=device),) * 2
    ratios = [absent if W is None else squared_ratios(W, DRAWS) for W in matrices]
    return {
        form: torch.stack([columns[i] for columns in ratios], dim=-1)
        for i, form in enumerate(forms)
    }


def _written_on_gaussian(backend: Backend, layer: int, attention: AttentionWeights) -> Tensor:
    """Norms of what attention adds when every head reads one normalised Gaussian vector.

    Under a post-norm that is what comes out of it, at the size that its gain gives.
    """
    anatomy = backend.anatomy
    x = torch.randn(DRAWS, anatomy.d_model, generator=generator("gaussian"))
    written = attention_on_gaussian(
        attention, normalized(x.to(attention.W_O), centre=anatomy.centring)
    )
    post_norm = backend.post_norm(layer, "attn_out")
    if post_norm is not None:
        written = post_norm(written) * anatomy.residual_scale  # which W_O has else
    norms: Tensor = written.norm(dim=-1)
    return norms
