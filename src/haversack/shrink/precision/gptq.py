"""GPTQ: round one input after another and let the inputs not yet rounded make good the error.

Paper: Frantar, Ashkboos, Hoefler and Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative
Pre-trained Transformers" (2023).
What is here: a layer's error on calibration inputs X is the sum over rows of (w - q) H (w - q)^T with H = X
X^T. Columns are rounded in a fixed order; each error is spread over the columns still to come, which have its
exact optimum. Columns go in blocks of one group, whose scales are fixed when the group is entered; what
earlier blocks ask of a block is applied in one product when it is entered (the paper's lazy batches).
`order=activation` takes the columns of large inputs first; the scales are then fixed before, and the stored
layout does not change.
What we changed: the paper takes rows of a Cholesky factor of the inverse of H. The same numbers come from a
factor of H itself, H = R D R^T with R unit upper triangular: column k must be rounded at w_k + sum over j < k
of (w_j - q_j) R_jk, and adds D_k (w_k - q_k)^2 to the loss (Chee et al., "QuIP", 2023, theorem 6). No inverse
is formed, the factor overwrites H, and D says what an error costs, which `scales=searched` uses: it rounds
the group with every candidate scale, spreading included, and keeps for each row what costs least.
Cost: columns^3 / 3 operations for the factor, rows * columns^2 for the spreading; `searched` 22 times the
rounding.
Limits: wants calibration text like the text of later use, at least as many tokens as the widest layer has
inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from haversack.core.method import Method, parameter
from haversack.shrink._precision import InputStatistics, Quantized, StoredKind, expected_noise
from haversack.shrink._rounding import (
    CLIPPING,
    F32,
    I8,
    Limits,
    choose_scales,
    codes_of,
    group_count,
    grouped,
    leaning_scales,
    restored,
    symmetric_scales,
)

F64 = NDArray[np.float64]
PANEL = 128  # columns handled at once where no group says otherwise
ROWS = 256  # rows compared at once with plain rounding


def damped(hessian: F64, share: float) -> F64:
    """`hessian` with `share` of its mean diagonal on the diagonal, in place; inputs never seen count as 1."""
    diagonal = np.diagonal(hessian).copy()
    unseen = diagonal <= 0
    diagonal[unseen] = 1.0
    np.fill_diagonal(hessian, diagonal + share * diagonal.mean())
    return hessian


def upper_factor(matrix: F64) -> F64:
    """R, upper triangular, with `matrix` [n, n] = R R^T; overwrites `matrix` (positive definite) by blocks.

    Runs from the last column to the first, so that no inverse and no second matrix is needed.
    """
    for stop in range(len(matrix), 0, -PANEL):
        start = max(0, stop - PANEL)
        corner = np.linalg.cholesky(matrix[start:stop, start:stop][::-1, ::-1])[::-1, ::-1]
        matrix[start:stop, start:stop] = corner
        matrix[start:stop, :start] = 0.0
        if start:
            panel = np.linalg.solve(corner, matrix[:start, start:stop].T).T
            matrix[:start, start:stop] = panel
            for left in range(0, start, 4 * PANEL):
                right = min(left + 4 * PANEL, start)
                matrix[:right, left:right] -= panel[:right] @ panel[left:right].T
    return matrix


@dataclass(frozen=True)
class Feedback:
    """How errors spread: `unit_upper` R f64 [columns, columns], ones on its diagonal; `cost` D f32
    [columns].
    """

    unit_upper: F64
    cost: F32
    order: NDArray[np.intp] | None

    @classmethod
    def of(cls, hessian: F64, damping: float, order: str) -> Feedback:
        """Factor `hessian` [columns, columns] (overwritten); `order` is "given" or "activation"."""
        hessian = damped(hessian, damping)
        permutation = None
        if order == "activation":
            permutation = np.argsort(-np.diagonal(hessian), kind="stable")
            hessian = hessian[np.ix_(permutation, permutation)]
        upper_factor(hessian)
        diagonal = np.diagonal(hessian).copy()
        hessian /= diagonal[None, :]
        return cls(hessian, np.square(diagonal).astype(np.float32), permutation)


def round_columns(
    weights: F32, targets: F32, scales: F32, unit_upper: F32, bits: int | Limits
) -> tuple[F32, F32]:
    """Round the columns of one block in order, spreading each error over the columns after it.

    `weights` f32 [columns, ..., rows]; `targets`, alike and overwritten, are the weights with the spread of
    earlier blocks added; `scales` [..., rows], or [columns, ..., rows] if each column has its own;
    `unit_upper` [columns, columns] is the block's part of R. Returns codes and target - code * scale, both of
    the shape of `targets`.
    """
    codes, misses = np.empty_like(targets), np.empty_like(targets)
    for k in range(len(targets)):
        column_scales = scales[k] if scales.ndim == targets.ndim else scales
        codes[k] = codes_of(targets[k], column_scales, bits)
        value = codes[k] * column_scales
        misses[k] = targets[k] - value
        if k + 1 < len(targets):
            spread = unit_upper[k, k + 1 :].reshape(-1, *(1,) * (targets.ndim - 1))
            targets[k + 1 :] += spread * (weights[k] - value)
    return codes, misses


def round_group(
    weights: F32, targets: F32, feedback: tuple[F32, F32], bits: int, choice: str, half: bool
) -> tuple[F32, F32]:
    """Choose the scales of one group and round it: codes f32 [columns, rows] and scales f32 [rows].

    `feedback` is the group's part of R and of D. "searched" rounds with every candidate and keeps the
    cheapest.
    """
    unit_upper, cost = feedback
    if choice != "searched":
        scales = choose_scales(targets.T, bits, choice, half=half)
        return round_columns(weights, targets, scales, unit_upper, bits)[0], scales
    codes, scales = np.empty_like(targets), np.empty(targets.shape[1], np.float32)
    for start in range(0, targets.shape[1], 512):
        rows = slice(start, start + 512)
        values = targets[:, rows].T
        candidates = [symmetric_scales(values, bits, half=half)]
        for share in CLIPPING:
            leaning = leaning_scales(values, bits, half=half, share=share)
            candidates += [leaning, -leaning]
        stacked = np.stack(candidates)
        tried = np.repeat(targets[:, None, rows], len(candidates), axis=1)
        tried_codes, misses = round_columns(weights[:, None, rows], tried, stacked, unit_upper, bits)
        best = np.einsum("kcr,k->cr", np.square(misses), cost).argmin(axis=0)
        scales[rows] = stacked[best, np.arange(len(best))]
        codes[:, rows] = tried_codes[:, best, np.arange(len(best))]
    return codes, scales


def gptq(weight: F32, feedback: Feedback, bits: int, group: int | None, choice: str) -> tuple[I8, F32]:
    """Codes int8 [rows, columns] and scales f32 [rows, groups] of `weight` f32 [rows, columns].

    `group` None gives each row one f32 scale, taken from the weights as they came; otherwise scales are exact
    in f16 and belong to neighbouring columns, whatever the order of rounding.
    """
    rows, columns = weight.shape
    half, order = group is not None, feedback.order
    entered = group is not None and order is None  # scales wait until their group is entered
    scales = np.empty((rows, group_count(columns, group)), np.float32)
    if not entered:
        importance = mean_cost(feedback, group, columns) if choice == "searched" else None
        scales = choose_scales(grouped(weight, group), bits, choice, half=half, importance=importance)
    weights = np.ascontiguousarray((weight if order is None else weight[:, order]).T)
    errors = np.empty_like(weights)
    codes = np.empty((columns, rows), np.int8)
    step = group if entered and group else PANEL
    for start in range(0, columns, step):
        stop = min(start + step, columns)
        block = slice(start, stop)
        unit_upper = feedback.unit_upper[block, block].astype(np.float32)
        targets = weights[block].copy()
        if start:
            targets += feedback.unit_upper[:start, block].T.astype(np.float32) @ errors[:start]
        if entered:
            cost = feedback.cost[block]
            rounded, block_scales = round_group(
                weights[block], targets, (unit_upper, cost), bits, choice, half
            )
            scales[:, start // step] = block_scales
            values = rounded * block_scales
        else:
            places = np.arange(start, stop) if order is None else order[block]
            block_scales = scales[:, places // (group or columns)].T
            rounded = round_columns(weights[block], targets, block_scales, unit_upper, bits)[0]
            values = rounded * block_scales
        errors[block] = weights[block] - values
        codes[block] = rounded
    if order is not None:
        unsorted = np.empty_like(codes)
        unsorted[order] = codes
        codes = unsorted
    del weights, errors
    found = np.ascontiguousarray(codes.T), scales
    for start in range(0, rows, ROWS):
        part = slice(start, start + ROWS)
        few = weight[part]
        plain_scales = choose_scales(grouped(few, group), bits, choice, half=half)
        plain = codes_of(grouped(few, group), plain_scales[:, :, None], bits)
        plain_codes = plain.reshape(len(few), -1)[:, :columns].astype(np.int8)
        never_worse(few, (found[0][part], scales[part]), (plain_codes, plain_scales), group, feedback)
    return found


def row_losses(weight: F32, codes: I8, scales: F32, group: int | None, feedback: Feedback) -> F32:
    """(w - q) H (w - q)^T of every row, f32 [rows], a panel of columns at a time."""
    errors = weight - restored(codes, scales, group)
    if feedback.order is not None:
        errors = errors[:, feedback.order]
    losses = np.zeros(len(weight), np.float32)
    for start in range(0, errors.shape[1], PANEL):
        stop = min(start + PANEL, errors.shape[1])
        misses = errors[:, :stop] @ feedback.unit_upper[:stop, start:stop].astype(np.float32)
        losses += np.square(misses) @ feedback.cost[start:stop]
    return losses


def never_worse(
    weight: F32, found: tuple[I8, F32], plain: tuple[I8, F32], group: int | None, feedback: Feedback
) -> None:
    """Put the plain rounding into the rows of `found` where it loses less, as it can where codes are
    clipped.
    """
    worse = row_losses(weight, *found, group, feedback) > row_losses(weight, *plain, group, feedback)
    codes, scales = found
    codes[worse], scales[worse] = plain[0][worse], plain[1][worse]


def mean_cost(feedback: Feedback, group: int | None, columns: int) -> F32 | None:
    """What errors cost in each column [columns] for a scale of whole rows; a group's columns count alike."""
    if group is not None:
        return None
    cost = np.empty(columns, np.float32)
    cost[slice(None) if feedback.order is None else feedback.order] = feedback.cost
    return cost


