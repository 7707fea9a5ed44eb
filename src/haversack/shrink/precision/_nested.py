"""Matryoshka weight quantization: the maths of D2MoE's nested bits on arrays; see d2moe.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError, not_allowed
from haversack.kernels.nested import MOST_BITS, Plane, pack_base, pack_signs
from haversack.run.forms.nested import BoundNested
from haversack.shrink._rounding import CLIPPING, F32, divide, storable
from haversack.shrink.precision.gptq import damped

F64 = NDArray[np.float64]
COMPENSATIONS = ("none", "bottom", "middle", "top")
BLOCK = 1
"""Columns that are rounded together before their error is spread."""


def base_grid(values: F32, bits: int, share: float = 1.0) -> tuple[F32, F32]:
    """Scales and zeros f32 [rows] of groups `values` f32 [rows, group]: 2^bits levels over `share` of the
    span from the smallest value to the largest, zero included; exact in f16.

    >>> base_grid(np.array([[0, 1, 2, 3]], np.float32), 2)
    (array([1.], dtype=float32), array([-0.], dtype=float32))
    """
    low = np.minimum(values.min(axis=1), 0) * np.float32(share)
    high = np.maximum(values.max(axis=1), 0) * np.float32(share)
    scales = storable((high - low) / ((1 << bits) - 1), half=True)
    return scales, storable(divide(-low, scales), half=True)


def base_codes(values: F32, scales: F32, zeros: F32, bits: int) -> F32:
    """Q = round(w / s + z) within 0 to 2^bits - 1, still as f32 [rows, group]."""
    codes = np.rint(divide(values, scales[:, None]) + zeros[:, None])
    return codes.clip(0, (1 << bits) - 1).astype(np.float32)


def residual_level(residual: F32, costs: F64 | None = None) -> tuple[NDArray[np.bool_], F32]:
    """Signs (True: plus) bool [rows, group] and scales f32 [rows] of one more bit for `residual` f32 [rows,
    group]: Q = sign(R), s the minimum of the squared R - s Q times the columns' `costs` f64 [group], which is
    the mean |R| where all cost alike.

    >>> residual_level(np.array([[0.4, -0.2, 0.1, -0.5]], np.float32))[1].round(3)
    array([0.3], dtype=float32)
    """
    size = np.abs(residual)
    scales = size.mean(axis=1) if costs is None else size @ costs / costs.sum()
    return residual >= 0, storable(scales.astype(np.float32), half=True)


def upper_of_inverse(hessian: F64, damping: float) -> F64:
    """U, upper triangular, with (H + damping of its mean diagonal)^-1 = U^T U; `hessian` is overwritten."""
    inverse = np.linalg.inv(damped(hessian, damping))
    return np.asarray(np.linalg.cholesky((inverse + inverse.T) / 2).T, np.float64)


def group_scales(values: F32, bits: Sequence[int], level: int, costs: F64 | None) -> F32:
    """What the numbers of one group `values` f32 [rows, group] are scaled by: of the base, its zeros, and of
    each plane, f32 [levels + 1, rows].

    Of several clipped grids of the base each row takes the one whose level number `level` misses it least, by
    the columns' `costs` f64 [group].
    """
    best = np.zeros((len(bits) + 1, len(values)), np.float32)
    least = np.full(len(values), np.inf)
    for share in CLIPPING:
        scales, zeros = base_grid(values, bits[0], share)
        codes = base_codes(values, scales, zeros, bits[0])
        found, residual = [scales, zeros], values - (codes - zeros[:, None]) * scales[:, None]
        reached = residual
        for number in range(1, len(bits)):
            plus, scales = residual_level(residual, costs)
            found.append(scales)
            residual = residual - np.where(plus, scales[:, None], -scales[:, None])
            reached = residual if number <= level else reached
        missed = np.square(reached)
        error = missed.sum(axis=1) if costs is None else missed @ costs
        better = error < least
        best[:, better] = np.stack(found)[:, better]
        least = np.minimum(least, error)
    return best


def nest(values: F32, scales: F32, bits: int, level: int) -> tuple[F32, NDArray[np.bool_], F32]:
    """Columns `values` f32 [rows, n] under the `scales` of their group (see `group_scales`): codes of the
    base of `bits` bits, the planes' signs bool [planes, rows, n], and the values of level number `level`."""
    codes = base_codes(values, scales[0], scales[1], bits)
    value = (codes - scales[1][:, None]) * scales[0][:, None]
    reached, signs = value, []
    for number, step in enumerate(scales[2:], 1):
        plus = values >= value
        value = value + np.where(plus, step[:, None], -step[:, None])
        signs.append(plus)
        reached = value if number <= level else reached
    return codes, np.array(signs, np.bool_).reshape(len(signs), *values.shape), reached


