"""Find and read the linear layers of a block, by the few names that transformers uses.

Teaching residcheck a new architecture means adding a name to one of these tables. A wrong
guess is not silent: the weights gate multiplies every matrix out on real activations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from residcheck.backends.layer_weights import AttentionWeights, MLPWeights

Packing = Literal["stacked", "grouped", "quarters"]

QKV = (("q_proj", "k_proj", "v_proj"), ("wq", "wk", "wv"))
FUSED: dict[str, Packing] = {
    "c_attn": "stacked",
    "Wqkv": "stacked",
    "qkv_proj": "stacked",
    "query_key_value": "grouped",
}
# Model types that pack differently from others with the same name.
OTHERWISE: dict[str, Packing] = {"codegen": "quarters", "gpt_bigcode": "grouped"}
ATTENTION_OUT = ("o_proj", "out_proj", "c_proj", "dense", "wo")
INNER = "attention"  # GPT-Neo's attention wraps another

GATED = {"gate_proj": "up_proj", "w1": "w3"}  # the gate, and what it multiplies
PACKED_GATE = "gate_up_proj"  # the gate first
HIDDEN = ("c_fc", "fc_in", "fc1", "dense_h_to_4h", "up_proj", "w1")
MLP_OUT = ("down_proj", "c_proj", "fc_out", "fc2", "dense_4h_to_h", "w2")
BARE_MLP = "fc2"  # OPT has no MLP module: fc1 and fc2 are the block's
EXPERTS = "a mixture of experts: no one set of hidden neurons sees every token"


class UnknownLayoutError(LookupError):
    """What of a sublayer's weights residcheck cannot find, as a reason to show."""


@dataclass(frozen=True)
class Heads:
    """How many query and key-value heads, and their width."""

    queries: int
    keys: int
    width: int


def attention_in(block: nn.Module, attention: str) -> list[str]:
    """Paths in the block of the layers that make queries, keys and values."""
    path = _attention_module(block, attention)
    inner = block.get_submodule(path)
    return [f"{path}.{name}" for name in _separate(inner) or (_fused(inner),)]


def attention_out(block: nn.Module, attention: str) -> str:
    """Path in the block of the layer that writes the heads' outputs to the stream."""
    return _inside(block, _attention_module(block, attention), ATTENTION_OUT, "output projection")


def mlp_in(block: nn.Module, mlp: str) -> list[str]:
    """Paths in the block of the layers that feed the hidden neurons: the gate first."""
    module: Any = block if mlp == BARE_MLP else getattr(block, mlp)
    prefix = "" if mlp == BARE_MLP else f"{mlp}."
    for gate, up in GATED.items():
        if _has(module, gate) and _has(module, up):
            return [prefix + gate, prefix + up]
    name = next((name for name in (PACKED_GATE, *HIDDEN) if _has(module, name)), None)
    if name is None:
        raise UnknownLayoutError(f"no hidden layer found in {type(module).__name__}")
    return [prefix + name]


def mlp_out(block: nn.Module, mlp: str) -> str:
    """Path in the block of the layer that writes the hidden neurons to the stream."""
    if mlp == BARE_MLP:
        return mlp
    if is_mixture(getattr(block, mlp)):
        raise UnknownLayoutError(EXPERTS)
    return _inside(block, mlp, MLP_OUT, "output projection")


def is_mixture(mlp: nn.Module) -> bool:
    return any(hasattr(mlp, name) for name in ("experts", "router"))


