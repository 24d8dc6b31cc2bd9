"""A model that may be trusted: loaded, its prompts encoded, past the identity gate."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from residcheck.backends import Affine, Backend, Site, open_backend
from residcheck.corpus import Prompts
from residcheck.curves import Curve
from residcheck.errors import LoadError, first_line
from residcheck.measure import gate
from residcheck.measure.probes import rotation_probe
from residcheck.measure.tokens import Encoded, encode
from residcheck.models import LoadedModel, ModelSpec, load
from residcheck.models.quiet import quiet_libraries
from residcheck.progress import Progress, silent
from residcheck.tolerances import tolerance
from residcheck.weights.statistics import raw_statistics

_GATE_TOKENS = 16


@dataclass
class Session:
    """A model that passed the gate, with its prompts: ready to be measured.

    ``stored`` are the curves of the weights as they are stored, taken before a library
    could process them.
    """

    loaded: LoadedModel
    backend: Backend
    encoded: Encoded
    gate_tokens: Int[Tensor, "batch pos"]
    stored: dict[str, Curve] = field(default_factory=dict)

    @cached_property
    def affines(self) -> dict[tuple[int, Site], Affine]:
        """Gain and bias at every norm that a sublayer reads through, on the model's device."""
        anatomy, device = self.backend.anatomy, self.gate_tokens.device
        norms: tuple[Site, ...] = ("ln1_out", "ln2_out")
        found: dict[tuple[int, Site], Affine] = {}
        for site in (site for site in norms if anatomy.has(site)):
            for layer in range(anatomy.n_layers):
                affine = self.backend.affine(layer, site)
                found[layer, site] = Affine(affine.gain.to(device), affine.bias.to(device))
        return found


def open_session(
    spec: ModelSpec,
    prompts: Prompts,
    max_tokens: int | None,
    progress: Progress = silent,
    names: Iterable[str] = (),
) -> Session:
    """Load a model, encode the prompts, and take the model through the identity gate.

    Args:
        names: curves that will be wanted; some are of the weights as they are stored.
    """
    loaded = load(spec, progress)
    config = loaded.model.config.get_text_config()
    encoded = encode(prompts, loaded.tokenizer, config, max_tokens)
    tokens = _gate_tokens(encoded).to(spec.device)
    reference = _plain_logits(loaded, tokens)
    progress(f"reading the weights of {loaded.id}", 0, None)
    stored = _of_stored_weights(loaded, tokens, list(names))
    progress(f"checking the hooks of {loaded.id}", 0, None)
    backend = open_backend(loaded)
    gate.check(backend, tokens, reference, tolerance(spec.dtype))
    return Session(loaded, backend, encoded, tokens, stored)


def _of_stored_weights(
    loaded: LoadedModel, tokens: Int[Tensor, "batch pos"], names: list[str]
) -> dict[str, Curve]:
    from residcheck.backends.plain import PlainBackend

    curves: dict[str, Curve] = {}
    if any(name.endswith("_raw") for name in names):
        curves |= raw_statistics(PlainBackend(loaded), names)
    if "rotation_logit_shift" in names:
        curves |= rotation_probe(loaded, tokens)
    return curves


@torch.inference_mode()
def _plain_logits(
    loaded: LoadedModel, tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos vocab"]:
    try:
        with quiet_libraries():
            logits: Tensor = loaded.model(input_ids=tokens, use_cache=False).logits
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
