"""Faults in what modules do: scales, caps, norms, activations, routers, whole blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from residcheck.backends.ends import final_norm_of
from residcheck.faults.base import Fault, Subject, always

_EPSILON = ("eps", "variance_epsilon")
_ATTENTION_SCALE = ("scaling", "inv_norm_factor", "softmax_scale")
_EXACT = ("GELUActivation", "GELU")
_TANH = ("NewGELUActivation", "GELUTanh", "PytorchGELUTanh", "BloomGelu")
_GELU = (*_EXACT, *_TANH)
_SILU = ("SiLUActivation", "SiLU")
_QK_NORMS = ("q_norm", "k_norm", "q_layernorm", "k_layernorm")
_SEQUENCE = ("use_parallel_residual",)
_LINEAR: tuple[type[nn.Module], ...] = (nn.Linear, transformers.pytorch_utils.Conv1D)
_TF32_DROPPED = 13
"""Bits of float32's mantissa that TF32 does not have."""


def holds(*names: str) -> Callable[[Subject], bool]:
    return lambda subject: any(True for _ in subject.holding(*names))


def setting(value: Any, *names: str) -> Callable[[Subject], None]:
    """Put ``value`` in the place of an attribute wherever a module has it."""

    def apply(subject: Subject) -> None:
        for module, name in list(subject.holding(*names)):
            setattr(module, name, value)

    return apply


def _configured(name: str, without: Any = None) -> Callable[[Subject], bool]:
    return lambda subject: getattr(subject.config, name, without) != without


def _configure(name: str, value: Any) -> Callable[[Subject], None]:
    def apply(subject: Subject) -> None:
        setattr(subject.config, name, value)
        for module, found in subject.holding(name):
            setattr(module, found, value)

    return apply


def _all_norms(subject: Subject) -> Iterator[Any]:
    return (norm for layer in subject.layers for norm in subject.norms(layer))


def _has_epsilon(subject: Subject) -> bool:
    return any(hasattr(norm, name) for norm in _all_norms(subject) for name in _EPSILON)


def _shrink_epsilon(subject: Subject) -> None:
    for norm in _all_norms(subject):
        for name in _EPSILON:
            if hasattr(norm, name):
                setattr(norm, name, getattr(norm, name) / 10)


def _round_output(module: Any) -> None:
    module.register_forward_hook(lambda _module, _args, out: out.bfloat16().to(out.dtype))


def _norm_in_bfloat16(subject: Subject) -> None:
    for norm in _all_norms(subject):
        _round_output(norm)


def _has_norms(subject: Subject) -> bool:
    return any(True for _ in _all_norms(subject))


def _logits_in_bfloat16(subject: Subject) -> None:
    _round_output(subject.model.get_output_embeddings())


def _final_norm(subject: Subject) -> Any:
    return final_norm_of(subject.model, subject.blocks.path)


def _skip_final_norm(subject: Subject) -> None:
    _final_norm(subject).register_forward_hook(lambda _module, args, _out: args[0])


def _activations(subject: Subject, kinds: tuple[str, ...]) -> list[tuple[Any, str]]:
    return [
        (block, path)
        for block in subject.modules
        for path, module in block.named_modules()
        if path and type(module).__name__ in kinds and _is_of(module, kinds)
    ]


def _is_of(module: Any, kinds: tuple[str, ...]) -> bool:
    """torch's own GELU is of both kinds."""
    approximate = getattr(module, "approximate", "none") == "tanh"
    return not (kinds == _EXACT and approximate)


def _activates(kinds: tuple[str, ...]) -> Callable[[Subject], bool]:
    return lambda subject: bool(_activations(subject, kinds))


def _activate(kinds: tuple[str, ...], make: Callable[[], nn.Module]) -> Callable[[Subject], None]:
    def apply(subject: Subject) -> None:
        for block, path in _activations(subject, kinds):
            block.set_submodule(path, make())

    return apply


def _has_scale(subject: Subject) -> bool:
    return any(hasattr(m, name) for a in subject.attentions for m in a.modules()
               for name in (*_ATTENTION_SCALE, "scale_attn"))  # fmt: skip


