"""The one table of numerical tolerances, and the measurements behind it.

No other module holds a literal tolerance. Rows are keyed by the dtype that a model
computes in; all of them are relative.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Tolerance:
    """How far two numbers may differ and still be the same up to rounding.

    Args:
        identity: ``|resid_pre + attn_out - resid_mid|`` over ``|resid_mid|`` per token.
            One addition rounds to half a unit in the last place; a scaled output
            (Granite) or a sum of three (parallel blocks) rounds a few times more.
        logits: root-mean-square difference of two sets of log-probabilities over the
            spread (standard deviation) of one of them.
        product: a matrix product that a library computed against the same in float64: the
            largest error of a token's vector over its norm, a norm layer after it included.
        curve: largest relative change of a mean curve between libraries, attention
            kernels, batch sizes or machines.
        token: the same for a single token's value, which no average smooths.
        truncated: the same as ``curve`` for a model whose sublayers read truncated streams:
            it is far from what it was trained on, and amplifies rounding.
        unit: one rounding step, for exact statements (theorems, means of zero).
    """

    identity: float
    logits: float
    product: float
    curve: float
    token: float
    truncated: float
    unit: float


# float32, measured on CPU: curves of correct paths agree across TransformerLens 1.19-4.3
# and transformers 4.57-5.23 to 2.6e-6; logits to 3e-6 of their size, log-probabilities of
# processed against raw weights to 3e-4 nats (Gemma 3 270M, whose logits reach 30).
# bfloat16 and float16 carry 8 and 11 bits; curves in bfloat16 moved by 3e-4 to 1e-3.
# Products, largest over twenty-nine tiny architectures and both built-in models: 4e-16 in
# float64, 1.9e-6 in float32 (behind a post-norm; 6e-7 without), 6e-4 in float16, 8e-3 in
# bfloat16; rounding grows with the root of the width, at most five times as wide again.
# Truncated models, SmolLM2 135M through both backends on 150 tokens: mean losses and
# divergences at horizon 1 moved by 1.6e-5 in float64 and 6.4e-4 in float32 (at others by a
# hundredth of that), at any by 6e-2 in float16 and 8e-2 in bfloat16.
# Identities: at most 2 units in the last place on twenty architectures.
# There are no rows of CUDA's own: nothing was measured there yet. A GPU is held to the rows of
# its dtype, and tests/gpu/agreement.py says what share of each bound it uses.
TOLERANCES: dict[str, Tolerance] = {
    # Eager attention and many norms compute in float32 whatever the dtype: against sdpa,
    # float64 tokens moved by up to 1.2e-6 and curves by 6.4e-8 (SmolLM2 135M).
    "float64": Tolerance(
        identity=1e-13,
        logits=1e-6,
        product=1e-13,
        curve=5e-7,
        token=1e-5,
        truncated=1e-4,
        unit=2.3e-16,
    ),
    "float32": Tolerance(
        identity=2e-6,
        logits=5e-5,
        product=1e-5,
        curve=1e-5,
        token=1e-4,
        truncated=3e-3,
        unit=1.2e-7,
    ),
    "float16": Tolerance(
        identity=4e-3,
        logits=2e-2,
        product=4e-3,
        curve=2e-3,
        token=2e-2,
        truncated=3e-1,
        unit=9.8e-4,
    ),
    "bfloat16": Tolerance(
        identity=3e-2,
        logits=1e-1,
        product=3e-2,
        curve=1e-2,
        token=1e-1,
        truncated=3e-1,
        unit=7.9e-3,
    ),
}


# Float32 but for the factors of matrix products, which keep float16's 11 bits: float16's row,
# with sums as exact as float32's. Not measured.
TOLERANCES["tf32"] = replace(TOLERANCES["float16"], identity=TOLERANCES["float32"].identity)


def tolerance(dtype: str, *others: str) -> Tolerance:
    """The row for ``dtype``; of several dtypes, the widest."""
    rows = (TOLERANCES[name] for name in (dtype, *others))
    return max(rows, key=lambda row: (row.unit, row.identity))
