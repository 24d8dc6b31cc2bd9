"""Since which version, until which, and in which models: what is wrong, once.

One fault shows in many quantities. Where a library computes something else, what counts is the
first tensor that differs: everything after it follows. Where it computes what it should, each
wrong hook or weight counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from residcheck.regress.causes import UNTRACED, Cause, cause_of
from residcheck.regress.cells import Cell, Library
from residcheck.regress.conventions import is_convention, is_refusal
from residcheck.regress.judge import LOGITS, LOSS, Judgement
from residcheck.regress.stand.witness.asked import FINAL, SITES

Judged = Mapping[Cell, Mapping[str, Sequence[Judgement]]]
"""Cell to processing to judgements."""
_ORDER = {site: n for n, site in enumerate((*SITES, *FINAL))}
LOAD = "load"


@dataclass(frozen=True)
class Span:
    """Neighbouring versions that have a fault. ``before`` and ``after`` are the nearest ones
    without it that load the model; empty where there is none."""

    first: str
    last: str
    before: str
    after: str

    def __str__(self) -> str:
        return self.first if self.first == self.last else f"{self.first} to {self.last}"


@dataclass(frozen=True)
class Finding:
    """A fault. ``worst`` is its largest judgement, in ``model``, at the last bad version.

    Without a known cause it is one quantity over one span; with one it is all that the cause
    explains.
    """

    library: Library
    quantities: tuple[str, ...]
    kind: str
    span: Span
    models: tuple[str, ...]
    processings: tuple[str, ...]
    worst: Judgement
    model: str
    newest: bool
    cause: str = UNTRACED

    @property
    def quantity(self) -> str:
        """That of the largest judgement."""
        return self.worst.quantity

    @property
    def key(self) -> str:
        """Names it: of the findings of a run no two have one."""
        return (
            f"{self.library} {self.quantity} {self.model} {self.kind} "
            f"{self.span.first} {self.span.last}"
        )


def roots(judgements: Iterable[Judgement]) -> list[Judgement]:
    """What is bad, without what follows from it."""
    bad = [one for one in judgements if one.bad]
    sites = [one for one in bad if one.quantity in _ORDER and one.verdict == "different"]
    computed = any(
        one.verdict == "different" and one.quantity in (LOGITS, "hook_resid_post") for one in bad
    )
    if not computed:
        return bad
    first = min(sites, key=_moment, default=None)
    follows = {LOGITS, LOSS} if first is not None else {LOSS}
    return [
        one for one in bad if one is first or (one not in sites and one.quantity not in follows)
    ]


def shown(cell: Cell, by_processing: Mapping[str, Sequence[Judgement]]) -> Judgement:
    """The one judgement that a table shows of a cell: the worst that is a finding."""
    kept = [chosen_apart(cell, *item) for item in by_processing.items()]
    everything = [one for judgements in kept for one in judgements]
    bad = [one for judgements in kept for one in roots(judgements)]
    if bad:
        return max(bad, key=lambda one: (one.quantity == LOAD, _size(one)))
    noisy = [one for one in everything if one.verdict == "noise"]
    if noisy:
        return max(noisy, key=_size)
    return max((one for one in everything if not one.bad), key=_size)


def chosen_apart(cell: Cell, processing: str, judgements: Iterable[Judgement]) -> list[Judgement]:
    """Without conventions: what differs by choice is not where a fault starts."""
    return [one for one in judgements if not is_convention(cell, processing, one)]


def _moment(one: Judgement) -> tuple[int, int]:
    layer = one.layer if one.layer >= 0 else len(_ORDER) * 1000
    return layer, _ORDER[one.quantity]


def findings(
    judged: Judged, versions: Mapping[Library, Sequence[str]], causes: Sequence[Cause] = ()
) -> list[Finding]:
    """All findings, those of the newest versions first; conventions are none.

    Args:
        versions: of each library, oldest first.
        causes: what is known: models that one quantity fails in for two reasons are two
            findings, and all that one cause explains is one.
    """
    members: dict[tuple[Library, str, str, str], list[Member]] = {}
    for (library, model, processing, quantity, kind), states in _histories(judged).items():
        for span, worst in _spans(versions[library], states):
            why = cause_of(causes, library, quantity, kind, span.first, span.last, model)
            member = (span, model, processing, worst)
            members.setdefault((library, quantity, kind, why), []).append(member)
    alike: dict[tuple[object, ...], list[Finding]] = {}
    for (library, quantity, kind, why), everyone in members.items():
        for span, group in _merged(everyone, list(versions[library])):
            one = _finding(library, kind, span, group, versions, why)
            same = (quantity, kind, span) if why == UNTRACED else (why, one.newest)
            alike.setdefault((library, *same), []).append(one)
    found = [_joined(ones, list(versions[ones[0].library])) for ones in alike.values()]
    order = {library: list(names) for library, names in versions.items()}
    return sorted(
        found,
        key=lambda f: (not f.newest, f.library, -order[f.library].index(f.span.last), f.key),
    )


def _merged(members: Sequence[Member], versions: list[str]) -> list[tuple[Span, list[Member]]]:
    """Members with one span, and those whose span may be that one.

    A model that no neighbouring version loads says nothing about when the fault came or went.
    """

    def known(member: Member) -> int:
        return bool(member[0].before) + bool(member[0].after)

    def length(member: Member) -> int:
        return versions.index(member[0].last) - versions.index(member[0].first)

    groups: list[list[Member]] = []
    for member in sorted(members, key=lambda m: (-known(m), -length(m), m[1], m[2])):
        home = _home(member, groups, versions)
        if home is None:
            groups.append([member])
        else:
            home.append(member)
    return [(_union(group, versions), group) for group in groups]


def _home(
    member: Member, groups: Sequence[list[Member]], versions: list[str]
) -> list[Member] | None:
    """The group whose span a member's may be: that ends nearest, and then the longest."""
    place = versions.index

    def nearness(group: list[Member]) -> tuple[int, int]:
        span = _union(group, versions)
        return -abs(place(span.last) - place(member[0].last)), place(span.last) - place(span.first)

    fitting = [g for g in groups if _within(member[0], _union(g, versions), versions)]
    return max(fitting, key=nearness, default=None)


