"""A model that may be trusted: loaded, its prompts encoded, past the identity gate."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from residcheck.backends import Affine, Backend, Site, backend_class, open_backend
from residcheck.corpus import Prompts
from residcheck.curves import Curve
from residcheck.errors import LoadError, UnsupportedModelError, first_line
from residcheck.measure import gate
from residcheck.measure.probes import rotation_probe
from residcheck.measure.provenance import absent
from residcheck.measure.shapes import shapes
from residcheck.measure.tokens import Encoded, encode
from residcheck.models import LoadedModel, ModelSpec, load
from residcheck.models.quiet import quiet_libraries
from residcheck.names import STATISTICS, Part
from residcheck.progress import Progress, silent
from residcheck.tolerances import tolerance
from residcheck.weights import gate as weights_gate
from residcheck.weights.statistics import raw_statistics

_GATE_TOKENS = 16
_WEIGHTS: tuple[Part, ...] = ("attention", "mlp")


@dataclass
class Session:
    """A model that passed the gate, with its prompts: ready to be measured.

    ``reference`` are the logits of the plain transformers model on the gate's tokens.
    ``stored`` are the curves of the weights as they are stored, taken before a library
    could process them; ``unstored`` maps those that could not be taken to the reason.
    ``shapes`` are those of hooks and weights, where something is to be measured.
    """

    loaded: LoadedModel
    backend: Backend
    encoded: Encoded
    gate_tokens: Int[Tensor, "batch pos"]
    reference: Float[Tensor, "batch pos vocab"]
    stored: dict[str, Curve] = field(default_factory=dict)
    unstored: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, str] = field(default_factory=dict)

    @cached_property
    def missing(self) -> dict[str, str]:
        """Every curve that this model cannot have, and why."""
        return absent(self.backend, self.loaded.spec) | self.unstored

    @cached_property
    def affines(self) -> dict[tuple[int, Site], Affine]:
        """Gain and bias at every norm that a sublayer reads through, on the layer's device."""
        anatomy = self.backend.anatomy
        norms: tuple[Site, ...] = ("ln1_out", "ln2_out")
        found: dict[tuple[int, Site], Affine] = {}
        for site in (site for site in norms if anatomy.has(site)):
            for layer in range(anatomy.n_layers):
                affine, device = self.backend.affine(layer, site), self.backend.device(layer)
                found[layer, site] = Affine(affine.gain.to(device), affine.bias.to(device))
        return found


def open_session(
    spec: ModelSpec,
    prompts: Prompts,
    max_tokens: int | None,
    progress: Progress = silent,
    names: Iterable[str] = (),
) -> Session:
    """Load a model, encode the prompts, and take the model through the gates.

    Args:
        names: curves that will be wanted; some are of the weights as they are stored, and
            those of weights need the weights gate beside the identity gate.
    """
    backend_class(spec.backend)  # a library that is not there is missed before the model is fetched
    return open_loaded(load(spec, progress), prompts, max_tokens, progress, names)


def open_loaded(
    loaded: LoadedModel,
    prompts: Prompts,
    max_tokens: int | None,
    progress: Progress = silent,
    names: Iterable[str] = (),
    opener: Callable[[LoadedModel], Backend] = open_backend,
) -> Session:
    """The same for a model that is loaded already.

    Args:
        opener: makes the backend, once the plain model's logits and stored weights are known.
    """
    try:
        return _checked(loaded, prompts, max_tokens, progress, list(names), opener)
    except torch.OutOfMemoryError as error:
        raise LoadError(
            f"{loaded.device} ran out of memory while {loaded.id} was checked, on a few tokens",
            "its weights leave too little room: try dtype=bf16, or --device auto",
        ) from error


def _checked(
    loaded: LoadedModel,
    prompts: Prompts,
    max_tokens: int | None,
    progress: Progress,
    wanted: list[str],
    opener: Callable[[LoadedModel], Backend],
) -> Session:
    """The session, once the gates are passed."""
    spec = loaded.spec
    config = loaded.model.config.get_text_config()
    encoded = encode(prompts, loaded.tokenizer, config, max_tokens)
    tokens = _gate_tokens(encoded).to(loaded.device)
    reference = _plain_logits(loaded, tokens)
    progress(f"reading the weights of {loaded.id}", 0, None)
    stored, unstored = _of_stored_weights(loaded, tokens, wanted)
    progress(f"checking the hooks of {loaded.id}", 0, None)
    backend = opener(loaded)
    gate.check(backend, tokens, reference, tolerance(spec.dtype))
    if any(set(_WEIGHTS) & set(STATISTICS[name].parts) for name in wanted if name in STATISTICS):
        progress(f"checking the weights of {loaded.id}", 0, None)
        weights_gate.check(backend, tokens, tolerance(spec.dtype))
    found = shapes(backend, tokens) if wanted else {}
    return Session(loaded, backend, encoded, tokens, reference, stored, unstored, found)


def _of_stored_weights(
    loaded: LoadedModel, tokens: Int[Tensor, "batch pos"], names: list[str]
) -> tuple[dict[str, Curve], dict[str, str]]:
    from residcheck.backends.plain import PlainBackend

    curves: dict[str, Curve] = {}
    reasons: dict[str, str] = {}
    if any(name.endswith("_raw") for name in names):
        curves |= raw_statistics(PlainBackend(loaded), names)
    if "rotation_logit_shift" in names:
        try:
            curves |= rotation_probe(loaded, tokens)
        except UnsupportedModelError as error:
            reasons["rotation_logit_shift"] = error.message
    return curves, reasons


@torch.inference_mode()
def _plain_logits(
    loaded: LoadedModel, tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos vocab"]:
    try:
        with quiet_libraries():
            logits: Tensor = loaded.model(input_ids=tokens, use_cache=False).logits
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = first_line(error)
        raise LoadError(
            f"{loaded.id} loads, but plain transformers cannot run it: {reason}",
            "its configuration may not fit its weights",
        ) from error
    return logits


def _gate_tokens(encoded: Encoded) -> Int[Tensor, "batch pos"]:
    """Two rows of real text, made of the first prompts however short they are."""
    text = [token for ids in encoded.ids[:64] for token in ids[1:]]
    width = encoded.room(_GATE_TOKENS)
    text = (text * (2 * width))[: 2 * width - 2]
    bos, half = encoded.ids[0][0], len(text) // 2
    return torch.tensor([[bos, *text[:half]], [bos, *text[half:]]])
