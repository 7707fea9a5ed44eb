"""SpQR: GPTQ in small groups, and the few weights that would cost most kept in 16 bits.

Paper: Dettmers, Svirschevski, Egiazarian, Kuznedelev, Frantar, Ashkboos, Borzunov, Hoefler and Alistarh,
"SpQR: A Sparse-Quantized Representation for Near-Lossless LLM Weight Compression" (2023).
What is here: columns are rounded as GPTQ rounds them (shrink/precision/gptq.py: H = R D R^T, column k is
aimed at its weight plus the spread of the errors before it, and a miss costs D_k miss^2). A weight whose
miss would cost more than t stays a number, with t = `threshold` times the mean over columns of var(W_j)
D_j. Before a group's scale is chosen, weights without which the group would lose more than t less are
replaced by the mean of the others. Outliers are counted as 16 bits of value and 16 of column.
What we changed: the paper stores groups of 16 with a scale and a zero that are themselves 3-bit codes in
groups of 16, 3.6 bits a weight before outliers; the kernels here have one f16 scale and no zero for 32, 64
or 128 neighbouring inputs, 3.5 bits at 32, so that is what is fitted, with the range of codes leaning to
the longer side. On normal weights the published groups round with a sixth less squared error, which is what
their eighth of a bit is worth (a test compares them). A range without a zero hangs on its largest weight
alone, so that leaving one out is tried for the largest, then for the next. An outlier's place in the packed
part holds 0. `order=activation` takes whole groups by the size of their inputs, largest first, and the
inputs inside a group likewise; that and `damping=1` are the paper's, and lose more of the bundled model
than the defaults here.
Cost: GPTQ's. In use: the packed product, and one multiplication for each outlier.
Limits: activations are f32 (the outliers' products are; int8 would round them); at most 65536 inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from haversack.core.method import Method, parameter
from haversack.kernels.outliers import COLUMNS_MOST
from haversack.shrink._pipeline import Walk
from haversack.shrink._precision import InputStatistics, Kept, Quantized, StoredKind, expected_noise
from haversack.shrink._rounding import F32, I8, codes_of, leaning_scales
from haversack.shrink.precision.gptq import F64, Feedback, round_group

Bools = NDArray[np.bool_]
TRIED = 4
"""Weights of a group that may be left out of its range."""
EXPECTED_SHARE = {3: 0.022, 4: 0.0026}
"""Outliers among weights at a threshold of 0.2, until a matrix was compressed: what sizes are predicted with.
Those of the bundled model `code`.
"""
EXPECTED_GAIN = 0.6
"""What keeping outliers leaves of GPTQ's noise, about."""


def group_order(diagonal: F64, group: int, order: str) -> list[NDArray[np.intp]]:
    """The columns of each group in the order in which they are rounded; groups stay together.

    `diagonal` [columns] is that of H; `order` is "given", or "activation": largest inputs first.
    """
    columns = np.arange(len(diagonal))
    groups = [columns[start : start + group] for start in range(0, len(columns), group)]
    if order == "given":
        return groups
    groups.sort(key=lambda own: -float(diagonal[own].mean()))
    return [own[np.argsort(-diagonal[own], kind="stable")] for own in groups]


def threshold_of(weights: F32, cost: F32, share: float) -> float:
    """t: `share` times the mean over columns of the variance of `weights` [columns, rows] times `cost`
    [columns].
    """
    return share * float(np.mean(weights.var(axis=1) * cost))


def without_extremes(targets: F32, cost: F32, bits: int, limit: float) -> F32:
    """`targets` [group, rows] with weights that widen the range too much replaced by the mean of the others.

    The largest is left out where that lowers the group's rounding error, weighed by `cost` [group], by more
    than `limit`; then the next, TRIED times at most.
    """
    values, left = targets.copy(), np.ones(targets.shape, bool)
    rows = np.arange(targets.shape[1])
    loss = _rounding_loss(values, left, cost, bits)
    for _ in range(min(TRIED, len(targets) - 1)):
        largest = np.where(left, np.abs(values), -1.0).argmax(axis=0)
        others = left.copy()
        others[largest, rows] = False
        mean = np.where(others, values, 0).sum(axis=0) / np.maximum(others.sum(axis=0), 1)
        trial = values.copy()
        trial[~others] = np.broadcast_to(mean, targets.shape)[~others]
        lower = _rounding_loss(trial, others, cost, bits)
        better = loss - lower > limit
        if not better.any():
            break
        values[:, better], left[:, better] = trial[:, better], others[:, better]
        loss = np.where(better, lower, loss)
    return values