def _drop_scale(subject: Subject) -> None:
    for module in (m for a in subject.attentions for m in a.modules()):
        for name in (*_ATTENTION_SCALE, "scale_attn"):
            if hasattr(module, name):
                setattr(module, name, 1.0)


def _square_scale(subject: Subject) -> None:
    """Scores divided by the width of a head instead of its root."""
    for module in (m for a in subject.attentions for m in a.modules()):
        for name in _ATTENTION_SCALE:
            if hasattr(module, name):
                setattr(module, name, getattr(module, name) / math.sqrt(subject.anatomy.d_head))
        if hasattr(module, "scale_attn"):
            module.scale_attn *= math.sqrt(subject.anatomy.d_head)


def _normed_queries(subject: Subject) -> list[tuple[Any, str]]:
    found = [(m, name) for a in subject.attentions for m in a.modules() for name in _QK_NORMS]
    return [(m, name) for m, name in found if isinstance(getattr(m, name, None), nn.Module)]


def _drop_qk_norms(subject: Subject) -> None:
    for module, name in _normed_queries(subject):
        setattr(module, name, nn.Identity())


def _skip_middle(subject: Subject) -> None:
    def skip(module: Any, args: Any, kwargs: Any, out: Any) -> Any:
        stream = args[0] if args else kwargs["hidden_states"]
        return (stream, *out[1:]) if isinstance(out, tuple) else stream

    subject.modules[subject.middle].register_forward_hook(skip, with_kwargs=True)


def _routers(subject: Subject) -> list[Any]:
    return [m for m in subject.model.modules() if isinstance(getattr(m, "top_k", None), int)]


def _route_to_one(subject: Subject) -> None:
    for router in _routers(subject):
        router.top_k = 1


def _normalises_routes(subject: Subject) -> bool:
    return any(hasattr(m, "norm_topk_prob") for m in subject.model.modules())


def _flip_route_norm(subject: Subject) -> None:
    for module in subject.model.modules():
        if hasattr(module, "norm_topk_prob"):
            module.norm_topk_prob = not module.norm_topk_prob


def _has_sinks(subject: Subject) -> bool:
    return subject.anatomy.sinks


def _drop_sinks(subject: Subject) -> None:
    for attention in subject.attentions:
        attention.sinks.fill_(-1e4)


def _sequenced(parallel: bool) -> Callable[[Subject], bool]:
    def applies(subject: Subject) -> bool:
        two_norms = "ln2_out" in subject.blocks.parts
        return subject.anatomy.parallel == parallel and two_norms and holds(*_SEQUENCE)(subject)

    return applies


def _rounded(x: Tensor) -> Tensor:
    if x.dtype != torch.float32:
        return x
    half = 1 << (_TF32_DROPPED - 1)
    bits = (x.contiguous().view(torch.int32) + half) & -(1 << _TF32_DROPPED)
    return bits.view(torch.float32)


def _tf32(subject: Subject) -> None:
    def round_input(_module: Any, args: Any) -> Any:
        return (_rounded(args[0]), *args[1:])

    for block in subject.modules:
        for module in filter(lambda found: isinstance(found, _LINEAR), block.modules()):
            module.weight.data.copy_(_rounded(module.weight.data))
            module.register_forward_pre_hook(round_input)


def _in_float32(subject: Subject) -> bool:
    return bool(subject.model.dtype == torch.float32)


def _drops_out(subject: Subject) -> bool:
    return any(isinstance(m, nn.Dropout) and m.p > 0 for m in subject.model.modules())


def _train(subject: Subject) -> None:
    subject.model.train()


def _embedding_norm(subject: Subject) -> bool:
    return holds("word_embeddings_layernorm")(subject)


def _embedding_scaled(subject: Subject) -> bool:
    return getattr(subject.model.get_input_embeddings(), "embed_scale", None) is not None


def _drop_embedding_scale(subject: Subject) -> None:
    module = subject.model.get_input_embeddings()
    if isinstance(module.embed_scale, Tensor):
        module.embed_scale.fill_(1.0)
    else:
        module.embed_scale = 1.0


