"""How a model is tapped: through TransformerLens, plain transformers or nnsight.

A backend is a class with the interface of :class:`Backend`; adding one means adding
its name to :func:`open_backend` and to ``residcheck.models.spec.BACKENDS``.
"""

from residcheck.backends.base import SITES as SITES
from residcheck.backends.base import Affine as Affine
from residcheck.backends.base import Anatomy as Anatomy
from residcheck.backends.base import Backend as Backend
from residcheck.backends.base import PostNorm as PostNorm
from residcheck.backends.base import Site as Site
from residcheck.backends.base import Sublayer as Sublayer
from residcheck.backends.base import Tap as Tap
from residcheck.backends.base import Taps as Taps
from residcheck.backends.layer_weights import AttentionWeights as AttentionWeights
from residcheck.backends.layer_weights import LayerWeights as LayerWeights
from residcheck.backends.layer_weights import MLPWeights as MLPWeights
from residcheck.models import LoadedModel


def open_backend(loaded: LoadedModel) -> Backend:
    """The backend that ``loaded.spec`` names, over the loaded model."""
    if loaded.spec.backend == "transformers":
        from residcheck.backends.plain import PlainBackend

        return PlainBackend(loaded)
    if loaded.spec.backend == "nnsight":
        from residcheck.backends.insight import InsightBackend

        return InsightBackend(loaded)
    from residcheck.backends.lens import LensBackend

    return LensBackend(loaded)
