"""Levels and scales shared by the precision methods: symmetric integers, one scale a group of inputs.

A weight matrix has one row an output and one column an input. A group is `group` neighbouring columns of one
row (the last may be shorter); a weight is stored as code * scale with codes in -4..3 (3 bits), -8..7 (4 bits)
or -127..127 (8 bits). Everything here is a pure function on numpy arrays.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError

F32 = NDArray[np.float32]
I8 = NDArray[np.int8]
Limits = tuple[F32, F32]  # smallest and largest codes

# Shares of the full range tried by a clipping search, widest first; below 0.6 no layer met so far gained.
CLIPPING = tuple(1.0 - 0.04 * step for step in range(11))


def levels(bits: int) -> tuple[int, int]:
    """Smallest and largest code: (-4, 3) for 3 bits, (-8, 7) for 4; (-127, 127) for 8, where one more gains
    nothing.
    """
    high = (1 << (bits - 1)) - 1
    return (-high if bits == 8 else -high - 1), high


def group_count(columns: int, group: int | None) -> int:
    """Scales in a row of `columns` weights; `group` None is the whole row."""
    return 1 if group is None else -(-columns // group)


def grouped(weight: F32, group: int | None) -> F32:
    """`weight` [rows, columns] as [rows, groups, group], the last group filled up with zeros."""
    rows, columns = weight.shape
    size = group or columns
    padding = group_count(columns, group) * size - columns
    if padding:
        weight = np.pad(weight, ((0, 0), (0, padding)))
    return weight.reshape(rows, -1, size)


def storable(scales: F32, half: bool) -> F32:
    """`scales` as they read back after storage: through f16 when `half`.

    Raises UserError above f16's range.
    """
    if not half:
        return scales.astype(np.float32)
    if scales.size and float(np.abs(scales).max()) > 65504.0:
        raise UserError(
            "weights above 4.5e5 are too large for 4 bits with 16-bit scales; "
            "keep this layer at 8 bits or more",
            field="precision",
            given="bits=4",
            nearest="bits=8",
        )
    return scales.astype(np.float16).astype(np.float32)


def divide(values: F32, scales: F32) -> F32:
    """`values` / `scales` where a zero scale (a group of zeros, or one below f16's range) gives zero."""
    return np.divide(
        values, scales, out=np.zeros(np.broadcast(values, scales).shape, np.float32), where=scales != 0
    )


def codes_of(values: F32, scales: F32, bits: int | Limits) -> F32:
    """The nearest code of each of `values`, still as float32; `scales` broadcasts against them.

    Ties go to even. Smallest and largest codes in place of `bits` broadcast as well: from -zero to 2^b - 1 -
    zero they make the scale an affine one.
    """
    low, high = levels(bits) if isinstance(bits, int) else bits
    return np.clip(np.rint(divide(values, scales)), low, high)


def symmetric_scales(values: F32, bits: int, *, half: bool) -> F32:
    """The scale [...] of each group `values` [..., group] that puts its largest magnitude on the largest
    code.
    """
    return storable(np.abs(values).max(axis=-1) / levels(bits)[1], half)


def leaning_scales(values: F32, bits: int, *, half: bool, share: float = 1.0) -> F32:
    """Signed scales [...] that put the value of largest magnitude of each group on the lowest code.

    The range of 4-bit codes is lopsided, and a scale may be negative; so every group can lean on its longer
    side, with steps 7/8 as wide. `share` below 1 clips: the lowest code then stands for that share of the
    largest value.
    """
    largest = np.take_along_axis(values, np.abs(values).argmax(axis=-1, keepdims=True), axis=-1)[..., 0]
    return storable(largest * np.float32(share / levels(bits)[0]), half)


def searched_scales(values: F32, bits: int, *, half: bool, importance: F32 | None = None) -> F32:
    """The scale [...] of each group of `values` [..., group] with the smallest squared rounding error.

    Tried are the symmetric scale and the leaning scale of either sign at every share of CLIPPING.
    `importance` [group] weighs the squared errors of the columns.
    """
    best = symmetric_scales(values, bits, half=half)
    least = rounding_error(values, best, bits, importance)
    for share in CLIPPING:
        leaning = leaning_scales(values, bits, half=half, share=share)
        for candidate in (leaning, -leaning):
            error = rounding_error(values, candidate, bits, importance)
            better = error < least
            best, least = np.where(better, candidate, best), np.where(better, error, least)
    return best


def rounding_error(values: F32, scales: F32, bits: int, importance: F32 | None) -> F32:
    """Squared error [...] of rounding each group of `values` [..., group]; `importance` [group] weighs
    columns.
    """
    error = values - codes_of(values, scales[..., None], bits) * scales[..., None]
    return np.square(error).sum(axis=-1) if importance is None else np.square(error) @ importance


def choose_scales(values: F32, bits: int, choice: str, *, half: bool, importance: F32 | None = None) -> F32:
    """Scales [...] of groups `values` [..., group]; `choice` is "largest", "leaning" or "searched"."""
    if choice == "largest":
        return symmetric_scales(values, bits, half=half)
    if choice == "leaning":
        return leaning_scales(values, bits, half=half)
    return searched_scales(values, bits, half=half, importance=importance)


def restored(codes: I8 | F32, scales: F32, group: int | None) -> F32:
    """The weights [rows, columns] that `codes` [rows, columns] and `scales` [rows, groups] stand for."""
    rows, columns = codes.shape
    wide = grouped(codes.astype(np.float32), group) * scales[:, :, None]
    return np.ascontiguousarray(wide.reshape(rows, -1)[:, :columns])
