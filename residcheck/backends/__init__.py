"""How a model is tapped: through TransformerLens, plain transformers or nnsight.

A backend is a class with the interface of :class:`Backend`; adding one means adding
its name to :func:`backend_class` and to ``residcheck.models.spec.BACKENDS``.
"""

from collections.abc import Callable

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
from residcheck.errors import UsageError, first_line
from residcheck.models import LoadedModel


def backend_class(name: str) -> Callable[[LoadedModel], Backend]:
    """What opens a model of one of the backends in ``residcheck.models.spec.BACKENDS``.

    Raises:
        UsageError: the library of an optional backend is not installed, or another version.
    """
    if name == "transformers":
        from residcheck.backends.plain import PlainBackend

        return PlainBackend
    if name == "nnsight":
        try:
            from residcheck.backends.insight import InsightBackend
        except ImportError as error:
            raise UsageError(
                f"the backend nnsight cannot be used here: {first_line(error)}",
                "install it with: pip install 'residcheck[nnsight]'",
            ) from error
        return InsightBackend
    from residcheck.backends.lens import LensBackend

    return LensBackend


def open_backend(loaded: LoadedModel) -> Backend:
    """The backend that ``loaded.spec`` names, over the loaded model."""
    return backend_class(loaded.spec.backend)(loaded)