def heads(block: nn.Module, attention: str, n_heads: int) -> Heads:
    """Sizes of the heads, from the shapes of the matrices."""
    wide = linear(block.get_submodule(attention_out(block, attention)))[0].shape[0]
    width = wide // n_heads
    paths = attention_in(block, attention)
    made = [linear(block.get_submodule(path))[0].shape[1] for path in paths]
    queries, keys = made[:2] if len(made) == 3 else (wide, (made[0] - wide) // 2)
    found = Heads(queries // width, keys // width, width)
    if queries != wide or keys % width or not found.keys or found.queries % found.keys:
        raise UnknownLayoutError(
            f"queries of width {queries} and keys of width {keys} do not fit {n_heads} heads "
            f"of width {width}"
        )
    return found


def attention_weights(
    block: nn.Module, attention: str, n_heads: int, model_type: str
) -> AttentionWeights:
    """The attention sublayer's matrices, as views of its parameters where that is possible."""
    size = heads(block, attention, n_heads)
    paths = attention_in(block, attention)
    pairs = [linear(block.get_submodule(path)) for path in paths]
    matrices = _split([weight for weight, _ in pairs], paths, size, model_type)
    biases: list[Tensor | None] = [None] * 3
    if all(bias is not None for _, bias in pairs):
        biases = [*_split([b for _, b in pairs if b is not None], paths, size, model_type)]
    elif len(pairs) == 3:  # some of them may have one
        biases = [None if b is None else _per_head(b, size) for _, b in pairs]
    W_Q, W_K, W_V = (w.movedim(0, 1) for w in matrices)
    b_Q, b_K, b_V = biases
    W_O, b_O = linear(block.get_submodule(attention_out(block, attention)))
    W_O = W_O.view(size.queries, size.width, -1)
    return AttentionWeights(W_Q, W_K, W_V, W_O, b_Q, b_K, b_V, b_O)


def value_outputs(
    block: nn.Module, attention: str, n_heads: int, model_type: str
) -> tuple[str, Int[Tensor, " kv_head_x_width"]]:
    """Path in the block of the layer that makes the values, and which of its outputs they are,
    head after head."""
    size, paths = heads(block, attention, n_heads), attention_in(block, attention)
    numbers = [torch.arange(linear(block.get_submodule(path))[0].shape[1]) for path in paths]
    return paths[-1], _split(numbers, paths, size, model_type)[2].flatten()


def mlp_weights(block: nn.Module, mlp: str) -> MLPWeights:
    """The MLP's matrices, as views of its parameters."""
    W_out, b_out = linear(block.get_submodule(mlp_out(block, mlp)))
    paths = mlp_in(block, mlp)
    pairs = [linear(block.get_submodule(path)) for path in paths]
    if paths[0].endswith(PACKED_GATE):
        weight, bias = pairs[0]
        halves = (None, None) if bias is None else bias.chunk(2, dim=-1)
        pairs = list(zip(weight.chunk(2, dim=-1), halves, strict=True))
    W_in, b_in = pairs[-1]
    W_gate, b_gate = pairs[0] if len(pairs) == 2 else (None, None)
    return MLPWeights(W_in, W_out, W_gate, b_in, b_gate, b_out)


def linear(module: Any) -> tuple[Float[Tensor, "d_in d_out"], Float[Tensor, " d_out"] | None]:
    """Weight and bias of a linear layer, as views, for vectors that are rows."""
    bias = getattr(module, "bias", None)
    bias = bias.detach() if isinstance(bias, Tensor) else None
    if isinstance(module, nn.Linear):
        return module.weight.detach().T, bias
    if type(module).__name__ == "Conv1D":  # GPT-2's: a linear layer, stored the other way round
        return module.weight.detach(), bias
    raise UnknownLayoutError(f"{type(module).__name__} is not a linear layer that residcheck knows")


def _has(module: nn.Module, name: str) -> bool:
    return isinstance(getattr(module, name, None), nn.Module)


def _attention_module(block: nn.Module, attention: str) -> str:
    return f"{attention}.{INNER}" if _has(getattr(block, attention), INNER) else attention


def _inside(block: nn.Module, path: str, names: tuple[str, ...], what: str) -> str:
    module = block.get_submodule(path)
    found = next((name for name in names if _has(module, name)), None)
    if found is None:
        raise UnknownLayoutError(f"no {what} found in {type(module).__name__}")
    return f"{path}.{found}"


def _separate(inner: nn.Module) -> tuple[str, str, str] | None:
    return next((names for names in QKV if all(_has(inner, name) for name in names)), None)


def _fused(inner: nn.Module) -> str:
    name = next((name for name in FUSED if _has(inner, name)), None)
    if name is None:
        raise UnknownLayoutError(f"no query, key and value found in {type(inner).__name__}")
    return name


def _per_head(x: Float[Tensor, "*row heads_x_width"], size: Heads) -> Tensor:
    return x.view(*x.shape[:-1], -1, size.width)


Unpacked = tuple[Tensor, Tensor, Tensor]


def _stacked(packed: Float[Tensor, "*row packed"], size: Heads) -> Unpacked:
    """All queries, then all keys, then all values."""
    queries, keys = size.queries, size.keys
    per_head = _per_head(packed, size)
    query, key, value = per_head.tensor_split([queries, queries + keys], dim=-2)
    return query, key, value


def _grouped(packed: Float[Tensor, "*row packed"], size: Heads) -> Unpacked:
    """Group after group: the group's queries, its key, its value (one query in GPT-NeoX)."""
    group = (size.keys, size.queries // size.keys + 2, size.width)
    groups = packed.view(*packed.shape[:-1], *group)
    return groups[..., :-2, :].flatten(-3, -2), groups[..., -2, :], groups[..., -1, :]


def _quarters(packed: Float[Tensor, "*row packed"], size: Heads) -> Unpacked:
    """CodeGen's four parts, one per core it was trained on: queries, values, keys of each."""
    quarters = packed.view(*packed.shape[:-1], 4, 3, size.queries // 4, size.width)
    query, value, key = (quarters[..., i, :, :].flatten(-3, -2) for i in range(3))
    return query, key, value


def _split(
    made: list[Float[Tensor, "*row made"]], paths: list[str], size: Heads, model_type: str
) -> Unpacked:
    """Queries, keys and values, ``[..., head, width]``, of three layers or of one."""
    if len(made) == 3:
        query, key, value = (_per_head(x, size) for x in made)
        return query, key, value
    packing = OTHERWISE.get(model_type, FUSED[paths[0].rpartition(".")[2]])
    return _UNPACK[packing](made[0], size)


_UNPACK: dict[Packing, Callable[[Tensor, Heads], Unpacked]] = {
    "stacked": _stacked,
    "grouped": _grouped,
    "quarters": _quarters,
}
