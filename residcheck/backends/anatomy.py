"""Find the parts of any transformers decoder: its blocks, sublayers and norms.

Parts are found by the few names that transformers gives them and by what they do.
A wrong guess is not silent: the identity gate checks every tap on every layer.
Teaching residcheck a new architecture means adding a name to one of these tuples.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import nn

from residcheck.backends import projections
from residcheck.backends.base import Anatomy, Site, Sublayer, is_centring, norm_eps
from residcheck.backends.projections import HIDDEN, Heads, UnknownLayoutError
from residcheck.errors import UnsupportedModelError

ATTENTION = ("self_attn", "self_attention", "attn", "attention")
MLP = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe", "fc2")
LN1 = (
    "input_layernorm",
    "ln_1",
    "norm_1",
    "ln_attn",
    "self_attn_layer_norm",
    "attention_norm",
    "attention_layernorm",
    "norm1",
    "norm",
)
LN2 = (
    "pre_feedforward_layernorm",
    "pre_mlp_layernorm",
    "ln_2",
    "norm_2",
    "ln_mlp",
    "ffn_norm",
    "feedforward_layernorm",
    "norm2",
    "final_layer_norm",
)
AMBIGUOUS = "post_attention_layernorm"  # second norm in Llama, post-norm in Gemma 2 and OLMo 2
POST_ATTENTION = ("post_self_attn_layernorm",)
POST_MLP = ("post_feedforward_layernorm", "post_mlp_layernorm")
GATE = ("gate_proj", "gate_up_proj", "w1")
SOMETIMES: tuple[Site, ...] = ("z", "mlp_pre", "mlp_post")  # may be in some blocks only
PARALLEL_FLAGS = ("use_parallel_residual", "parallel_attn", "new_decoder_architecture")


@dataclass(frozen=True)
class Part:
    """A module, and how its tensor is read.

    ``side`` says input or output; ``scale`` is what the block multiplies it with before
    adding it; ``share`` is how many equal parts its last axis packs, the first one wanted.
    """

    path: str
    side: str
    scale: float = 1.0
    share: int = 1


@dataclass(frozen=True)
class Blocks:
    """The blocks of a model and where each site is in one of them."""

    path: str
    modules: nn.ModuleList
    parts: dict[Site, Part]
    anatomy: Anatomy
    names: dict[Sublayer, str]
    post_norms: dict[Site, str]


def dissect(model: Any) -> Blocks:
    """The anatomy of a loaded transformers model.

    Raises:
        UnsupportedModelError: no stack of blocks with an attention and an MLP.
    """
    config = model.config.get_text_config()
    path, blocks = _block_list(model, config)
    block = blocks[0]
    parallel = _is_parallel(block, config)
    parts: dict[Site, Part] = {
        "resid_pre": Part("", "input"),
        "resid_post": Part("", "output"),
    }
    scale = float(getattr(block, "residual_multiplier", 1.0))
    names = _sublayers(block, config)
    attention, mlp = names["attention"], names["mlp"]
    post_norms = _post_norms(block)
    parts["attn_out"] = Part(post_norms[0] or _writer(block, attention), "output", scale)
    parts["mlp_out"] = Part(post_norms[1] or _writer(block, mlp), "output", scale)
    missing: dict[Site, str] = {}
    _find_norms(block, parallel, mlp, post_norms, parts, missing)
    _find_pre_activation(block, mlp, parts, missing)
    _find_what_writers_read(block, names, parts, missing)
    _check_every_block(config.model_type, blocks, parts, missing)
    sites: tuple[Site, Site] = ("attn_out", "mlp_out")
    norms = {site: name for site, name in zip(sites, post_norms, strict=True) if name}
    anatomy = _anatomy(config, blocks, names, parts, parallel, missing)
    return Blocks(path, blocks, parts, anatomy, names, norms)


def _sublayers(block: nn.Module, config: Any) -> dict[Sublayer, str]:
    attention, mlp = _child(block, ATTENTION), _child(block, MLP)
    if attention is None or mlp is None:
        there = ", ".join(name for name, _ in block.named_children())
        raise UnsupportedModelError(
            f"a block of {config.model_type} has no attention and MLP sublayer (it has: {there})",
            "attention-only, state-space and other block types are not measured",
        )
    return {"attention": attention, "mlp": mlp}


def _block_list(model: Any, config: Any) -> tuple[str, nn.ModuleList]:
    attends = hasattr(config, "num_attention_heads")  # RWKV calls its recurrence attention
    for path, module in model.named_modules():
        stack = isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers
        if attends and stack and _child(module[0], ATTENTION):
            return path, module
    raise UnsupportedModelError(
        f"{config.model_type} has no stack of {config.num_hidden_layers} attention blocks",
        "residcheck measures decoder-only transformers; "
        "attention-free (state-space, recurrent) models are not measured",
    )


def _child(block: nn.Module, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if getattr(block, name, None) is not None), None)


def _is_parallel(block: nn.Module, config: Any) -> bool:
    if any(getattr(config, flag, False) for flag in PARALLEL_FLAGS):
        return True
    # One norm for both sublayers; with a second one, of a name unknown here, it is sequential.
    norms = [module for module in block.children() if _is_norm(module)]
    return len(norms) <= 1 and _child(block, (*LN2, AMBIGUOUS, *POST_MLP)) is None


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _writer(block: nn.Module, name: str) -> str:
    """The module whose output is added: the sublayer, or its last linear layer where
    the sublayer is handed the residual and adds it itself (BLOOM, MPT)."""
    sublayer = getattr(block, name)
    if "residual" not in inspect.signature(sublayer.forward).parameters:
        return name
    linear = [path for path, module in sublayer.named_modules() if isinstance(module, nn.Linear)]
    return f"{name}.{linear[-1]}"


def _post_norms(block: nn.Module) -> tuple[str | None, str | None]:
    """Norms on what the sublayers write (sandwich norms; Gemma 2 and 3, OLMo 2, GLM 4)."""
    after_mlp = _child(block, POST_MLP)
    after_attention = _child(block, POST_ATTENTION)
    if after_attention is None and after_mlp is not None:
        after_attention = _child(block, (AMBIGUOUS,))
    return after_attention, after_mlp


def _find_norms(
    block: nn.Module,
    parallel: bool,
    mlp: str,
    post_norms: tuple[str | None, str | None],
    parts: dict[Site, Part],
    missing: dict[Site, str],
) -> None:
    ln1, ln2 = _child(block, LN1), _child(block, LN2)
    if ln2 is None and post_norms[0] != AMBIGUOUS:
        ln2 = _child(block, (AMBIGUOUS,))
    unnormalised = _why_no_norm(block, (ln1, ln2, *post_norms))
    if ln1 is None:
        missing["ln1_out"] = unnormalised
    else:
        parts["ln1_out"] = Part(ln1, "output")
    if parallel:
        missing["resid_mid"] = "parallel blocks have no stream between attention and MLP"
    else:
        parts["resid_mid"] = Part(ln2 or mlp, "input")
    if ln2 is not None:
        parts["ln2_out"] = Part(ln2, "output")
    elif parallel:
        missing["ln2_out"] = "attention and MLP share one norm"
    else:
        missing["ln2_out"] = unnormalised


def _why_no_norm(block: nn.Module, known: tuple[str | None, ...]) -> str:
    for name, module in block.named_children():
        if _is_norm(module) and name not in known:
            return f"residcheck does not know the norm {name!r} of this architecture"
    return "the sublayer reads the stream without a norm"


def _find_pre_activation(
    block: nn.Module, mlp: str, parts: dict[Site, Part], missing: dict[Site, str]
) -> None:
    if mlp == "fc2":  # OPT has no MLP module
        parts["mlp_pre"] = Part("fc1", "output")
        return
    module = getattr(block, mlp)
    if projections.is_mixture(module):
        missing["mlp_pre"] = projections.EXPERTS
        return
    name = _child(module, GATE) or _child(module, HIDDEN)
    if name is None or not isinstance(getattr(module, name), nn.Module):
        missing["mlp_pre"] = f"no hidden layer found in {type(module).__name__}"
        return
    parts["mlp_pre"] = Part(f"{mlp}.{name}", "output", share=2 if name == "gate_up_proj" else 1)


def _find_what_writers_read(
    block: nn.Module,
    names: dict[Sublayer, str],
    parts: dict[Site, Part],
    missing: dict[Site, str],
) -> None:
    """What the heads hand to W_O, and the hidden neurons to W_out."""
    try:
        parts["z"] = Part(projections.attention_out(block, names["attention"]), "input")
    except UnknownLayoutError as reason:
        missing["z"] = str(reason)
    try:
        parts["mlp_post"] = Part(projections.mlp_out(block, names["mlp"]), "input")
    except UnknownLayoutError as reason:
        missing["mlp_post"] = str(reason)


def _check_every_block(
    model_type: str, blocks: nn.ModuleList, parts: dict[Site, Part], missing: dict[Site, str]
) -> None:
    """Parts were found in the first block; the others must have them too."""
    for layer, block in enumerate(blocks):
        present = {path for path, _ in block.named_modules()}
        for site in [site for site, part in parts.items() if part.path not in present]:
            if site not in SOMETIMES:
                raise UnsupportedModelError(
                    f"the blocks of {model_type} differ: layer {layer} has no "
                    f"{parts[site].path!r}, which layer 0 has",
                    "hybrids of attention with other kinds of blocks are not measured",
                )
            sublayer = "attention" if site == "z" else "MLP"
            missing[site] = f"the {sublayer} of layer {layer} is built differently from layer 0's"
            del parts[site]


def _anatomy(
    config: Any,
    blocks: nn.ModuleList,
    names: dict[Sublayer, str],
    parts: dict[Site, Part],
    parallel: bool,
    missing: dict[Site, str],
) -> Anatomy:
    unreadable = _unreadable(config, blocks, names)
    size = _heads(config, blocks[0], names["attention"])
    norm = blocks[0].get_submodule(parts["ln1_out"].path) if "ln1_out" in parts else None
    d_model = int(config.hidden_size)
    kind = "none" if norm is None else "LayerNorm" if is_centring(norm, d_model) else "RMSNorm"
    hidden = parts.get("mlp_pre")
    gated = hidden is not None and hidden.path.rpartition(".")[2] in GATE
    return Anatomy(
        model_type=config.model_type,
        n_layers=len(blocks),
        d_model=d_model,
        n_heads=int(config.num_attention_heads),
        n_kv_heads=size.keys,
        d_head=size.width,
        d_mlp=_width(blocks[0], hidden),
        norm=kind,
        norm_eps=0.0 if norm is None else norm_eps(norm, d_model),
        parallel=parallel,
        gated=gated,
        activation=_activation(config),
        residual_scale=parts["attn_out"].scale,
        sinks=hasattr(getattr(blocks[0], names["attention"]), "sinks"),
        missing=missing,
        missing_weights=unreadable,
    )


def _unreadable(
    config: Any, blocks: nn.ModuleList, names: dict[Sublayer, str]
) -> dict[Sublayer, str]:
    """Why the weight matrices of a sublayer cannot be given for every block."""
    reasons: dict[Sublayer, str] = {}
    for layer, block in enumerate(blocks):
        try:
            projections.heads(block, names["attention"], int(config.num_attention_heads))
        except UnknownLayoutError as reason:
            reasons.setdefault("attention", f"layer {layer}: {reason}")
        try:
            projections.mlp_weights(block, names["mlp"])
        except UnknownLayoutError as reason:
            reasons.setdefault("mlp", f"layer {layer}: {reason}")
    return reasons


def _heads(config: Any, block: nn.Module, attention: str) -> Heads:
    queries = int(config.num_attention_heads)
    try:
        return projections.heads(block, attention, queries)
    except UnknownLayoutError:  # what the configuration says, then
        width = getattr(config, "head_dim", None) or int(config.hidden_size) // queries
        return Heads(queries, getattr(config, "num_key_value_heads", None) or queries, width)


def _width(block: nn.Module, hidden: Part | None) -> int | None:
    if hidden is None:
        return None
    module: Any = block.get_submodule(hidden.path)
    weight = module.weight
    width = module.nf if hasattr(module, "nf") else weight.shape[0]  # GPT-2's Conv1D
    return int(width) // hidden.share


def _activation(config: Any) -> str:
    names = ("hidden_activation", "activation_function", "hidden_act", "activation")
    return str(next((v for n in names if (v := getattr(config, n, None))), "gelu"))
