"""What a fault is, and what it is planted in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from residcheck.backends import Anatomy, Backend, LayerWeights
from residcheck.backends.anatomy import Blocks, dissect
from residcheck.backends.projections import attention_weights, mlp_weights

Where = Literal["model", "library", "taps"]


@dataclass(frozen=True)
class Subject:
    """A loaded transformers model, taken apart; ``processed`` as a backend will run it.

    ``anatomy`` is the backend's, where one is open already.
    """

    model: Any
    blocks: Blocks
    anatomy: Anatomy
    processed: bool = False

    @classmethod
    def of(cls, model: Any, anatomy: Anatomy | None = None, processed: bool = False) -> Subject:
        blocks = dissect(model)
        return cls(model, blocks, anatomy or blocks.anatomy, processed)

    @property
    def config(self) -> Any:
        return self.model.config.get_text_config()

    @property
    def modules(self) -> list[Any]:
        """The blocks."""
        return list(self.blocks.modules)

    @property
    def middle(self) -> int:
        """The layer in which faults of a single layer are."""
        return self.anatomy.n_layers // 2

    @property
    def layers(self) -> range:
        return range(self.anatomy.n_layers)

    @property
    def readable(self) -> bool:
        """Whether queries, keys and values are views of the model's own parameters."""
        found = self.weights(self.middle).attention
        if found is None:
            return False
        parameters = self.blocks.modules[self.middle].parameters()
        own = {parameter.untyped_storage().data_ptr() for parameter in parameters}
        views = (found.W_Q, found.W_K, found.W_V, found.W_O)
        return all(view.untyped_storage().data_ptr() in own for view in views)

    @property
    def has_mlp(self) -> bool:
        return "mlp" not in self.anatomy.missing_weights

    @property
    def attentions(self) -> list[Any]:
        """The attention sublayer of every block."""
        name = self.blocks.names["attention"]
        return [block.get_submodule(name) for block in self.blocks.modules]

    def weights(self, layer: int) -> LayerWeights:
        """Views of a block's matrices: what is done to them in place is done to the model."""
        block, names = self.blocks.modules[layer], self.blocks.names
        attention = mlp = None
        if "attention" not in self.anatomy.missing_weights:
            size = (self.anatomy.n_heads, self.anatomy.model_type)
            attention = attention_weights(block, names["attention"], *size)
        if self.has_mlp:
            mlp = mlp_weights(block, names["mlp"])
        return LayerWeights(attention, mlp)

    def norms(self, layer: int) -> list[Any]:
        """The norm modules that the sublayers of a block read through."""
        paths = {part.path for site, part in self.blocks.parts.items() if site in _NORMS}
        return [self.modules[layer].get_submodule(path) for path in sorted(paths)]

    def holding(self, *names: str) -> Iterator[tuple[Any, str]]:
        """Modules that have one of these attributes set, and which."""
        for module in self.model.modules():
            for name in names:
                if getattr(module, name, None) is not None:
                    yield module, name


_NORMS = ("ln1_out", "ln2_out")


def unchanged(backend: Backend) -> Backend:
    return backend


def nothing(subject: Subject) -> None:
    """Leave the model as it is."""


@dataclass(frozen=True)
class Fault:
    """Something that a model library can get wrong.

    Args:
        name: short, unique, in words joined by hyphens.
        what: what is wrong, in one line.
        where: ``model``, ``library`` or ``taps``: who got it wrong (see the package).
        applies: whether a model has what the fault is about.
        apply: changes the model in place.
        wrap: gives the backend to go on with.
        axes: axes of curves that an equivalent change reorders, and those of random inputs
            that are drawn in the order that it changes.
    """

    name: str
    what: str
    where: Where
    applies: Callable[[Subject], bool]
    apply: Callable[[Subject], None] = nothing
    wrap: Callable[[Backend], Backend] = unchanged
    axes: tuple[str, ...] = ()


def always(subject: Subject) -> bool:
    return True
