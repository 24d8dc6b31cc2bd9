"""What is planted: the options of a ``planted:...`` spec, read and checked."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from residcheck.errors import UsageError

PREFIX = "planted:"
FAMILIES = ("gpt2", "llama", "gemma3", "neox")
WITH_BIASES = ("gpt2", "neox")
_HORIZONS = ("horizon", "decay", "toll")
_MOST_LAYERS = 128


def _option(default: Any, meaning: str, choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"meaning": meaning, "choices": choices})


@dataclass(frozen=True)
class Plan:
    """The options of a planted model, each a truth about its streams or weights.

    Everything that is planted is the same at every ordinary token, but for ``spread``, by
    which the sizes of tokens' embeddings differ, and so norms by a tenth of it.
    """

    family: str = _option(
        "", "whose modules are used; gpt2, or llama where a horizon is planted", FAMILIES
    )
    layers: int = _option(12, "how many blocks")
    growth: float = _option(
        1.08, "factor per layer of the stream's norm; of other shapes, of the mean layer"
    )
    shape: str = _option(
        "exponential",
        "how the norm goes with depth",
        ("exponential", "linear", "power", "super"),
    )
    window: tuple[int, int] | None = _option(
        None, "FIRST-LAST: it grows from one of these layers to the next, and else stays"
    )
    cosine: float = _option(0.3, "of what a growing stream's sublayers write with the stream")
    by: str = _option("both", "which sublayers make the norm change", ("both", "attention", "mlp"))
    mid: str = _option(
        "between",
        "apart: attention writes ever more, which the MLP of the same block takes away again",
        ("between", "apart"),
    )
    kept: float = _option(1.0, "share of the stream that each MLP leaves; it takes away the rest")
    reads: str = _option(
        "stream",
        "what sublayers read: all that tokens share, or their embedding's part of it alone",
        ("stream", "embedding"),
    )
    ov: str = _option(
        "tracks", "whether the norms of W_OV go with attn_out or are alike", ("tracks", "flat")
    )
    random_attention: float = _option(
        0.0, "norm of the heads' output on Gaussian inputs, over that of attn_out"
    )
    random_mlp: float = _option(
        0.0, "norm of the MLP's output on Gaussian inputs, over that of mlp_out"
    )
    bias: float = _option(0.02, "b_O's share of attn_out; families with biases")
    active: float = _option(0.1, "share of active hidden neurons in the first layer")
    activation: float = _option(1.0, "factor per layer of that share")
    gaussian: float = _option(
        1.0, "factor per layer of the share that Gaussian inputs activate; with biases"
    )
    positions: str = _option(
        "alike",
        "apart: half of the neurons are active at positions up to 6 and not later; gpt2",
        ("alike", "apart"),
    )
    reading: float = _option(1.0, "factor per layer of the norms of W_Q, W_K and W_in")
    bos: str = _option(
        "alike", "apart: position 0 has an inverted U of its own", ("alike", "apart")
    )
    eraser: tuple[int, int] | None = _option(
        None, "LAYER.HEAD: this head takes away half of what the layer before wrote"
    )
    basis: str = _option(
        "rotated",
        "standard: what tokens share lies on few coordinates",
        ("rotated", "standard"),
    )
    mixing: float = _option(0.0, "norm of what attention copies from other tokens")
    neurons: int = _option(4, "hidden neurons per dimension of the stream")
    spread: float = _option(0.1, "of the log sizes of what tokens do not share")
    horizon: int | None = _option(
        None, "layers back at which each layer reads: with a shorter horizon all is lost"
    )
    decay: float | None = _option(
        None, "layers within which what a shorter horizon loses falls by a factor e"
    )
    toll: float | None = _option(
        None, "of the answer, what each layer adds: a horizon loses it of each layer it touches"
    )

    def __post_init__(self) -> None:
        if not self.family:
            object.__setattr__(self, "family", "llama" if self.by_horizon else "gpt2")
        for option in fields(self):
            choices = option.metadata["choices"]
            if choices and getattr(self, option.name) not in choices:
                raise UsageError(
                    f"planted models have no {option.name}={getattr(self, option.name)}",
                    f"use one of {', '.join(choices)}",
                )
        for wrong, why in _contradictions(self):
            if wrong:
                raise UsageError(f"cannot plant {self}: {why}")

    @property
    def by_horizon(self) -> bool:
        """Whether what is planted is what layers read of earlier ones."""
        return any(getattr(self, name) is not None for name in _HORIZONS)

    @property
    def gated(self) -> bool:
        return self.family in ("llama", "gemma3")

    @property
    def biased(self) -> bool:
        return self.family in WITH_BIASES

    @property
    def parallel(self) -> bool:
        return self.family == "neox"

    def __str__(self) -> str:
        """The spec that says the same: what is not as by default."""
        values = {o.name: (getattr(self, o.name), o.default) for o in fields(self)}
        said = [
            f"{name}={_written(value)}"
            for name, (value, default) in values.items()
            if value != default
        ]
        return PREFIX + ",".join(said)


def is_planted(name: str) -> bool:
    """Whether a model's name asks for a planted one."""
    return name.startswith(PREFIX)


