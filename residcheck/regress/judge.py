"""What a library says of a model against plain transformers: pure functions of arrays.

The library under test is never its own judge, except of what must not change: batches of one
and padding against the batch as it is, hooks against ``run_with_cache``, weights of a block
against the stacked ones, processing twice against once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from residcheck.regress.cells import Library, Seen
from residcheck.regress.expected import (
    STREAM,
    Expected,
    accepted_sites,
    accepted_weights,
    kept,
)
from residcheck.regress.stand.witness.asked import PADDED, SITES
from residcheck.tolerances import Tolerance, tolerance

Verdict = Literal["same", "noise", "different", "missing", "cannot load"]
SIDES = {"left": "left padding", "right": "right padding", "alone": "batch of one"}
TWICE, CACHE, STACKED, LOSS = "processed twice", "run_with_cache", "stacked weights", "loss"
CENTRED = "centred writes"
LOGITS = "log-probabilities"
_FAR = float("inf")


@dataclass(frozen=True)
class Judgement:
    """One quantity of one cell.

    ``size`` is the largest difference in float32, of the reference's size, and ``double`` the
    same in float64 (NaN where there is none); ``layer`` is where, -1 where that has no meaning.
    ``note`` is what a library said, or how an array is wrong.
    """

    quantity: str
    verdict: Verdict
    size: float = float("nan")
    double: float = float("nan")
    layer: int = -1
    note: str = ""

    @property
    def bad(self) -> bool:
        return self.verdict in ("different", "missing", "cannot load")


def decide(size: float, double: float, kind: Callable[[Tolerance], float]) -> Verdict:
    """Same, noise or different, from the difference in float32 and in float64 (NaN: none)."""
    wide, narrow = kind(tolerance("float32")), kind(tolerance("float64"))
    if np.isnan(double):
        return "same" if size <= wide else "different"
    if not double <= narrow:
        return "different"
    return "same" if size <= wide else "noise"


def judge(seen: Seen, reference: Seen, library: Library, processing: str) -> list[Judgement]:
    """Every quantity of a cell in one processing, in the order in which a model computes."""
    if not seen.ok:
        return [Judgement("load", "cannot load", note=seen.status)]
    failed = _load_error(seen, processing)
    if failed:
        return [Judgement("load", "cannot load", note=failed)]
    expected = Expected.of(reference)
    found = [*_sites(seen, expected, library, processing)]
    found.append(_logits(seen, reference, processing))
    found += _invariances(seen, None if library == "transformers" else reference, processing)
    if library != "transformers":
        found.append(_loss(seen, reference, processing))
        found += _same_elsewhere(seen, processing)
        if processing == "processed":
            found.append(_twice(seen))
            if expected.centring:
                found.append(_centred(seen, expected))
    found += _weights(seen, expected, library, processing)
    return [one for one in found if one.note != "not there"]


def _load_error(seen: Seen, processing: str) -> str:
    errors = seen.errors
    for name in ("raw", "processed")[: 1 + (processing != "raw")]:
        for part in (f"float32/{name}", f"float32/{name}/logits"):
            if part in errors and (name == processing or not part.endswith("logits")):
                return errors[part]
    return ""


def _both(seen: Seen, name: str, compare: Callable[[str], float | None]) -> tuple[float, float]:
    """The difference in float32 and in float64, NaN where there is none."""
    sizes = [compare(dtype) for dtype in ("float32", "float64")]
    return tuple(float("nan") if size is None else size for size in sizes)  # type: ignore[return-value]


def vectors_apart(left: Any, right: Any) -> float:
    """The largest difference of a vector (the last axis) over the other's size; infinite for
    other shapes and NaN."""
    if left.shape != right.shape:
        return _FAR
    scale = np.linalg.norm(right, axis=-1)
    size = np.linalg.norm(left.astype(np.float64) - right, axis=-1)
    if not scale.any():
        return 0.0 if not size.any() else _FAR
    ratio = size / np.maximum(scale, 1e-3 * scale.max())
    return float(ratio.max()) if np.isfinite(ratio).all() else _FAR


def logits_apart(left: Any, right: Any) -> float:
    """Root-mean-square difference of log-probabilities over the spread of ``right``'s."""
    if left.shape != right.shape:
        return _FAR
    a, b = _log_probabilities(left), _log_probabilities(right)
    apart = float(np.sqrt(((a - b) ** 2).mean()) / b.std(axis=-1).mean())
    return apart if np.isfinite(apart) else _FAR


