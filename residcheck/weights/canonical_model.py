"""The whole model in canonical form, still a transformers model that runs.

Every norm's gain and bias are moved into the linear layers that read it, the final norm's
into the unembedding; where norms subtract the mean, everything that is written to the stream
has its mean taken out beforehand, so that the norms need not; value biases move into the
output bias. What is left of a norm is division by the size of its input, which commutes with
any rotation of the stream. Norms on what a sublayer writes (sandwich norms, BLOOM's embedding
norm) become that division followed by a linear map, the diagonal of their gain.

Vectors are rows: ``y = x @ W + b``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from residcheck.backends import projections
from residcheck.backends.anatomy import Blocks, dissect
from residcheck.backends.base import Affine, affine_of, is_centring, norm_eps
from residcheck.backends.ends import final_norm_name
from residcheck.backends.projections import linear
from residcheck.errors import UnsupportedModelError


class Normalise(nn.Module):
    """``x / sqrt(mean(x^2) + eps)``, in float32 at least."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Float[Tensor, "*token d_model"]) -> Float[Tensor, "*token d_model"]:
        wide = x if x.dtype == torch.float64 else x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


@dataclass
class CanonicalModel:
    """A model in canonical form, and all that touches its stream.

    ``tables`` are embeddings of tokens and positions, ``readers`` and ``writers`` linear
    layers from and to the stream, ``maps`` linear layers from the stream's basis to itself.
    """

    model: Any
    tables: list[nn.Embedding] = field(default_factory=list)
    readers: list[nn.Module] = field(default_factory=list)
    writers: list[nn.Module] = field(default_factory=list)
    maps: list[nn.Linear] = field(default_factory=list)


@dataclass(frozen=True)
class _Read:
    """Linear layers that read the stream, and the path of the norm they read it through."""

    norm: str | None
    readers: list[nn.Module]


@torch.no_grad()
def canonicalise(model: Any, dtype: torch.dtype | None = None) -> CanonicalModel:
    """A copy of a plain transformers model in canonical form; ``model`` stays as it is.

    Args:
        dtype: of the copy; the model's own unless given.

    Raises:
        UnsupportedModelError: something touches the stream that residcheck does not know
            (experts, projections of embeddings, other norms).
    """
    made = CanonicalModel(copy.deepcopy(model).to(dtype or model.dtype))
    blocks = dissect(made.model)
    for sublayer, reason in blocks.anatomy.missing_weights.items():
        raise _unsupported(blocks, f"weights of its {sublayer} are unknown ({reason})")
    _untie(made.model)
    reads = [*_reads(made.model, blocks)]
    post_norms = [*_post_norms(made.model, blocks)]
    made.tables = _tables(made.model, blocks.anatomy.d_model)
    made.readers = [reader for read in reads for reader in read.readers]
    made.writers = [*_writers(blocks)]
    _refuse_unknown(made, blocks, {*post_norms, *(read.norm for read in reads)})
    centre = _is_centred(made.model, blocks, reads, post_norms)
    for read in reads:
        _fold_norm(made.model, read, centre, blocks.anatomy.d_model)
    if not blocks.anatomy.sinks:  # their patterns do not sum to one
        _fold_values(blocks)
    if centre:
        _centre_writes(made)
    made.maps = [_as_map(made.model, path, centre, blocks.anatomy.d_model) for path in post_norms]
    return made


def _unsupported(blocks: Blocks, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{blocks.anatomy.model_type} has no canonical form here: {what}",
        "its residual stream is not rotated",
    )


def _untie(model: Any) -> None:
    output = model.get_output_embeddings()
    if output.weight is model.get_input_embeddings().weight:
        output.weight = nn.Parameter(output.weight.detach().clone(), requires_grad=False)


def _reads(model: Any, blocks: Blocks) -> Iterator[_Read]:
    names, parts = blocks.names, blocks.parts
    for layer, block in enumerate(blocks.modules):

        def norm_at(path: str, layer: int = layer) -> str:
            return f"{blocks.path}.{layer}.{path}"

        into = [block.get_submodule(p) for p in projections.attention_in(block, names["attention"])]
        mlp = [block.get_submodule(p) for p in projections.mlp_in(block, names["mlp"])]
        ln1 = norm_at(parts["ln1_out"].path) if "ln1_out" in parts else None
        ln2 = norm_at(parts["ln2_out"].path) if "ln2_out" in parts else None
        if ln2 is None and blocks.anatomy.parallel:
            yield _Read(ln1, into + mlp)
        else:
            yield _Read(ln1, into)
            yield _Read(ln2, mlp)
    yield _Read(final_norm_name(model, blocks.path), [model.get_output_embeddings()])


def _writers(blocks: Blocks) -> Iterator[nn.Module]:
    for block in blocks.modules:
        yield block.get_submodule(projections.attention_out(block, blocks.names["attention"]))
        yield block.get_submodule(projections.mlp_out(block, blocks.names["mlp"]))