def read_plan(name: str) -> Plan:
    """The plan in ``planted:option=value,...``.

    Raises:
        UsageError: an unknown option, a value it does not take, or a contradiction.
    """
    known = {option.name: option for option in fields(Plan)}
    given: dict[str, Any] = {}
    for part in filter(None, name.removeprefix(PREFIX).split(",")):
        key, _, value = part.partition("=")
        if key not in known:
            raise UsageError(
                f"unknown option {key!r} in {name!r}", f"options are {', '.join(known)}"
            )
        if key in given:
            raise UsageError(f"option {key!r} is given twice in {name!r}")
        given[key] = _read(key, str(known[key].type), value)
    return Plan(**given)


def options() -> list[tuple[str, str, str]]:
    """Name, default and meaning of every option."""
    listed = []
    for option in fields(Plan):
        assert option.default is not MISSING
        choices = option.metadata["choices"]
        default = "" if option.default is None else _written(option.default)
        meaning = option.metadata["meaning"] + (f" ({', '.join(choices)})" if choices else "")
        listed.append((option.name, default, meaning))
    return listed


def _read(key: str, kind: str, value: str) -> Any:
    try:
        if kind.startswith("tuple"):
            first, second = value.replace(".", "-").split("-")
            return int(first), int(second)
        for name, make in (("float", float), ("int", int)):
            if kind.startswith(name):
                return make(value)
    except ValueError as error:
        raise UsageError(f"planted models have no {key}={value}", "see the README") from error
    return value


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return "-".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _contradictions(plan: Plan) -> list[tuple[bool, str]]:
    first, last = plan.window or (-1, plan.layers - 1)
    layer, head = plan.eraser or (1, 1)
    planted = {o.name for o in fields(plan) if getattr(plan, o.name) != o.default}
    horizons = planted & set(_HORIZONS)
    return [
        (not 1 <= plan.layers <= _MOST_LAYERS, f"layers must be 1 to {_MOST_LAYERS}"),
        (not 0 < plan.growth < 4, "growth must be above 0 and below 4"),
        (not -1 <= first < last < plan.layers, "the window must lie within the layers"),
        (not -0.9 <= plan.cosine <= 0.9, "the cosine must be between -0.9 and 0.9"),
        (not 0 <= plan.kept <= 1, "kept is a share"),
        (not 0 < plan.active < 1, "active is a share"),
        (
            plan.eraser is not None and not (1 <= layer < plan.layers and 1 <= head < 4),
            "erasers are heads 1 to 3 from layer 1 on",
        ),
        (plan.mid == "apart" and plan.parallel, "parallel blocks have nothing between"),
        (plan.gaussian != 1 and not plan.biased, "without biases half of the neurons fire"),
        (plan.positions == "apart" and plan.family != "gpt2", "only gpt2 has learned positions"),
        (plan.bos == "apart" and plan.family == "gemma3", "its norms keep BOS as it is"),
        (plan.by_horizon and plan.family != "llama", "horizons are planted in llamas"),
        (
            bool(horizons) and planted != {*horizons} | planted & {"family", "layers"},
            "beside a horizon only layers can be planted",
        ),
        (len(horizons) > 1, f"only one of {', '.join(_HORIZONS)} can be planted"),
        (not 1 <= (plan.horizon or 1) <= plan.layers, "the horizon must be 1 to the layers"),
        (not 0 < (plan.decay or 1) < _MOST_LAYERS, "decay must be above 0"),
    ]
