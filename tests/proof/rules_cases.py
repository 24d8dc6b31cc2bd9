"""The decision rules with what is planted for each: true, false, and on the boundary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from proof import rules_growth as growth
from proof import rules_structure as structure
from proof import rules_weights as weights
from proof.simulate import Drawn, Rng

Draw = Callable[[Rng, int, int, float], Drawn]
Sizes = tuple[tuple[int, int], ...]
EVERY: Sizes = tuple((prompts, layers) for prompts in (8, 16, 64) for layers in (12, 24, 48))
WEIGHTS: Sizes = ((8, 12), (8, 24), (8, 48))
"""Of rules about weights alone, which no prompts go into."""
XL_SIZES: Sizes = ((16, 48), (64, 48))
USUAL = (16, 24)
"""Where the smallest effect is looked for, or else at the first size of a case."""
TRUE, FALSE, BOUNDARY = "true", "false", "on the boundary"


@dataclass(frozen=True)
class Case:
    """A claim, the effect that is planted, and its sizes.

    Args:
        name: the claim's, and which variant of it.
        claim: its id.
        effect: what the numbers mean, in words.
        draw: from a generator, prompts, layers and an effect to what is measured.
        true, false, boundary: effects; None where there is no such scenario.
        grid: effects for which the claim is true, from the boundary on.
        halved: half of the prompts choose a window.
        model: a name of which something was published.
        sizes: prompts and layers; where the claim needs more prompts it does not apply.
        slow: a third of the repetitions must do.
        unknown: estimates whose value over all prompts is not known.
    """

    name: str
    claim: str
    effect: str
    draw: Draw
    true: float | None
    false: float | None
    boundary: float | None = None
    grid: tuple[float, ...] = ()
    halved: bool = True
    model: str = "simulated"
    sizes: Sizes = EVERY
    slow: bool = False
    unknown: tuple[str, ...] = ()

    def __reduce__(self) -> tuple[Callable[[str], Case], tuple[str]]:
        """Goes to another process by its name, since functions made by functions cannot."""
        return case_of, (self.name,)

    @property
    def planted(self) -> dict[str, float]:
        """The effects by the truth of the claim."""
        effects = {TRUE: self.true, FALSE: self.false, BOUNDARY: self.boundary}
        return {truth: value for truth, value in effects.items() if value is not None}


UNKNOWN = ("effective horizon", "share of pairs of horizons that fall")
"""Of single prompts, whose curves are rougher than that of all."""
MARGINS = (0.9, 0.75, 0.6, 0.45, 0.3, 0.15, 0.0)
OFF = "rate off by margins"
STEPS = (0.01, 0.02, 0.04, 0.06, 0.08, 0.12)


def same(name: str, draw: Draw) -> Case:
    """Rates that count as the same within a margin."""
    return Case(name, name, OFF, draw, 0.3, 2.0, 1.0, MARGINS)


CASES = (
    Case(
        "growth-exponential", "growth-exponential", "log rate", growth.growing,
        0.08, 0.0, 0.005, STEPS,
    ),
    Case(
        "growth-exponential, linear growth", "growth-exponential", "log growth end to end",
        growth.lines, None, 2.0,
    ),
    Case(
        "growth-exponential, square root", "growth-exponential", "log growth end to end",
        growth.roots, None, 1.5,
    ),
    Case(
        "growth-exponential, published rate", "growth-exponential", "factor per layer",
        growth.published, 1.045, 1.055, 1.05, (1.0495, 1.049, 1.048, 1.047, 1.046, 1.045),
        model="gpt2-xl", halved=False, sizes=XL_SIZES,
    ),
    Case(
        "growth-shape", "growth-shape", "change of the log rate", growth.bent,
        0.1, 0.9, 0.5, (0.45, 0.4, 0.3, 0.2, 0.1), halved=False,
    ),
    Case(
        "growth-distribution", "growth-distribution", "share of layers that go down",
        growth.stepping, 0.0, 0.33, None, (0.1, 0.05, 0.0), slow=True,
    ),
    Case(
        "growth-ratio-constant", "growth-ratio-constant", "rate over the tokens' 5 % quantile",
        growth.alike, 1.5, 0.6, 1.0, (1.02, 1.05, 1.1, 1.2, 1.4, 1.7), slow=True,
    ),
    Case(
        "bos-anomaly", "bos-anomaly", "standard deviations", growth.first_position,
        5.0, 2.0, 3.0, (3.1, 3.3, 3.6, 4.0, 5.0), halved=False, slow=True,
    ),
    same("mid-between", growth.middles),
    same("sublayers-grow", growth.sublayers),
    Case(
        "correlated-addition", "correlated-addition", "share from uncorrelated outputs",
        growth.adding, 0.3, 0.7, 0.5, (0.48, 0.45, 0.4, 0.35, 0.25), slow=True,
    ),
    same("ov-tracks-attn-out", weights.ov_weights),
    Case(
        "bo-negligible", "bo-negligible", "log distance below the bound", weights.biases,
        0.5, -0.5, 0.0, (0.02, 0.05, 0.1, 0.2, 0.4), halved=False,
    ),
    Case(
        "ov-random-input", "ov-random-input", "factor", weights.ov_inputs,
        1.3, 0.8, 1.0, (1.01, 1.02, 1.05, 1.1, 1.2),
    ),
    Case(
        "ov-random-input, published factor", "ov-random-input", "factor",
        weights.ov_inputs_published, 5.0, 6.0, 5.5, (5.45, 5.4, 5.3, 5.2, 5.0),
        model="gpt2-xl", halved=False, sizes=XL_SIZES,
    ),
    Case(
        "frobenius-expectation", "frobenius-expectation", "one matrix off by",
        weights.theorem, 0.0, 0.1, None, halved=False, sizes=WEIGHTS,
    ),
    Case(
        "reading-writing", "reading-writing", "reading rate over writing rate", weights.reading,
        0.0, 1.0, 0.5, (0.4, 0.3, 0.2, 0.1, 0.0), halved=False, sizes=WEIGHTS,
    ),
    same("mlp-random-input", weights.mlp_inputs),
    Case(
        "activation-rate", "activation-rate", "log rate", growth.activating,
        0.06, 0.0, 0.005, STEPS,
    ),
    Case(
        "activation-rate, linear growth", "activation-rate", "log growth end to end",
        growth.activating_lines, None, 1.5,
    ),
    Case(
        "activation-rate-random", "activation-rate-random", "log rate of the random curve",
        weights.random_rates, 0.01, -0.01, 0.0, (0.0005, 0.001, 0.002, 0.004, 0.008),
    ),
    Case(
        "activation-rate-random, published factor", "activation-rate-random", "factor",
        weights.random_rates_published, 4.0, 5.0, 4.5, (4.45, 4.4, 4.3, 4.2, 4.0),
        model="gpt2-xl", halved=False, sizes=XL_SIZES,
    ),
    Case(
        "activation-rate-resampled", "activation-rate-resampled", "distance over the Gaussian's",
        weights.resampled_rates, 0.25, 0.8, 0.5, (0.48, 0.45, 0.4, 0.3, 0.2),
    ),
    Case(
        "mlp-weight-norms-flat", "mlp-weight-norms-flat", "margins below the stream's rate",
        weights.flat_weights, 3.0, 0.0, 1.0, (1.1, 1.25, 1.5, 2.0, 3.0),
    ),
    Case(
        "old-outputs-overshadowed", "old-outputs-overshadowed", "halvings of the share",
        structure.overshadowed, 2.0, 0.4, 1.0, (1.02, 1.05, 1.1, 1.2, 1.4),
    ),
    Case(
        "overshadow-not-cancel", "overshadow-not-cancel", "median kept", structure.cancelled,
        1.2, -0.2, 0.5, (0.6, 0.8, 1.0, 1.2, 1.5, 2.0),
    ),
    Case(
        "writes-persist", "writes-persist", "median kept", structure.persisting,
        1.2, -0.2, 0.5, (0.6, 0.7, 0.8, 1.0, 1.2), halved=False,
    ),
    Case(
        "writes-persist, one remover", "writes-persist", "thousandths that a head removes",
        structure.removing, 20.0, None, None, (2.0, 4.0, 6.0, 10.0, 15.0), halved=False,
    ),
    Case(
        "writes-persist, no remover", "writes-persist", "thousandths that all units remove",
        structure.without_removers, None, 1.0, halved=False,
    ),
    Case(
        "basis-privileged-in-practice", "basis-privileged-in-practice", "ratio of kurtoses",
        structure.kurtosis, 2.5, 1.6, 2.0, (2.05, 2.1, 2.2, 2.3, 2.5), halved=False,
    ),
    Case(
        "virtual-weights", "virtual-weights", "composition over chance", structure.connected,
        1.1, 0.92, 1.01, (1.02, 1.03, 1.05, 1.08, 1.12), halved=False, sizes=WEIGHTS,
    ),
    Case(
        "horizon-decay", "horizon-decay", "tau over the depth", structure.exponentials,
        0.25, None, None, (0.15, 0.2, 0.25, 0.3), halved=False, slow=True, unknown=UNKNOWN,
    ),
    Case(
        "horizon-decay, sigmoid", "horizon-decay", "middle over the depth", structure.sigmoids,
        None, 0.4, None, halved=False, slow=True, unknown=UNKNOWN,
    ),
    Case(
        "horizon-decay, power law", "horizon-decay", "power", structure.powers,
        None, 0.8, None, halved=False, slow=True, unknown=UNKNOWN,
    ),
    Case(
        "horizon-small-model", "horizon-small-model", "horizon over the depth",
        structure.horizons, 0.85, 0.6, 0.75, (0.76, 0.78, 0.8, 0.85, 0.9),
        halved=False,
    ),
    Case(
        "horizon-confounder", "horizon-confounder", "share that vanishes", structure.controlled,
        0.25, 0.0, 0.1, (0.11, 0.12, 0.14, 0.17, 0.2), halved=False,
    ),
)  # fmt: skip


def case_of(name: str) -> Case:
    """The case of that name."""
    return next(case for case in CASES if case.name == name)
