"""Which runs may be held against one another: those of one question asked in two ways."""

from __future__ import annotations

from residcheck.curves import PromptInfo, Run
from residcheck.errors import UsageError
from residcheck.names import HORIZON

_HINT = "compare runs of one model on the same prompts; {}"


def refuse_other_weights(one: str, other: str) -> None:
    """Raises :class:`UsageError` where two runs are of other weights."""
    if one != other:
        raise UsageError(
            f"the two are of other weights: {_short(one)} and {_short(other)}",
            _HINT.format("--other-weights compares them all the same"),
        )


def refuse_other_prompts(one: PromptInfo, other: PromptInfo) -> None:
    """Raises :class:`UsageError` where two runs read other tokens."""
    if one.sha256 == other.sha256:
        return
    said = [f"{p.source!r}, {p.count} prompts, {p.tokens:,} tokens, --max-tokens {p.max_tokens}"
            for p in (one, other)]  # fmt: skip
    what = "max_tokens" if one.max_tokens != other.max_tokens else "prompts"
    raise UsageError(
        f"the two were measured with other {what}: {said[0]}; and {said[1]}",
        _HINT.format("measure one of them again with the other's --prompts and --max-tokens"),
    )


def refuse(one: Run, other: Run, *, other_weights: bool = False) -> None:
    """Refuse runs of other weights, prompts, seeds or horizons.

    Another library, version, dtype, device, batch size or processing of weights is what
    comparing is for.

    Raises:
        UsageError: says what differs.
    """
    if not other_weights:
        refuse_other_weights(one.model.weights, other.model.weights)
    refuse_other_prompts(one.prompts, other.prompts)
    shared = one.seeds.keys() & other.seeds.keys()
    if odd := sorted(name for name in shared if one.seeds[name] != other.seeds[name]):
        raise UsageError(
            f"the two were measured with other seeds: {', '.join(odd)}",
            _HINT.format("seeds belong to a version of residcheck: measure both with one"),
        )
    over_horizons = HORIZON.keys() & one.curves.keys() & other.curves.keys()
    if over_horizons and one.horizon is not None and other.horizon is not None:
        if str(one.horizon) != str(other.horizon):
            raise UsageError(
                f"the two were measured with other horizons: {one.horizon}; and {other.horizon}",
                _HINT.format("measure both with one variant"),
            )
        refuse_other_prompts(one.horizon.prompts, other.horizon.prompts)


def _short(weights: str) -> str:
    kind, _, digest = weights.partition(":")
    return f"{kind} {digest[:12]}" if digest else weights