def _fault(
    name: str, what: str, applies: Callable[[Subject], bool], apply: Callable[[Subject], None]
) -> Fault:
    return Fault(name, what, "model", applies, apply)


MODULES: tuple[Fault, ...] = (
    _fault("norm-epsilon", "epsilon of the norms a tenth of what it is", _has_epsilon,
           _shrink_epsilon),
    _fault("norm-in-bfloat16", "norms give bfloat16", _has_norms, _norm_in_bfloat16),
    _fault("logits-in-bfloat16", "logits rounded to bfloat16", always, _logits_in_bfloat16),
    _fault("final-norm-skipped", "the unembedding reads the stream as it is",
           lambda s: _final_norm(s) is not None, _skip_final_norm),
    _fault("embedding-norm-dropped", "BLOOM's norm after the embedding is missing",
           _embedding_norm, setting(nn.Identity(), "word_embeddings_layernorm")),
    _fault("embedding-scale-lost", "embeddings not multiplied by the root of d_model (Gemma)",
           _embedding_scaled, _drop_embedding_scale),
    _fault("embedding-multiplier-lost", "embedding_multiplier is 1 (Granite)",
           holds("embedding_multiplier"), setting(1.0, "embedding_multiplier")),
    _fault("residual-multiplier-lost", "residual_multiplier is 1 (Granite)",
           holds("residual_multiplier"), setting(1.0, "residual_multiplier")),
    _fault("logit-scale-lost", "logits not multiplied by logit_scale (Cohere)",
           holds("logit_scale"), setting(1.0, "logit_scale")),
    _fault("logits-scaling-lost", "logits not divided by logits_scaling (Granite)",
           _configured("logits_scaling", 1.0), _configure("logits_scaling", 1.0)),
    _fault("attention-scale-missing", "scores not divided by the root of the heads' width",
           _has_scale, _drop_scale),
    _fault("attention-scale-squared", "scores divided by the heads' width, not its root",
           _has_scale, _square_scale),
    _fault("attention-soft-cap-dropped", "scores not capped (Gemma 2)",
           _configured("attn_logit_softcapping"), _configure("attn_logit_softcapping", None)),
    _fault("final-soft-cap-dropped", "logits not capped (Gemma 2 and 3)",
           _configured("final_logit_softcapping"), _configure("final_logit_softcapping", None)),
    _fault("qk-norm-dropped", "queries and keys not normalised",
           lambda s: bool(_normed_queries(s)), _drop_qk_norms),
    _fault("sinks-dropped", "attention cannot rest on nothing (GPT-OSS)", _has_sinks, _drop_sinks),
    _fault("tanh-for-exact-gelu", "the tanh approximation of GELU", _activates(_EXACT),
           _activate(_EXACT, lambda: nn.GELU(approximate="tanh"))),
    _fault("exact-for-tanh-gelu", "GELU instead of its tanh approximation", _activates(_TANH),
           _activate(_TANH, nn.GELU)),
    _fault("relu-for-gelu", "ReLU instead of GELU", _activates(_GELU), _activate(_GELU, nn.ReLU)),
    _fault("gelu-for-silu", "GELU instead of SiLU", _activates(_SILU), _activate(_SILU, nn.GELU)),
    _fault("layer-skipped", "one block hands on the stream as it got it", always, _skip_middle),
    _fault("router-takes-one", "tokens go to one expert instead of several",
           lambda s: bool(_routers(s)), _route_to_one),
    _fault("router-not-normalised", "weights of the chosen experts (not) divided by their sum",
           _normalises_routes, _flip_route_norm),
    _fault("parallel-run-in-sequence", "the MLP of a parallel block reads the attention's output",
           _sequenced(parallel=True), setting(False, *_SEQUENCE)),
    _fault("sequence-run-in-parallel", "the MLP of a sequential block does not see its attention",
           _sequenced(parallel=False), setting(True, *_SEQUENCE)),
    _fault("tf32-products", "matrix products of inputs rounded to 10 bits", _in_float32, _tf32),
    _fault("dropout-left-on", "the model is in training mode", _drops_out, _train),
)  # fmt: skip