def _rounding_loss(values: F32, counted: Bools, cost: F32, bits: int) -> F32:
    """Loss [rows] of rounding `values` [group, rows] with leaning scales, over the `counted` ones."""
    scales = leaning_scales(values.T, bits, half=True)
    missed = np.square(values - codes_of(values, scales, bits) * scales) * cost[:, None]
    found: F32 = np.where(counted, missed, 0).sum(axis=0)
    return found


def round_or_keep(
    weights: F32, targets: F32, scales: F32, feedback: tuple[F32, F32], bits: int, limit: float
) -> tuple[F32, Bools, F32]:
    """Round the columns of a group in order, keeping a weight as f16 where rounding it costs over `limit`.

    `weights` and `targets` [group, rows] as in gptq.round_columns, `scales` [rows], `feedback` the group's
    part of R and of D. Returns codes (0 where kept), which are kept, and the values that both stand for.
    """
    unit_upper, cost = feedback
    codes, kept, values = np.zeros_like(targets), np.zeros(targets.shape, bool), np.empty_like(targets)
    for k in range(len(targets)):
        code = codes_of(targets[k], scales, bits)
        value = code * scales
        kept[k] = np.square(targets[k] - value) * cost[k] > limit
        codes[k] = np.where(kept[k], 0, code)
        values[k] = np.where(kept[k], as_f16(targets[k]), value)
        targets[k + 1 :] += unit_upper[k, k + 1 :, None] * (weights[k] - values[k])
    return codes, kept, values


def as_f16(values: F32) -> F32:
    """`values` as they read back from 16 bits."""
    return np.clip(values, -65504.0, 65504.0).astype(np.float16).astype(np.float32)


@dataclass(frozen=True)
class Sparse:
    """Outliers of a matrix row by row: starts i32 [rows + 1], columns u16 [n], values f32 [n]."""

    starts: NDArray[np.int32]
    columns: NDArray[np.uint16]
    values: F32

    @classmethod
    def of(cls, kept: Bools, values: F32) -> Sparse:
        """The weights `values` [rows, columns] where `kept`."""
        row, column = np.nonzero(kept)
        starts = np.zeros(len(kept) + 1, np.int32)
        np.cumsum(kept.sum(axis=1), out=starts[1:])
        return cls(starts, column.astype(np.uint16), values[row, column])