@dataclass(frozen=True)
class NestedTensor:
    """A matrix f32 [rows, columns] at widths `bits`, each one bit wider than the one before.

    `planes`: the base and one residual plane for each further width (kernels/nested.py). With `copies` each
    is a whole matrix of its width instead.
    """

    planes: tuple[Plane, ...]
    bits: tuple[int, ...]
    copies: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of all planes, scales and padding included."""
        return sum(plane.nbytes for plane in self.planes)

    def dequant(self, bits: int) -> F32:
        """The matrix of width `bits`. Raises UserError for a width that is not there."""
        return self._bound.dense(self._level(bits))

    def matmul(self, x: F32, bits: int) -> F32:
        """x f32 [n, columns] times the matrix of width `bits`, f32 [n, rows]."""
        out = np.empty((len(x), self.planes[0].rows), np.float32)
        levels = np.full(len(x), self._level(bits), np.int32)
        self._bound.at(levels).multiply(x, out, activations="f32", add=False, bias=None)
        return out

    @property
    def _bound(self) -> BoundNested:
        return BoundNested(self.planes, self.bits[0], not self.copies)

    def _level(self, bits: int) -> int:
        if bits not in self.bits:
            raise not_allowed("bits", bits, self.bits)
        return self.bits.index(bits)


def check_widths(bits: Sequence[int]) -> None:
    """Raises UserError for widths that do not follow one another."""
    ascending = list(range(bits[0], bits[0] + len(bits))) if bits else [0]
    if list(bits) != ascending or not 1 <= bits[0] <= bits[-1] <= MOST_BITS:
        raise UserError(
            f"bits={tuple(bits)} cannot be nested: each width is one more than the one before, within 1 to "
            f"{MOST_BITS}; use (2, 3, 4).",
            field="bits",
            given=list(bits),
            nearest=[2, 3, 4],
        )


def mwq_quantize(
    weight: F32,
    inputs: F32 | None = None,
    bits: Sequence[int] = (2, 3, 4),
    group: int = 128,
    compensate: str = "top",
    damp: float = 0.01,
    *,
    hessian: F64 | None = None,
    block: int = BLOCK,
    pad: bool = False,
) -> NestedTensor:
    """`weight` f32 [rows, columns] as nested planes of widths `bits`, a scale for each `group` of columns.

    `inputs` f32 [n, columns], or their mean x x^T `hessian` f64 [columns, columns], say what errors cost
    (neither: all columns alike, and nothing is compensated). Columns are taken group by group; each group
    gets its base and all its planes, and the error of the level `compensate` names is spread over the groups
    after it (none; bottom, middle, top: of the narrowest, the middle and the widest width). `pad`: the last
    group may be shorter. Raises UserError for widths that are not consecutive, a group that does not divide
    the columns, weights that are not finite.
    """
    check_widths(bits)
    if compensate not in COMPENSATIONS:
        raise not_allowed("compensate", compensate, COMPENSATIONS)
    if weight.shape[1] % group and not pad:
        raise UserError(
            f"group={group} does not divide the {weight.shape[1]} inputs of the matrix; choose one that "
            "does, or pad=True, which makes the last group shorter.",
            field="group",
            given=group,
        )
    if not np.isfinite(weight).all():
        raise UserError("the weights hold numbers that are not finite; the checkpoint is damaged.", field="W")
    if hessian is None and inputs is not None:
        wide = inputs.astype(np.float64)
        hessian = wide.T @ wide / max(1, len(wide))
    upper, costs = None, None if hessian is None else np.diagonal(hessian).copy()
    if hessian is not None and compensate != "none":
        upper = upper_of_inverse(hessian, damp)
        costs = 1 / np.square(np.diagonal(upper))  # what is left of an error once later inputs made good
    spread = {"none": 0, "bottom": 0, "middle": (len(bits) - 1) // 2, "top": len(bits) - 1}[compensate]
    rows, columns = weight.shape
    groups = -(-columns // group)
    left = np.array(weight, np.float32)
    codes = np.zeros((rows, columns), np.uint8)
    plus = np.zeros((len(bits) - 1, rows, columns), np.bool_)
    scales = np.zeros((len(bits) + 1, rows, groups), np.float32)  # of the base, its zeros, of the planes
    for g in range(groups):
        inside = slice(g * group, min((g + 1) * group, columns))
        own = None if costs is None else costs[inside]
        scales[:, :, g] = group_scales(left[:, inside], bits, spread, own)
        step = group if upper is None else min(block, group)
        errors = np.zeros((rows, inside.stop - inside.start))
        for start in range(inside.start, inside.stop, step):
            part = slice(start, min(start + step, inside.stop))
            codes[:, part], plus[:, :, part], value = nest(left[:, part], scales[:, :, g], bits[0], spread)
            if upper is not None:
                miss = (left[:, part] - value).astype(np.float64)
                error = np.linalg.solve(upper[part, part].T, miss.T).T
                errors[:, start - inside.start : part.stop - inside.start] = error
                left[:, part.stop : inside.stop] -= error @ upper[part, part.stop : inside.stop]
        if upper is not None and inside.stop < columns:
            left[:, inside.stop :] -= errors @ upper[inside, inside.stop :]
    base = pack_base(codes, scales[0], scales[1], bits[0], group)
    planes = (pack_signs(plus[k], scales[k + 2], group) for k in range(len(bits) - 1))
    return NestedTensor((base, *planes), tuple(bits))


def copies_quantize(
    weight: F32,
    bits: Sequence[int] = (2, 3, 4),
    group: int = 128,
    damp: float = 0.01,
    *,
    hessian: F64 | None = None,
) -> NestedTensor:
    """A matrix of its own for every width, each compensated by itself: what nesting is compared with."""
    check_widths(bits)
    bases = [
        mwq_quantize(weight, bits=(width,), group=group, damp=damp, hessian=_copy(hessian), pad=True).planes[
            0
        ]
        for width in bits
    ]
    return NestedTensor(tuple(bases), tuple(bits), copies=True)


def _copy(hessian: F64 | None) -> F64 | None:
    return None if hessian is None else hessian.copy()