def _within(span: Span, other: Span, versions: list[str]) -> bool:
    place = versions.index
    if span.before or place(span.first) < place(other.first):
        starts = span.first == other.first
    else:
        starts = place(span.first) <= place(other.last)
    closed = span.after or versions[-1] in (
        span.last,
        other.last,
    )  # of the newest, only what is seen
    if closed or place(span.last) > place(other.last):
        return starts and span.last == other.last
    return starts and place(span.last) >= place(other.first)


def _union(group: Sequence[Member], versions: list[str]) -> Span:
    """From the first to the last bad version, and the nearest good ones."""
    return _over([member[0] for member in group], versions)


def _over(spans: Sequence[Span], versions: list[str]) -> Span:
    place = versions.index
    first = min((span.first for span in spans), key=place)
    last = max((span.last for span in spans), key=place)
    before = [x for span in spans if (x := span.before) and place(x) < place(first)]
    after = [x for span in spans if (x := span.after) and place(x) > place(last)]
    return Span(first, last, max(before, key=place, default=""), min(after, key=place, default=""))


def _joined(ones: Sequence[Finding], versions: list[str]) -> Finding:
    """What one cause explains: the largest of it, with all quantities, models and versions."""

    def all_of(field: str) -> tuple[str, ...]:
        return tuple(sorted({name for one in ones for name in getattr(one, field)}))

    span = _over([one.span for one in ones], versions)
    worst = max(ones, key=lambda one: (_size(one.worst), one.key))
    return replace(
        worst,
        quantities=tuple(sorted(all_of("quantities"), key=_place)),
        span=span,
        models=all_of("models"),
        processings=all_of("processings")[::-1],
    )


def _place(quantity: str) -> tuple[int, str]:
    return _ORDER.get(quantity, len(_ORDER)), quantity


def _finding(
    library: Library,
    kind: str,
    span: Span,
    members: Sequence[Member],
    versions: Mapping[Library, Sequence[str]],
    cause: str,
) -> Finding:
    _, model, _, worst = max(members, key=lambda m: (_size(m[3]), m[1]))
    return Finding(
        library,
        (worst.quantity,),
        kind,
        span,
        tuple(sorted({name for _, name, _, _ in members})),
        tuple(sorted({processing for _, _, processing, _ in members}, reverse=True)),
        worst,
        model,
        span.last == versions[library][-1],
        cause,
    )


def _size(one: Judgement) -> float:
    return one.size if one.size == one.size else 0.0


Member = tuple[Span, str, str, Judgement]
"""A span, the model and processing that it was seen in, and the worst of it."""
History = tuple[Library, str, str, str, str]
_States = dict[str, Judgement | None]


def _histories(judged: Judged) -> dict[History, _States]:
    """Of every quantity that was ever bad: version to what was bad, or None where it was good.

    Versions that do not load the model, or refuse it, are absent.
    """
    bad: dict[History, _States] = {}
    loads: dict[tuple[Library, str, str], list[str]] = {}
    for cell, by_processing in judged.items():
        for processing, judgements in by_processing.items():
            failed = next((one for one in judgements if one.quantity == LOAD), None)
            if failed is None:
                loads.setdefault((cell.library, cell.model, processing), []).append(cell.version)
            elif is_refusal(failed.note):
                continue
            for one in roots(chosen_apart(cell, processing, judgements)):
                history = (cell.library, cell.model, processing, one.quantity, _kind(one))
                bad.setdefault(history, {})[cell.version] = one
    for history, states in bad.items():
        for version in loads.get(history[:3], ()):
            states.setdefault(version, None)
    return bad


def _kind(one: Judgement) -> str:
    if one.quantity == LOAD:
        return re.sub(r"\d+", "N", one.note.splitlines()[0])[:80]
    if one.note.partition(":")[0].endswith(("Error", "Exception")):
        return "raises " + one.note.partition(":")[0]
    return one.verdict


def _spans(
    versions: Sequence[str], states: Mapping[str, Judgement | None]
) -> list[tuple[Span, Judgement]]:
    """Runs of bad versions, absent ones between them passed over."""
    there = [version for version in versions if version in states]
    spans: list[tuple[Span, Judgement]] = []
    start = 0
    while start < len(there):
        if states[there[start]] is None:
            start += 1
            continue
        end = start
        while end + 1 < len(there) and states[there[end + 1]] is not None:
            end += 1
        before = there[start - 1] if start else ""
        after = there[end + 1] if end + 1 < len(there) else ""
        worst = states[there[end]]
        assert worst is not None
        spans.append((Span(there[start], there[end], before, after), worst))
        start = end + 1
    return spans
