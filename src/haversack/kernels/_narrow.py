"""int2: a kind for storage alone. What is read of it becomes an int4 matrix of the same numbers, which is
what kernels multiply.

Layout `rows16-1`, as int4 (kernels/_matrix.py), with one scale for each row and group of columns. For each
group, for every 16 columns 64 bytes: with q(n) = (weight of column 4 * n + c of the 16) + 2, byte `4 * r + c`
is q(0) + 4 q(1) + 16 q(2) + 64 q(3). After the group's bytes its 16 scales as f16 (32 bytes). Weights are -2
to 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError
from haversack.kernels._matrix import Matrix, packed_nbytes
from haversack.kernels._matrix import _checked_group as checked_group

U8 = npt.NDArray[np.uint8]


_UPPER, _LOWER, _SIXES = (np.uint64(byte * 0x0101010101010101) for byte in (0x0C, 0x03, 0x66))


def narrow_nbytes(rows: int, columns: int, group: int) -> int:
    """How many bytes an int2 matrix takes: exact, padding included."""
    return -(-rows // 16) * -(-columns // checked_group(group)) * (4 * group + 32)


def pack_int2(values: npt.NDArray[Any], scales: npt.NDArray[Any], group: int) -> U8:
    """The bytes of int2 weights `values` [rows, columns] in -2..1 with scales f32 [rows, ceil(columns /
    group)], stored as f16; refused where f16 cannot hold them.
    """
    values, scales = np.asarray(values), np.asarray(scales, dtype=np.float32)
    if values.ndim != 2 or values.size == 0 or not np.issubdtype(values.dtype, np.integer):
        raise UserError(
            f"pack_int2 expects integers [rows, columns], got {values.dtype} of shape {values.shape}",
            field="values",
        )
    if int(values.min()) < -2 or int(values.max()) > 1:
        raise UserError(
            f"pack_int2 expects values in -2..1, got {int(values.min())}..{int(values.max())}", field="values"
        )
    rows, columns = values.shape
    blocks, groups = -(-rows // 16), -(-columns // checked_group(group))
    if scales.shape != (rows, groups):
        raise UserError(
            f"pack_int2 expects scales of shape ({rows}, {groups}), got {scales.shape}", field="scales"
        )
    if not bool(np.all(np.abs(scales) < 65520)):
        raise UserError("pack_int2: a scale does not fit f16 (beyond 65504, or not finite)", field="scales")
    codes = np.full((blocks * 16, groups * group), 2, np.uint8)
    codes[:rows, :columns] = values + 2
    # block, row, group, sixteen, quad, column -> block, group, sixteen, quad, row, column
    quads = codes.reshape(blocks, 16, groups, group // 16, 4, 4).transpose(0, 2, 3, 4, 1, 5)
    joined = quads[:, :, :, 0] | quads[:, :, :, 1] << 2 | quads[:, :, :, 2] << 4 | quads[:, :, :, 3] << 6
    packed = np.empty((blocks, groups, 4 * group + 32), np.uint8)
    packed[:, :, :-32] = joined.reshape(blocks, groups, -1)
    inline = np.zeros((blocks * 16, groups), "<f2")
    inline[:rows] = scales
    ordered = np.ascontiguousarray(inline.reshape(blocks, 16, groups).transpose(0, 2, 1))
    packed[:, :, -32:] = ordered.view(np.uint8)
    return packed.reshape(-1)


def widen_int2(data: Any, rows: int, columns: int, group: int, out: U8 | None = None) -> Matrix:
    """The int4 matrix of the numbers of an int2 one whose bytes are `data`: a copy, twice as large, in `out`
    (uint8 [bytes of the int4 matrix]) when given.
    """
    cells = np.frombuffer(data, np.uint64).reshape(-1, group // 2 + 4)  # eight bytes at a time
    if out is None:
        out = np.empty(packed_nbytes("int4", rows, columns, group), np.uint8)
    wide = out.view(np.uint64).reshape(len(cells), group + 4)
    halves = wide[:, :-4].reshape(len(cells), group // 16, 2, 8)
    narrow = cells[:, :-4].reshape(len(cells), group // 16, 8)
    for half in (0, 1):  # two quads each: their codes + 6, in the low and the high bits of a byte
        pairs = narrow if half == 0 else narrow >> np.uint64(4)
        high = pairs & _UPPER
        high <<= np.uint64(2)
        high |= pairs & _LOWER
        high += _SIXES
        halves[:, :, half] = high
    wide[:, -4:] = cells[:, -4:]
    return Matrix("int4", rows, columns, group, "rows16-1", out)
