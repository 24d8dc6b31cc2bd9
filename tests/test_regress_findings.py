"""Findings: since which version, until which, in which models, and what follows from what."""

from __future__ import annotations

from collections.abc import Sequence

from residcheck import zoo
from residcheck.regress.causes import UNTRACED, Cause, known
from residcheck.regress.cells import LIBRARIES, Cell
from residcheck.regress.findings import Finding, findings, roots, shown
from residcheck.regress.judge import Judgement, Verdict

VERSIONS = {"bridge": ["3.9.0", "3.10.0", "4.0.0", "4.1.0"], "hooked": [], "transformers": []}


def one(quantity: str, verdict: Verdict = "different", layer: int = 0, note: str = "") -> Judgement:
    return Judgement(quantity, verdict, 0.5, 0.5, layer, note)


GOOD = Judgement("hook_attn_out", "same", 1e-7, 1e-15, 0)
BAD = one("hook_attn_out")


def found(
    rows: dict[str, Sequence[Judgement | None]], causes: Sequence[Cause] = ()
) -> list[Finding]:
    """Findings of models, each with one judgement per version."""
    judged = {
        Cell("bridge", version, model): {"raw": [judgement]}
        for model, row in rows.items()
        for version, judgement in zip(VERSIONS["bridge"], row, strict=True)
        if judgement is not None
    }
    return findings(judged, VERSIONS, causes)  # type: ignore[arg-type]


def spans(rows: dict[str, Sequence[Judgement | None]]) -> list[tuple[str, ...]]:
    return [
        (f.span.first, f.span.last, f.span.before, f.span.after, *f.models) for f in found(rows)
    ]


def test_a_fault_has_a_first_and_a_last_version_and_neighbours_without_it() -> None:
    assert spans({"a": [GOOD, BAD, BAD, GOOD]}) == [("3.10.0", "4.0.0", "3.9.0", "4.1.0", "a")]
    assert not found({"a": [GOOD, BAD, BAD, GOOD]})[0].newest


def test_a_fault_that_comes_back_is_two_findings_the_newest_first() -> None:
    assert spans({"a": [BAD, GOOD, GOOD, BAD]}) == [
        ("4.1.0", "4.1.0", "4.0.0", "", "a"),
        ("3.9.0", "3.9.0", "", "3.10.0", "a"),
    ]


def test_versions_that_do_not_load_a_model_are_passed_over() -> None:
    crash = Judgement("load", "cannot load", note="KeyError: 'x' (y.py:1)")
    both = spans({"a": [GOOD, BAD, crash, BAD]})
    assert ("3.10.0", "4.1.0", "3.9.0", "", "a") in both
    assert ("4.0.0", "4.0.0", "3.10.0", "4.1.0", "a") in both
    assert len(both) == 2


def test_a_refusal_is_no_finding() -> None:
    refusal = Judgement("load", "cannot load", note="NotImplementedError: X is not supported")
    assert found({"a": [refusal, refusal, GOOD, GOOD]}) == []


def test_models_with_one_fault_over_one_span_are_one_finding() -> None:
    rows = {"a": [GOOD, BAD, BAD, GOOD], "b": [GOOD, BAD, BAD, GOOD], "c": [GOOD, BAD, GOOD, GOOD]}
    assert sorted(spans(rows)) == [
        ("3.10.0", "3.10.0", "3.9.0", "4.0.0", "c"),
        ("3.10.0", "4.0.0", "3.9.0", "4.1.0", "a", "b"),
    ]


def test_the_order_of_cells_does_not_matter() -> None:
    rows = {"a": [GOOD, BAD, BAD, GOOD], "b": [BAD, BAD, BAD, BAD]}
    assert found(rows) == found(dict(reversed(rows.items())))