def _post_norms(model: Any, blocks: Blocks) -> Iterator[str]:
    """Paths of norms whose output is written to the stream."""
    final = final_norm_name(model, blocks.path)
    for path, module in model.named_modules():
        outside = not path.startswith(f"{blocks.path}.")
        if outside and path != final and "norm" in type(module).__name__.lower():
            yield path  # BLOOM's, on the embeddings
    for layer in range(blocks.anatomy.n_layers):
        for name in blocks.post_norms.values():
            yield f"{blocks.path}.{layer}.{name}"


def _tables(model: Any, d_model: int) -> list[nn.Embedding]:
    embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    return [table for table in embeddings if table.embedding_dim == d_model]


def _refuse_unknown(made: CanonicalModel, blocks: Blocks, norms: set[str | None]) -> None:
    """Every module with parameters must be known, but norms inside attention (of queries and
    keys) and activations with a parameter or two of their own."""
    known = {id(module) for module in (*made.tables, *made.readers, *made.writers)}
    for path, module in made.model.named_modules():
        parameters = list(module.parameters(recurse=False))
        inner_norm = f".{blocks.names['attention']}." in path and "norm" in path
        small = all(parameter.numel() == 1 for parameter in parameters)
        found = id(module) in known or path in norms or inner_norm
        if parameters and not small and not found:
            raise _unsupported(blocks, f"what {path} ({type(module).__name__}) does is unknown")


def _is_centred(model: Any, blocks: Blocks, reads: list[_Read], post_norms: list[str]) -> bool:
    """Whether the norms subtract the mean; all of them must, or none."""
    paths = [read.norm for read in reads if read.norm] + post_norms
    d_model = blocks.anatomy.d_model
    kinds = {is_centring(model.get_submodule(path), d_model) for path in paths}
    if len(kinds) > 1:
        raise _unsupported(blocks, "some of its norms subtract the mean and some do not")
    return kinds == {True}


def _fold_norm(model: Any, read: _Read, centre: bool, d_model: int) -> None:
    affine: Affine | None = None
    if read.norm is not None:
        norm = model.get_submodule(read.norm)
        affine = affine_of(norm, d_model)
        model.set_submodule(read.norm, Normalise(norm_eps(norm, d_model)))
    for reader in read.readers:
        W = linear(reader)[0]
        if affine is not None:
            if bool(affine.bias.any()):
                _bias(reader).add_(affine.bias.to(W) @ W)
            W.mul_(affine.gain.to(W)[:, None])
        if centre:
            W.sub_(W.mean(dim=0, keepdim=True))


def _fold_values(blocks: Blocks) -> None:
    anatomy, name = blocks.anatomy, blocks.names["attention"]
    for block in blocks.modules:
        size = (name, anatomy.n_heads, anatomy.model_type)
        path, outputs = projections.value_outputs(block, *size)
        bias = linear(block.get_submodule(path))[1]
        if bias is None:
            continue
        writer = block.get_submodule(projections.attention_out(block, name))
        W_O, outputs = linear(writer)[0], outputs.to(bias.device)
        width = W_O.shape[0] // anatomy.n_heads
        values = bias[outputs].view(-1, width)
        share = W_O.shape[0] // values.numel()
        _bias(writer).add_(values.repeat_interleave(share, dim=0).flatten() @ W_O)
        bias[outputs] = 0


def _centre_writes(made: CanonicalModel) -> None:
    for table in made.tables:
        table.weight.sub_(table.weight.mean(dim=-1, keepdim=True))
    for writer in made.writers:
        W, b = linear(writer)
        W.sub_(W.mean(dim=-1, keepdim=True))
        if b is not None:
            b.sub_(b.mean())


def _as_map(model: Any, path: str, centre: bool, d_model: int) -> nn.Linear:
    """Put a division and a linear map in place of a norm; return the map."""
    norm = model.get_submodule(path)
    affine, eps = affine_of(norm, d_model), norm_eps(norm, d_model)
    diagonal = nn.Linear(d_model, d_model, device=affine.gain.device, dtype=affine.gain.dtype)
    W, b = linear(diagonal)
    W.copy_(affine.gain.diag())
    assert b is not None
    b.copy_(affine.bias)
    if centre:
        W.sub_(W.mean(dim=-1, keepdim=True))
        b.sub_(b.mean())
    model.set_submodule(path, nn.Sequential(Normalise(eps), diagonal))
    return diagonal


def _bias(module: Any) -> Float[Tensor, " d_out"]:
    """The layer's bias, of zeros where it had none."""
    if module.bias is None:
        W = linear(module)[0]
        zeros = torch.zeros(W.shape[1], dtype=W.dtype, device=W.device)
        module.bias = nn.Parameter(zeros, requires_grad=False)
    bias: Tensor = module.bias.detach()
    return bias