def spqr(
    weight: F32, feedback: Feedback, blocks: list[NDArray[np.intp]], bits: int, group: int, threshold: float
) -> tuple[I8, F32, Sparse]:
    """Codes int8 [rows, columns], scales f32 [rows, groups] and outliers of `weight` f32 [rows, columns].

    `blocks` are the columns of each group as `group_order` gives them; `feedback` is of H in their order.
    """
    rows, columns = weight.shape
    weights = np.ascontiguousarray(weight[:, np.concatenate(blocks)].T)
    limit = threshold_of(weights, feedback.cost, threshold)
    codes, kept = np.empty((rows, columns), np.int8), np.empty((rows, columns), bool)
    values, errors = np.empty_like(weight), np.empty_like(weights)
    scales = np.empty((rows, len(blocks)), np.float32)
    start = 0
    for own in blocks:
        block = slice(start, start + len(own))
        part = feedback.unit_upper[block, block].astype(np.float32), feedback.cost[block]
        targets = weights[block].copy()
        if start:
            targets += feedback.unit_upper[:start, block].T.astype(np.float32) @ errors[:start]
        fitted = without_extremes(targets, part[1], bits, limit)
        _, found = round_group(weights[block] + fitted - targets, fitted, part, bits, "searched", True)
        rounded, numbers, stands = round_or_keep(weights[block], targets, found, part, bits, limit)
        errors[block] = weights[block] - stands
        codes[:, own], kept[:, own], values[:, own] = rounded.T, numbers.T, stands.T
        scales[:, int(own.min()) // group] = found
        start += len(own)
    return codes, scales, Sparse.of(kept, values)


@dataclass(frozen=True)
class WithOutliers:
    """A packed matrix and its outliers: the form sparse-outliers."""

    base: Quantized
    sparse: Sparse

    @property
    def form(self) -> dict[str, Any]:
        return {"form": "sparse-outliers", "outliers": len(self.sparse.values)}

    def parts(self) -> dict[str, Any]:
        """See Formed."""
        values = Kept(StoredKind("f16"), self.sparse.values[None])
        columns = self.sparse.columns.astype("<u2").view(np.uint8).reshape(-1, 2)
        return {"base": self.base, "starts": self.sparse.starts, "columns": columns, "values": values}


@dataclass(frozen=True)
class StoredWithOutliers:
    """How a matrix is stored: `base`, and outliers of 32 bits each, about `share` of the weights."""

    base: StoredKind
    share: float

    @property
    def kind(self) -> str:
        return self.base.kind

    @property
    def group(self) -> int | None:
        return self.base.group

    def nbytes(self, rows: int, columns: int) -> int:
        """Bytes of a stored matrix [rows, columns] with as many outliers as are expected."""
        return self.base.nbytes(rows, columns) + 4 * round(self.share * rows * columns) + 4 * (rows + 1)

    def bit_products(self, rows: int, columns: int) -> list[tuple[int, str]]:
        """(Multiplications, kind) of the packed part and of the outliers."""
        return [(rows * columns, self.kind), (round(self.share * rows * columns), "f16")]


def matrices(walk: Walk) -> list[str]:
    """The matrices of the blocks of `walk`, in order of use."""
    return [name for block in range(walk.blocks) for group in walk.products(block) for name in group]


def working_nbytes(walk: Walk, each: int) -> int:
    """Bytes of the statistics in another order, and of `each` for every weight of the largest matrix."""
    shapes = [walk.shape(name) for name in matrices(walk)]
    widest = max((columns for _, columns in shapes), default=0)
    return 8 * widest * widest + each * max((rows * columns for rows, columns in shapes), default=0)


@dataclass(frozen=True)
class Spqr(Method):
    name = "spqr"
    stage = "shrink"
    slot = "precision"
    paper = (
        "Dettmers et al., SpQR: A Sparse-Quantized Representation for Near-Lossless LLM Compression (2023)"
    )
    summary = "GPTQ in small groups; the few weights that would cost most stay 16-bit numbers beside it."
    system = 16
    provides = frozenset({"weight-type:int4", "weight-type:int3", "weight-layout:rows16-1"})
    excludes = frozenset({"activation-type:int8-dynamic", "activation-type:int8-static"})
    in_parts: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"hessian"})

    bits: int = parameter(3, allowed=(3, 4), help="bits a weight of the packed part")
    group: int = parameter(32, allowed=(32, 64, 128), help="inputs that share a scale")
    threshold: float = parameter(
        0.2,
        allowed=(0.05, 0.1, 0.2, 0.4, 0.8),
        help="an error above this share of the mean cost keeps a weight",
    )
    order: str = parameter("given", allowed=("given", "activation"), help="order in which groups are rounded")
    damping: float = parameter(0.01, allowed=(0.01, 0.1, 1.0), help="share of the mean diagonal added")

    def stored(self, rows: int, columns: int) -> StoredKind:
        """Kind and group of a matrix [rows, columns] outside the blocks."""
        return StoredKind.of_bits(self.bits, self.group)

    def stored_as(self, name: str, rows: int, columns: int) -> StoredWithOutliers:
        """Kind, group and expected outliers of the matrix `name` [rows, columns]."""
        share = EXPECTED_SHARE[self.bits] * 0.2 / self.threshold
        return StoredWithOutliers(self.stored(rows, columns), share)

    def noise(self) -> float:
        """Expected squared weight error over the weights' mean square, less what the method makes good."""
        return 0.6 * EXPECTED_GAIN * expected_noise(self.bits, self.group, "searched")

    def working_nbytes(self, walk: Walk) -> int:
        """What a matrix takes while it is compressed: turned weights, errors and values, codes, outliers."""
        return working_nbytes(walk, 4 * 3 + 2)

    def refused(self, walk: Walk) -> dict[str, str]:
        """The matrices whose inputs 16 bits cannot name, each with the reason."""
        wide = {name: walk.shape(name)[1] for name in matrices(walk) if walk.shape(name)[1] > COLUMNS_MOST}
        return {name: f"{columns} inputs, of {COLUMNS_MOST} at most" for name, columns in wide.items()}

    def quantize(
        self, weights: Mapping[str, F32], inputs: InputStatistics | None
    ) -> dict[str, WithOutliers | Quantized]:
        """Every matrix of `weights` as codes, scales and outliers; they share `inputs.hessian`."""
        assert inputs is not None and inputs.hessian is not None
        blocks = group_order(np.diagonal(inputs.hessian), self.group, self.order)
        places = np.concatenate(blocks)
        feedback = Feedback.of(inputs.hessian[np.ix_(places, places)], self.damping, "given")
        found: dict[str, WithOutliers | Quantized] = {}
        for name, weight in weights.items():
            codes, scales, sparse = spqr(weight, feedback, blocks, self.bits, self.group, self.threshold)
            base = Quantized(StoredKind.of_bits(self.bits, self.group), codes, scales)
            found[name] = WithOutliers(base, sparse) if len(sparse.values) else base
        return found