def _log_probabilities(logits: Any) -> Any:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _sites(
    seen: Seen, expected: Expected, library: Library, processing: str
) -> Iterator[Judgement]:
    places = [(layer, site) for layer in range(expected.n_layers) for site in SITES]
    places += [(-1, "ln_final.hook_scale"), (-1, "ln_final.hook_normalized")]
    by_site: dict[str, list[Judgement]] = {}
    for layer, site in places:
        if library == "transformers" and site not in expected.plain:
            continue
        name = site if layer < 0 else f"blocks.{layer}.{site}"
        forms = {d: accepted_sites(expected, d, layer, site, processing) for d in _DTYPES}
        if not forms["float32"]:
            continue

        centred = processing != "raw" and expected.centring and site in STREAM

        def compare(
            dtype: str, name: str = name, forms: Any = forms, centred: bool = centred
        ) -> float | None:
            said = seen.get(f"{dtype}/{processing}/{name}")
            if said is None:
                return None
            return min(_apart(said, form, centred) for form in forms[dtype])

        size, double = _both(seen, name, compare)
        if np.isnan(size):
            one = Judgement(site, "missing", layer=layer)
        else:
            one = Judgement(site, decide(size, double, _token), size, double, layer)
        by_site.setdefault(site, []).append(one)
    for ones in by_site.values():
        yield first_bad(ones)


_DTYPES = ("float32", "float64")


def _token(row: Tolerance) -> float:
    return row.token


def _logit(row: Tolerance) -> float:
    return row.logits


def _apart(left: Any, right: Any, centred: bool) -> float:
    if centred:
        left = left - left.mean(axis=-1, keepdims=True)
    if left.size == right.size:  # heads apart or side by side, rows apart or one after another
        left = left.reshape(right.shape)
    return vectors_apart(left, right)


def first_bad(ones: list[Judgement]) -> Judgement:
    """Of one quantity in all layers: the first layer that is bad, or the largest difference."""
    bad = [one for one in ones if one.bad]
    if bad:
        return bad[0]
    noisy = [one for one in ones if one.verdict == "noise"]
    return max(noisy or ones, key=lambda one: one.size)


def _logits(seen: Seen, reference: Seen, processing: str) -> Judgement:
    def compare(dtype: str) -> float | None:
        key = f"{dtype}/{processing}/logits"
        if key not in seen:
            return None
        return logits_apart(seen[key], reference[f"{dtype}/raw/logits"])

    size, double = _both(seen, "logits", compare)
    return Judgement(LOGITS, decide(size, double, _logit), size, double)


def _invariances(seen: Seen, under: Seen | None, processing: str) -> Iterator[Judgement]:
    for side, quantity in SIDES.items():
        name = f"{side}.logits"
        raised = seen.errors.get(f"float32/{processing}/{name}")
        if raised:
            yield Judgement(quantity, "different", _FAR, note=raised)
            continue

        def compare(dtype: str, name: str = name, side: str = side) -> float | None:
            key, whole = f"{dtype}/{processing}/{name}", f"{dtype}/{processing}/logits"
            if key not in seen or whole not in seen:
                return None
            if under is not None and _not_finite(under, f"{dtype}/raw/{name}"):
                return None  # transformers' own, on which the library builds
            return logits_apart(seen[key], _unpadded(seen[whole], side))

        size, double = _both(seen, name, compare)
        yield Judgement(quantity, decide(size, double, _logit), size, double)


def _not_finite(seen: Seen, name: str) -> bool:
    return name in seen and not bool(np.isfinite(seen[name]).all())


def _unpadded(logits: Any, side: str) -> Any:
    if side == "alone":
        return logits.reshape(-1, logits.shape[-1])
    return np.concatenate([logits[0, : logits.shape[1] - PADDED], logits[1]])


def _loss(seen: Seen, reference: Seen, processing: str) -> Judgement:
    raised = seen.errors.get(f"float32/{processing}/loss")
    if raised:
        return Judgement(LOSS, "different", _FAR, note=raised)
    ids = reference.tokens

    def compare(dtype: str) -> float | None:
        key = f"{dtype}/{processing}/loss"
        if key not in seen:
            return None
        said = _log_probabilities(reference[f"{dtype}/raw/logits"])[:, :-1]
        true = -np.take_along_axis(said, ids[:, 1:, None], axis=-1).mean()
        return float(abs(seen[key].mean() - true) / true)

    size, double = _both(seen, "loss", compare)
    return Judgement(LOSS, decide(size, double, lambda row: row.curve), size, double)


