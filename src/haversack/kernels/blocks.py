"""GGUF's blocks of 32 weights and the kernels' layout `rows16-1`: the same numbers in another order.

A block of Q4_0 is an f16 scale and 16 bytes: numbers 0..15 in the low halves, 16..31 in the high ones, each
raised by 8. A block of Q8_0 is an f16 scale and 32 signed bytes. Both are what `rows16-1` holds as int4 and
int8 in groups of 32, so that nothing is rounded on the way and nothing grows (but for rows up to a multiple
of 16). The order was decided by measurement: row by row, blocks as in the file give half the speed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from haversack.core.errors import UserError, not_allowed
from haversack.kernels._matrix import Array, Matrix, packed_nbytes, unpack_integers
from haversack.kernels._native import native

GROUP = 32
BLOCK_BYTES = {"int4": 18, "int8": 34}


def interleave_twin(blocks: Array, kind: str, rows: int, columns: int, order: Array | None = None) -> Array:
    """The definition of `interleave`, in numpy."""
    groups = columns // GROUP
    stored = blocks.reshape(rows, groups, BLOCK_BYTES[kind])
    if order is not None:
        stored = stored[order]
    count = -(-rows // 16)
    scales: Array = np.zeros((count * 16, groups, 2), np.uint8)
    scales[:rows] = stored[:, :, :2]
    numbers = np.full((count * 16, groups, GROUP), 8 if kind == "int4" else 128, np.uint8)
    packed = stored[:, :, 2:]
    weights: Array
    if kind == "int4":
        numbers[:rows, :, :16], numbers[:rows, :, 16:] = packed & 15, packed >> 4
        # block, row, group, eight, half, column -> block, group, eight, row, column, half
        parts = numbers.reshape(count, 16, groups, 4, 2, 4).transpose(0, 2, 3, 1, 5, 4)
        weights = (parts[..., 0] | (parts[..., 1] << 4)).reshape(count, groups, -1)
    else:
        numbers[:rows] = packed ^ 0x80
        weights = numbers.reshape(count, 16, groups, 8, 4).transpose(0, 2, 3, 1, 4).reshape(count, groups, -1)
    inline = scales.reshape(count, 16, groups, 2).transpose(0, 2, 1, 3).reshape(count, groups, -1)
    return np.concatenate([weights, inline], axis=2).reshape(-1)


def interleave(
    blocks: Any, kind: str, rows: int, columns: int, order: Array | None = None, out: Array | None = None
) -> Array:
    """Blocks of Q4_0 (`kind` int4) or Q8_0 (int8) of a matrix [rows, columns] as the bytes of `rows16-1`.

    `blocks` are the file's bytes; row r of the result is row order[r] of the file (i32 [rows]; default: the
    same order). `out` u8 takes the result. Raises UserError for sizes that do not fit.
    """
    if kind not in BLOCK_BYTES:
        raise not_allowed("kind", kind, list(BLOCK_BYTES))
    data = np.frombuffer(blocks, np.uint8)
    if (
        rows < 1
        or columns < 1
        or columns % GROUP
        or data.nbytes != rows * columns // GROUP * BLOCK_BYTES[kind]
    ):
        raise UserError(
            f"interleave: {data.nbytes} bytes are no {rows} x {columns} weights in blocks of {GROUP}",
            field="blocks",
            given=data.nbytes,
        )
    needed = packed_nbytes(kind, rows, columns, GROUP)
    to = np.empty(needed, np.uint8) if out is None else out
    if to.dtype != np.uint8 or to.shape != (needed,):
        raise UserError(f"interleave: out must be u8 [{needed}]", field="out")
    if order is not None:
        order = np.ascontiguousarray(order, np.int32)
        if order.shape != (rows,) or (rows and not 0 <= int(order.min()) <= int(order.max()) < rows):
            raise UserError(f"interleave: order must name {rows} rows", field="order")
    module = native()
    bits = 4 if kind == "int4" else 8
    if module is None or not module.interleave_blocks(data, rows, columns, bits, order, to):
        to[...] = interleave_twin(data, kind, rows, columns, order)
    return to


def to_blocks(matrix: Matrix, order: Array | None = None) -> Array:
    """A packed matrix as blocks of Q4_0 (int4, int3) or Q8_0 (int8 in groups of 32): the inverse of
    `interleave`.

    int4 in wider groups repeats its scale, which changes no value; int3 takes 4 bits here. Row r of the
    result is row order[r] of the matrix. Raises UserError for columns that are no multiple of 32 or int8
    with one scale a row.
    """
    rows, columns = matrix.shape
    kind = "int4" if matrix.kind == "int3" else matrix.kind
    if kind not in BLOCK_BYTES or matrix.group is None or columns % GROUP:
        raise UserError(
            f"a {matrix.kind} matrix of {rows} x {columns} in groups of {matrix.group} is no sum of blocks "
            f"of {GROUP}",
            field="matrix",
        )
    integers, scales = unpack_integers(matrix)
    groups = columns // GROUP
    spread = np.repeat(scales, matrix.group // GROUP, axis=1)[:, :groups].astype("<f2")
    if order is not None:
        integers, spread = integers[order], spread[order]
    numbers = integers.reshape(rows, groups, GROUP)
    found = np.empty((rows, groups, BLOCK_BYTES[kind]), np.uint8)
    found[:, :, :2] = np.ascontiguousarray(spread).view(np.uint8).reshape(rows, groups, 2)
    if kind == "int4":
        raised = (numbers + 8).astype(np.uint8)
        found[:, :, 2:] = raised[:, :, :16] | (raised[:, :, 16:] << 4)
    else:
        found[:, :, 2:] = numbers.view(np.uint8)
    return found.reshape(-1)