@dataclass(frozen=True)
class Gptq(Method):
    name = "gptq"
    stage = "shrink"
    slot = "precision"
    paper = "Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Transformers (2023)"
    summary = "Rounds one input after another; later inputs make good the error, judged on calibration text."
    provides = frozenset(
        {"weight-type:int8", "weight-type:int4", "weight-type:int3", "weight-layout:rows16-1"}
    )
    needs: ClassVar[frozenset[str]] = frozenset({"hessian"})

    bits: int = parameter(4, allowed=(3, 4, 8), help="bits a weight")
    group: int = parameter(
        64, allowed=(32, 64, 128), help="inputs that share a scale at 3 and 4 bits; 8 bits: whole rows"
    )
    scales: str = parameter(
        "searched", allowed=("largest", "leaning", "searched"), help="how the scale of a group is chosen"
    )
    order: str = parameter("given", allowed=("given", "activation"), help="order in which inputs are rounded")
    damping: float = parameter(
        0.01, allowed=(0.001, 0.003, 0.01, 0.03, 0.1), help="share of the mean diagonal added"
    )

    def stored(self, rows: int, columns: int) -> StoredKind:
        """Kind and group in which a matrix [rows, columns] is stored."""
        return StoredKind.of_bits(self.bits, self.group)

    def noise(self) -> float:
        """Expected squared weight error over the weights' mean square, less what the method makes good."""
        return 0.6 * expected_noise(self.bits, self.group, self.scales)

    def quantize(self, weights: Mapping[str, F32], inputs: InputStatistics | None) -> dict[str, Quantized]:
        """Every matrix of `weights` as codes and scales; they share `inputs.hessian` and its factor."""
        assert inputs is not None and inputs.hessian is not None
        feedback = Feedback.of(inputs.hessian, self.damping, self.order)
        quantized = {}
        for name, weight in weights.items():
            kind = self.stored(*weight.shape)
            codes, scales = gptq(weight, feedback, self.bits, kind.group, self.scales)
            quantized[name] = Quantized(kind, codes, scales)
        return quantized
