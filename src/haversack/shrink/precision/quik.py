"""QUIK: the inputs with the largest values stay floats, everything else meets in 8 or 4 bits.

Paper: Ashkboos, Markov, Frantar, Zhong, Wang, Ren, Hoefler and Alistarh, "QUIK: Towards End-to-End 4-Bit
Inference on Generative Large Language Models" (2023).
What is here: the `kept` share of the inputs with the largest max |X_j| on calibration text stay floats, for
their weights (f16) and their activations (f32); weights of the other inputs become 8 or 4 bits and their
activations int8. The others are rounded by GPTQ with the kept inputs last, so that their errors end in
floats. The last matrix of a block (the second of the MLP) has 8 bits; a matrix none of whose inputs exceeds
`threshold` is stored without floats.
What we changed: the paper keeps 256 inputs of thousands; here it is a share, 6 % [inferred], in whole 32s
so that the rest stays whole groups. Its kernel has 4-bit activations and one scale a token; ours have int8,
one scale for every 32 inputs of a token (8 bits) or every group (4 bits). Weights at 4 bits have a scale
for a group, not for a row.
Cost: GPTQ's. In use: two gathers and a product of the kept inputs in f32 beside the product of the rest.
Limits: activations must be int8; with f32 ones the kept inputs gain nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from haversack.core.method import Method, parameter
from haversack.shrink._pipeline import Walk
from haversack.shrink._precision import InputStatistics, Kept, Quantized, StoredKind, expected_noise
from haversack.shrink._rounding import F32, I8, restored
from haversack.shrink.precision.gptq import F64, Feedback, gptq
from haversack.shrink.precision.spqr import as_f16, matrices, working_nbytes

I32 = NDArray[np.int32]
UNIT = 32
"""Kept inputs are counted in whole units where there are many, so that what is left fills its groups."""


def kept_count(columns: int, share: float) -> int:
    """How many of `columns` inputs stay floats: at least one, never all."""
    wanted = round(share * columns)
    if columns >= 8 * UNIT:
        wanted = -(-wanted // UNIT) * UNIT
    return min(max(1, wanted), columns - 1)


def largest_inputs(peaks: F32, count: int) -> I32:
    """The `count` inputs with the largest `peaks` [columns], in rising order."""
    chosen = np.argsort(-peaks, kind="stable")[:count]
    return np.sort(chosen).astype(np.int32)


def kept_last(hessian: F64, kept: I32, damping: float) -> tuple[Feedback, NDArray[np.intp]]:
    """The factor of `hessian` with the inputs `kept` last, and the order [columns] of the inputs in it."""
    others = np.setdiff1d(np.arange(len(hessian)), kept)
    order = np.concatenate([others, kept])
    return Feedback.of(hessian[np.ix_(order, order)], damping, "given"), order


def quik(
    weight: F32, feedback: Feedback, order: NDArray[np.intp], kept: int, bits: int, group: int | None
) -> tuple[I8, F32, F32]:
    """Codes int8 [rows, columns - kept] and scales f32 of the first inputs in `order`, and the weights
    f32 [rows, kept] of the last, which take up the errors before them.
    """
    ordered = np.ascontiguousarray(weight[:, order])
    split = len(order) - kept
    unit_upper = feedback.unit_upper
    # The leading part of R and D is the factor that the rest needs: what comes later is free to make good.
    rest = Feedback(unit_upper[:split, :split], feedback.cost[:split], None)
    codes, scales = gptq(ordered[:, :split], rest, bits, group, "searched")
    missed = ordered[:, :split] - restored(codes, scales, group)
    # Floats take all that is asked of them: (w - f) R = -(errors before) R, exactly.
    asked = (missed @ unit_upper[:split, split:].astype(np.float32)).astype(np.float64)
    floats = ordered[:, split:] + np.linalg.solve(unit_upper[split:, split:].T, asked.T).T
    return codes, scales, as_f16(floats.astype(np.float32))


@dataclass(frozen=True)
class Split:
    """A matrix whose inputs `columns` stay floats: the form outlier-columns."""

    rest: Quantized
    kept: F32
    columns: I32

    @property
    def form(self) -> dict[str, Any]:
        return {"form": "outlier-columns", "kept": len(self.columns)}

    def parts(self) -> dict[str, Any]:
        """See Formed."""
        floats = Kept(StoredKind("f16"), self.kept)
        return {"rest": self.rest, "kept": floats, "kept_columns": self.columns}


@dataclass(frozen=True)
class StoredSplit:
    """How a matrix is stored: `kept` inputs in f16, the others as `rest`."""

    rest: StoredKind
    kept: int

    @property
    def kind(self) -> str:
        return self.rest.kind

    @property
    def group(self) -> int | None:
        return self.rest.group

    def nbytes(self, rows: int, columns: int) -> int:
        """Bytes of a stored matrix [rows, columns]."""
        return self.rest.nbytes(rows, columns - self.kept) + self.kept * (2 * rows + 4)

    def bit_products(self, rows: int, columns: int) -> list[tuple[int, str]]:
        """(Multiplications, kind) of the rest and of the kept inputs."""
        return [(rows * (columns - self.kept), self.kind), (rows * self.kept, "f16")]


@dataclass(frozen=True)
class Quik(Method):
    name = "quik"
    stage = "shrink"
    slot = "precision"
    paper = (
        "Ashkboos et al., QUIK: Towards End-to-End 4-Bit Inference on Generative Large Language Models (2023)"
    )
    summary = "The inputs with the largest values stay floats; the rest is 8 or 4 bits with int8 activations."
    system = 16
    provides = frozenset({"weight-type:int8", "weight-type:int4", "weight-layout:rows16-1"})
    excludes = frozenset({"activation-type:f32"})
    in_parts: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"hessian", "ranges"})

    bits: int = parameter(8, allowed=(4, 8), help="bits a weight of the inputs that are not kept")
    group: int = parameter(
        64, allowed=(32, 64, 128), help="inputs that share a scale at 4 bits; 8 bits: whole rows"
    )
    kept: float = parameter(
        0.06, allowed=(0.02, 0.04, 0.06, 0.1), help="share of the inputs that stay floats"
    )
    threshold: float = parameter(
        0.0, allowed=(0.0, 1.0, 2.0, 5.0, 10.0), help="inputs that never exceed this need no floats"
    )
    damping: float = parameter(
        0.01, allowed=(0.001, 0.003, 0.01, 0.03, 0.1), help="share of the mean diagonal added"
    )

    def stored(self, rows: int, columns: int) -> StoredKind:
        """How a matrix [rows, columns] outside the blocks is stored."""
        return StoredKind.of_bits(self.bits, self.group)

    def noise(self) -> float:
        """Expected squared weight error over the weights' mean square, less what the method makes good."""
        return 0.6 * expected_noise(self.bits, self.group, "searched")

    def for_walk(self, walk: Walk) -> QuikFor:
        """The method for the model of `walk`, whose last matrix of every block has 8 bits."""
        last = [walk.products(block)[-1] for block in range(walk.blocks) if walk.products(block)]
        return QuikFor(self, frozenset(name for group in last for name in group))

    def working_nbytes(self, walk: Walk) -> int:
        """What a matrix takes while it is compressed: weights in order and turned, errors, codes, values."""
        return working_nbytes(walk, 4 * 5 + 1)

    def refused(self, walk: Walk) -> dict[str, str]:
        """The matrices of one input, which cannot be kept and rounded at once."""
        return {name: "it has a single input" for name in matrices(walk) if walk.shape(name)[1] < 2}

    def quantize(
        self, weights: Mapping[str, F32], inputs: InputStatistics | None
    ) -> dict[str, Split | Quantized]:
        """Every matrix of `weights` at `bits`; see QuikFor."""
        return QuikFor(self, frozenset()).quantize(weights, inputs)