def _same_elsewhere(seen: Seen, processing: str) -> Iterator[Judgement]:
    """What can be had in two ways must be the same either way."""
    prefix = f"float32/{processing}/"
    raised = seen.errors.get(f"{prefix}cache")
    if raised:
        yield Judgement(CACHE, "different", _FAR, note=raised)
    else:
        yield _pairs(seen, prefix, "cache.", CACHE)
    yield _pairs(seen, prefix, "stacked.", STACKED)


def _pairs(seen: Seen, prefix: str, mark: str, quantity: str) -> Judgement:
    worst = Judgement(quantity, "same", 0.0)
    for name in seen.names:
        if not name.startswith(prefix + mark):
            continue
        rest = name.removeprefix(prefix + mark)
        twin = prefix + (rest if mark == "cache." else _in_block(rest))
        if twin not in seen or seen.same(name, twin):
            continue
        size = vectors_apart(seen[name], seen[twin])
        if not size <= max(worst.size, tolerance("float32").token):
            worst = Judgement(quantity, "different", size, note=rest)
    return worst


def _in_block(stacked: str) -> str:
    layer, _, name = stacked.partition(".")
    return f"blocks.{layer}.{'attn' if name[2:] in 'QKVO' else 'mlp'}.{name}"


def _twice(seen: Seen) -> Judgement:
    raised = seen.errors.get("float32/twice") or seen.errors.get("float32/twice/logits")
    if raised:
        return Judgement(TWICE, "different", _FAR, note=raised)

    def compare(dtype: str) -> float | None:
        if f"{dtype}/twice/logits" not in seen or f"{dtype}/processed/logits" not in seen:
            return None
        return logits_apart(seen[f"{dtype}/twice/logits"], seen[f"{dtype}/processed/logits"])

    size, double = _both(seen, "twice", compare)
    if np.isnan(size):
        return Judgement(TWICE, "same", note="not there")
    return Judgement(TWICE, decide(size, double, _logit), size, double)


def _centred(seen: Seen, expected: Expected) -> Judgement:
    """Processing takes the mean out of what is written to a stream that LayerNorm reads."""
    worst = Judgement(CENTRED, "same", 0.0)
    for layer in range(expected.n_layers):
        for site in ("hook_attn_out", "hook_mlp_out"):
            x = seen.get(f"float32/processed/blocks.{layer}.{site}")
            if x is None:
                continue
            rest = x - x.mean(axis=-1, keepdims=True)
            size = vectors_apart(x, rest)
            if not size <= max(worst.size, tolerance("float32").token):
                worst = Judgement(CENTRED, "different", size, layer=layer, note=site)
    return worst


def _weights(
    seen: Seen, expected: Expected, library: Library, processing: str
) -> Iterator[Judgement]:
    for quantity in kept(library):
        ones: list[Judgement] = []
        for layer in range(expected.n_layers):
            forms = {d: accepted_weights(expected, d, layer, quantity, processing) for d in _DTYPES}
            ones += _weight(seen, forms, layer, quantity, processing)
        if ones:
            yield first_bad(ones)


def _weight(
    seen: Seen, forms: dict[str, list[Any]], layer: int, quantity: str, processing: str
) -> Iterator[Judgement]:
    part = "attn" if quantity[2:] in "QKVO" else "mlp"
    name = f"blocks.{layer}.{part}.{quantity}"
    there = f"float32/{processing}/{name}" in seen
    if not forms["float32"]:  # the architecture has none, or residcheck cannot say
        return
    if not there:
        if all(form.any() for form in forms["float32"]):
            yield Judgement(quantity, "missing", layer=layer)
        return

    def compare(dtype: str) -> float | None:
        key = f"{dtype}/{processing}/{name}"
        if key not in seen:
            return None
        return min(weights_apart(seen[key], form) for form in forms[dtype])

    size, double = _both(seen, name, compare)
    shapes = {form.shape for form in forms["float32"]}
    shape = seen[f"float32/{processing}/{name}"].shape
    note = "" if shape in shapes else f"shape {list(shape)}, not {list(max(shapes))}"
    yield Judgement(quantity, decide(size, double, _token), size, double, layer, note)


def weights_apart(left: Any, right: Any) -> float:
    """The largest difference of a row over the typical size of a row of ``right``."""
    if left.shape != right.shape:
        return _FAR
    rows = np.linalg.norm(right, axis=-1)
    size = np.linalg.norm(left.astype(np.float64) - right, axis=-1).max()
    typical = float(np.sqrt((rows**2).mean()))
    if typical == 0:
        return 0.0 if size == 0 else _FAR
    return float(size / typical) if np.isfinite(size) else _FAR