def test_what_follows_from_a_wrong_computation_is_left_out() -> None:
    """Attention is wrong in layer 1; weights and padding are faults of their own."""
    bad = [
        one("attn.hook_z", layer=1),
        one("hook_attn_out", layer=1),
        one("hook_resid_pre", layer=2),
        one("hook_mlp_out", layer=1),
        one("hook_resid_post", layer=1),
        one("ln_final.hook_normalized", layer=-1),
        one("log-probabilities", layer=-1),
        one("loss", layer=-1),
        one("left padding", layer=-1),
        one("W_Q"),
        one("hook_resid_mid", "missing"),
    ]
    kept = {"attn.hook_z", "left padding", "W_Q", "hook_resid_mid"}
    assert {judgement.quantity for judgement in roots([GOOD, *bad])} == kept


def test_hooks_that_lie_about_a_right_computation_count_each() -> None:
    bad = [one("hook_attn_out"), one("hook_mlp_out")]
    assert roots([*bad, Judgement("log-probabilities", "same", 0, 0)]) == bad


def test_wrong_logits_behind_a_right_stream_are_a_fault_of_their_own() -> None:
    bad = [one("log-probabilities", layer=-1), one("loss", layer=-1)]
    assert roots([GOOD, *bad]) == bad[:1]


def test_the_table_shows_the_worst_finding_then_noise_then_what_is_same() -> None:
    cell = Cell("bridge", "4.1.0", "a")
    noise = Judgement("loss", "noise", 1e-3, 1e-9)
    assert shown(cell, {"raw": [GOOD, noise], "processed": [BAD]}) is BAD
    assert shown(cell, {"raw": [GOOD, noise]}) is noise
    assert shown(cell, {"raw": [GOOD]}) is GOOD


def test_a_model_that_a_neighbour_cannot_load_joins_those_it_can() -> None:
    crash = Judgement("load", "cannot load", note="NotImplementedError: not yet")
    rows = {"a": [BAD, BAD, BAD, GOOD], "late": [crash, crash, BAD, GOOD]}
    rows |= {"gone": [BAD, BAD, crash, crash], "new": [GOOD, GOOD, BAD, GOOD]}
    assert sorted(spans(rows)) == [
        ("3.9.0", "4.0.0", "", "4.1.0", "a", "gone", "late"),
        ("4.0.0", "4.0.0", "3.10.0", "4.1.0", "new"),
    ]


def test_two_causes_of_one_quantity_are_two_findings() -> None:
    rows = {name: [GOOD, BAD, BAD, GOOD] for name in "abc"}
    one, other = found(rows, [Cause("x", "bridge", models=("b",)), Cause("y", "hooked")])
    assert sorted([(one.cause, one.models), (other.cause, other.models)]) == [
        (UNTRACED, ("a", "c")),
        ("x", ("b",)),
    ]


def test_all_that_one_cause_explains_is_one_finding() -> None:
    weight = one("W_in")
    rows = {"a": [BAD, BAD, GOOD, GOOD], "b": [weight, GOOD, GOOD, GOOD], "c": [weight] * 4}
    cause = Cause("x", "bridge", ("W_in", "hook_attn_out"), until="3.10.0")
    late, early = found(rows, [cause])
    assert (late.cause, late.models, late.newest) == (UNTRACED, ("c",), True)
    assert (early.cause, early.models) == ("x", ("a", "b"))
    assert early.quantities == ("hook_attn_out", "W_in")
    assert (early.span.first, early.span.last, early.span.after) == ("3.9.0", "3.10.0", "4.0.0")


def test_versions_bound_a_cause() -> None:
    cause = Cause("x", "bridge", since="3.10.0", until="4.0.0")
    assert cause.explains("bridge", "W_in", "different", "3.10.0", "4.0.0", "a")
    assert not cause.explains("bridge", "W_in", "different", "3.9.0", "4.0.0", "a")
    assert not cause.explains("bridge", "W_in", "different", "3.10.0", "4.1.0", "a")


def test_the_causes_that_are_shipped_are_of_known_libraries_and_models() -> None:
    assert known()
    for cause in known():
        assert cause.library in LIBRARIES
        assert set(cause.models) <= set(zoo.MODELS)
        assert cause.why