@dataclass(frozen=True)
class QuikFor:
    """`method` for a model whose matrices `last` have 8 bits; fills shrink: precision."""

    method: Quik
    last: frozenset[str]

    name: ClassVar[str] = Quik.name
    needs: ClassVar[frozenset[str]] = Quik.needs
    excludes: ClassVar[frozenset[str]] = Quik.excludes

    def stored(self, rows: int, columns: int) -> StoredKind:
        """How a matrix [rows, columns] outside the blocks is stored."""
        return self.method.stored(rows, columns)

    def rest_of(self, name: str) -> StoredKind:
        """How the inputs of the matrix `name` that are not kept are stored."""
        return StoredKind.of_bits(8 if name in self.last else self.method.bits, self.method.group)

    def stored_as(self, name: str, rows: int, columns: int) -> StoredSplit:
        """How the matrix `name` [rows, columns] is stored, unless its inputs are all small."""
        kept = kept_count(columns, self.method.kept)
        return StoredSplit(self.rest_of(name), kept)

    def noise(self) -> float:
        """As of the method."""
        return self.method.noise()

    def working_nbytes(self, walk: Walk) -> int:
        """As of the method."""
        return self.method.working_nbytes(walk)

    def refused(self, walk: Walk) -> dict[str, str]:
        """As of the method."""
        return self.method.refused(walk)

    def quantize(
        self, weights: Mapping[str, F32], inputs: InputStatistics | None
    ) -> dict[str, Split | Quantized]:
        """Every matrix of `weights` in two parts; they share `inputs` and the choice of columns."""
        assert inputs is not None and inputs.hessian is not None and inputs.ranges is not None
        peaks = np.maximum(np.abs(inputs.ranges.low), np.abs(inputs.ranges.high))
        count = kept_count(len(peaks), self.method.kept)
        if float(peaks.max()) <= self.method.threshold:
            count = 0
        kept = largest_inputs(peaks, count)
        feedback, order = kept_last(inputs.hessian, kept, self.method.damping)
        found: dict[str, Split | Quantized] = {}
        for name, weight in weights.items():
            rest = self.rest_of(name)
            bits = 8 if rest.kind == "int8" else self.method.bits
            codes, scales, floats = quik(weight, feedback, order, count, bits, rest.group)
            packed = Quantized(rest, codes, scales)
            found[name] = Split(packed, floats, kept) if count else packed
        return found
