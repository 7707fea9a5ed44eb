"""Weight matrices as the kernels read them, and the packed layout byte by byte.

Layout `rows-1` (f32, f16, bf16): `rows` x `columns` numbers, little endian, row after row; what hub files
hold.

Layout `rows16-1` (int8, int4, int3, and f32 copied at load): 16 output rows are interleaved, so that one
64-byte load serves 16 outputs. Rows are padded to a multiple of 16, columns to a multiple of the group (int8:
of 32); padding holds weight 0 and scale 0. The blocks of 16 rows follow one another. With r = row % 16:

- **f32**: for every column 64 bytes, the weights of the 16 rows; no padding of columns and no scales. See
  `interleaved`.
- **int8**, one scale per row: for every 4 columns 64 bytes, byte `4 * r + c` = weight of (row, column c of
  the 4) + 128; after all columns 16 scales of the rows as f32 (64 bytes).
- **int8 in groups of 32**, one scale per row and group: the same 64 bytes for every 4 columns; after each
  group's 512 bytes its 16 scales as f16 (32 bytes).
- **int4**, one scale per row and group of columns: for each group, for every 8 columns 64 bytes, byte `4 *
  r + c` = (weight of column c of the 8) + 8 in the low half and (weight of column 4 + c) + 8 in the high
  half (c = 0..3); after the group's bytes its 16 scales as f16 (32 bytes).
- **int3**, one scale per row and group of columns: for each group, for every 32 columns three times 64 bytes,
  A, B and C. With q(n) = (weight of column 4 * n + c) + 4, byte `4 * r + c` of A is q(0) + 8 q(1) and the low
  two bits of q(6) above; of B the same of q(2), q(3), q(7); of C q(4) + 8 q(5), bit 2 of q(6) as bit 6 and
  bit 2 of q(7) as bit 7. After the group's bytes its 16 scales as f16 (32 bytes).

A weight's value is its integer times its scale.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError, not_allowed

Array = npt.NDArray[Any]

FLOAT_BYTES = {"f32": 4, "f16": 2, "bf16": 2}
KINDS = ("f32", "f16", "bf16", "int8", "int4", "int3")
GROUPS = (32, 64, 96, 128)
INT8_GROUPS = (32,)
SMALL = {"int4": 4, "int3": 3}
"""Bits of the kinds that have a scale for each row and group of columns."""
PACKED = ("int8", *SMALL)
LAYOUTS = {kind: "rows16-1" if kind in PACKED else "rows-1" for kind in KINDS}
INT8_COLUMNS = 32
"""int8: columns are padded to this many, and activations get one scale for each so many."""


def _round_up(n: int, step: int) -> int:
    return -(-n // step) * step


def packed_nbytes(kind: str, rows: int, columns: int, group: int | None = None) -> int:
    """How many bytes a matrix takes: exact, padding included."""
    if kind in FLOAT_BYTES:
        return rows * columns * FLOAT_BYTES[kind]
    blocks = _round_up(rows, 16) // 16
    if kind == "int8" and group is not None:
        group = _checked_group(group, INT8_GROUPS)
        return blocks * (_round_up(columns, group) // group) * (group * 16 + 32)
    if kind == "int8":
        return blocks * (_round_up(columns, INT8_COLUMNS) * 16 + 64)
    if kind in SMALL:
        group = _checked_group(group)
        return blocks * (_round_up(columns, group) // group) * (group * 2 * SMALL[kind] + 32)
    raise not_allowed("kind", kind, KINDS)


def _checked_group(group: int | None, allowed: tuple[int, ...] = GROUPS) -> int:
    if group not in allowed:
        raise not_allowed("group", group, allowed)
    return group


@dataclass(frozen=True, eq=False)
class Matrix:
    """`rows` outputs by `columns` inputs of `kind` in `layout`.

    `data` is a flat uint8 array; it may be a read-only view of a mapped file at any alignment and must
    outlive no one: the matrix keeps it. `group` is the number of columns under one scale (int4, int3, and
    int8 in groups), else None.
    """

    kind: str
    rows: int
    columns: int
    group: int | None
    layout: str
    data: Array
    _handle: Any = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise not_allowed("kind", self.kind, KINDS)
        if self.layout != LAYOUTS[self.kind] and not self.interleaved:
            raise not_allowed("layout", self.layout, [LAYOUTS[self.kind]])
        if self.rows < 1 or self.columns < 1:
            raise UserError(
                f"a matrix needs at least one row and column, not {self.rows} x {self.columns}", field="shape"
            )
        if self.kind in SMALL:
            _checked_group(self.group)
        elif self.kind == "int8" and self.group is not None:
            _checked_group(self.group, INT8_GROUPS)
        elif self.group is not None:
            raise UserError(
                f"group={self.group} is for {', '.join(PACKED)}; {self.kind} takes none",
                field="group",
                given=self.group,
            )
        data = self.data
        if data.dtype != np.uint8 or data.ndim != 1 or not data.flags.c_contiguous:
            object.__setattr__(self, "data", np.ascontiguousarray(data).reshape(-1).view(np.uint8))
        needed = packed_nbytes(self.kind, self.rows, self.columns, self.group)
        if self.interleaved:
            needed = interleaved_nbytes(self.rows, self.columns)
        if self.data.nbytes != needed:
            raise UserError(
                f"a {self.kind} matrix of {self.rows} x {self.columns} takes {needed} bytes, "
                f"got {self.data.nbytes}",
                field="data",
                given=self.data.nbytes,
                nearest=needed,
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return Matrix, (self.kind, self.rows, self.columns, self.group, self.layout, self.data)

    @property
    def interleaved(self) -> bool:
        """True for f32 in layout rows16-1."""
        return self.kind == "f32" and self.layout == "rows16-1"

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.columns

    @property
    def nbytes(self) -> int:
        return int(self.data.nbytes)

    @classmethod
    def from_bytes(
        cls,
        kind: str,
        shape: tuple[int, int],
        group: int | None,
        layout: str,
        data: memoryview | bytes | bytearray | Array,
    ) -> Matrix:
        """A matrix over bytes that are already in `layout` (no copy)."""
        rows, columns = (int(n) for n in shape)
        return cls(kind, rows, columns, group, layout, np.frombuffer(data, dtype=np.uint8))

    @classmethod
    def from_array(cls, values: Array, kind: str = "f32") -> Matrix:
        """A float matrix of `kind` from numbers [rows, columns], rounded to nearest even."""
        if kind not in FLOAT_BYTES:
            raise not_allowed("kind", kind, list(FLOAT_BYTES))
        rows, columns = values.shape
        if kind == "bf16":
            stored = to_bf16(np.asarray(values, dtype=np.float32))
        else:
            stored = np.asarray(values, dtype=np.float32 if kind == "f32" else np.float16)
        return cls(
            kind, rows, columns, None, "rows-1", np.ascontiguousarray(stored).reshape(-1).view(np.uint8)
        )


def interleaved_nbytes(rows: int, columns: int) -> int:
    """Bytes of `interleave_rows` of a matrix."""
    return _round_up(rows, 16) * columns * 4


def interleave_rows(matrix: Matrix, out: Array | None = None) -> Matrix:
    """A copy of a float matrix as f32 in layout rows16-1, which products of many rows read faster.

    `out`: zeroed memory for it, uint8[interleaved_nbytes]. About 4 MiB of rows are converted at a time.
    """
    rows, columns = matrix.shape
    blocks = _round_up(rows, 16) // 16
    out = np.zeros(interleaved_nbytes(rows, columns), np.uint8) if out is None else out
    packed = out.view(np.float32).reshape(blocks, columns, 16)
    row = FLOAT_BYTES[matrix.kind] * columns
    at_once = max(1, (4 << 20) // (16 * row))
    for block in range(0, blocks, at_once):
        first, last = block * 16, min((block + at_once) * 16, rows)
        part = Matrix(
            matrix.kind, last - first, columns, None, "rows-1", matrix.data[first * row : last * row]
        )
        values = unpack(part)
        whole = (last - first) // 16
        packed[block : block + whole] = values[: whole * 16].reshape(whole, 16, columns).transpose(0, 2, 1)
        if whole * 16 < len(values):
            packed[block + whole, :, : len(values) - whole * 16] = values[whole * 16 :].T
    return Matrix("f32", rows, columns, None, "rows16-1", out)


def to_bf16(values: Array) -> Array:
    """f32 -> the upper 16 bits (uint16), rounded to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), ((bits >> 16) | 0x40).astype(np.uint16), rounded)


def from_bf16(stored: Array) -> Array:
    """uint16 -> f32."""
    return (stored.astype(np.uint32) << 16).view(np.float32)


def pack_int8(values: Array, scales: Array, group: int | None = None) -> Matrix:
    """int8 weights `values` [rows, columns] with one scale per row, f32[rows]; with `group` (32) one per row
    and group, f32[rows, ceil(columns / group)], stored as f16 and refused where f16 cannot hold them."""
    values, scales = np.asarray(values), np.asarray(scales, dtype=np.float32)
    rows, columns = _checked_values("pack_int8", values, -128, 127)
    groups = None if group is None else -(-columns // _checked_group(group, INT8_GROUPS))
    expected = (rows,) if groups is None else (rows, groups)
    if scales.shape != expected:
        raise UserError(f"pack_int8 expects scales of shape {expected}, got {scales.shape}", field="scales")
    blocks, padded = _round_up(rows, 16) // 16, _round_up(columns, INT8_COLUMNS)
    quads = np.zeros((blocks * 16, padded), np.int16)
    quads[:rows, :columns] = values
    bytes_ = (quads + 128).astype(np.uint8).reshape(blocks, 16, padded // 4, 4).transpose(0, 2, 1, 3)
    if group is not None and groups is not None:
        if not bool(np.all(np.abs(scales) < 65520)):
            raise UserError(
                "pack_int8: a scale does not fit f16 (beyond 65504, or not finite)", field="scales"
            )
        grouped = np.empty((blocks, groups, group * 16 + 32), np.uint8)
        grouped[:, :, :-32] = bytes_.reshape(blocks, groups, -1)
        halves = np.zeros((blocks * 16, groups), "<f2")
        halves[:rows] = scales
        grouped[:, :, -32:] = np.ascontiguousarray(
            halves.reshape(blocks, 16, groups).transpose(0, 2, 1)
        ).view(np.uint8)
        return Matrix("int8", rows, columns, group, "rows16-1", grouped.reshape(-1))
    packed = np.empty((blocks, padded * 16 + 64), np.uint8)
    packed[:, :-64] = bytes_.reshape(blocks, -1)
    inline = np.zeros((blocks, 16), "<f4")
    inline.reshape(-1)[:rows] = scales
    packed[:, -64:] = inline.view(np.uint8)
    return Matrix("int8", rows, columns, None, "rows16-1", packed.reshape(-1))


def pack_int4(values: Array, scales: Array, group: int) -> Matrix:
    """int4 weights `values` [rows, columns] in -8..7 with scales f32[rows, ceil(columns / group)], stored
    as f16.

    Scales that f16 cannot hold (beyond 65504, or not finite) are refused.
    """
    return _pack_small("int4", values, scales, group)


def pack_int3(values: Array, scales: Array, group: int) -> Matrix:
    """int3 weights `values` [rows, columns] in -4..3, otherwise as `pack_int4`."""
    return _pack_small("int3", values, scales, group)


def _pack_small(kind: str, values: Array, scales: Array, group: int) -> Matrix:
    values, scales = np.asarray(values), np.asarray(scales, dtype=np.float32)
    raised = 1 << (SMALL[kind] - 1)
    rows, columns = _checked_values(f"pack_{kind}", values, -raised, raised - 1)
    group = _checked_group(group)
    blocks, groups = _round_up(rows, 16) // 16, _round_up(columns, group) // group
    if scales.shape != (rows, groups):
        raise UserError(
            f"pack_{kind} expects scales of shape ({rows}, {groups}), got {scales.shape}", field="scales"
        )
    if not bool(np.all(np.abs(scales) < 65520)):
        raise UserError(
            f"pack_{kind}: a scale does not fit f16 (beyond 65504, or not finite)", field="scales"
        )
    codes = np.zeros((blocks * 16, groups * group), np.int16)
    codes[:rows, :columns] = values
    # block, row, group, quad, column -> block, group, quad, row, column
    quads = (codes + raised).astype(np.uint8).reshape(blocks, 16, groups, group // 4, 4)
    quads = quads.transpose(0, 2, 3, 1, 4)
    packed = np.empty((blocks, groups, group * 2 * SMALL[kind] + 32), np.uint8)
    joined = join_fours(quads) if kind == "int4" else join_threes(quads)
    packed[:, :, :-32] = joined.reshape(blocks, groups, -1)
    inline = np.zeros((blocks * 16, groups), "<f2")
    inline[:rows] = scales
    packed[:, :, -32:] = np.ascontiguousarray(inline.reshape(blocks, 16, groups).transpose(0, 2, 1)).view(
        np.uint8
    )
    return Matrix(kind, rows, columns, group, "rows16-1", packed.reshape(-1))


def join_fours(quads: Array) -> Array:
    """Numbers 0..15 [a, b, quads, ...] as bytes [a, b, quads / 2, ...]: even quads low, odd ones high."""
    return np.asarray(quads[:, :, 0::2] | (quads[:, :, 1::2] << 4))


def split_fours(bytes_: Array) -> Array:
    """The inverse of `join_fours`."""
    a, b, count, *rest = bytes_.shape
    return np.stack([bytes_ & 15, bytes_ >> 4], axis=3).reshape(a, b, 2 * count, *rest)


def join_threes(quads: Array) -> Array:
    """Numbers 0..7 [a, b, quads, ...] as bytes [a, b, quads * 3 / 8, ...]: eight quads in three."""
    a, b, count, *rest = quads.shape
    q = np.moveaxis(quads.reshape(a, b, count // 8, 8, *rest), 3, 0)
    first = q[0] | (q[1] << 3) | ((q[6] & 3) << 6)
    second = q[2] | (q[3] << 3) | ((q[7] & 3) << 6)
    third = q[4] | (q[5] << 3) | ((q[6] >> 2) << 6) | ((q[7] >> 2) << 7)
    return np.stack([first, second, third], axis=3).reshape(a, b, count // 8 * 3, *rest)


def split_threes(bytes_: Array) -> Array:
    """The inverse of `join_threes`."""
    a, b, count, *rest = bytes_.shape
    first, second, third = np.moveaxis(bytes_.reshape(a, b, count // 3, 3, *rest), 3, 0)
    quads = [one >> shift & 7 for one in (first, second, third) for shift in (0, 3)]
    quads += [first >> 6 | (third >> 4 & 4), second >> 6 | (third >> 5 & 4)]
    return np.stack(quads, axis=3).reshape(a, b, count // 3 * 8, *rest)


def _checked_values(what: str, values: Array, low: int, high: int) -> tuple[int, int]:
    if values.ndim != 2 or values.size == 0 or not np.issubdtype(values.dtype, np.integer):
        raise UserError(
            f"{what} expects integers [rows, columns], got {values.dtype} of shape {values.shape}",
            field="values",
        )
    if int(values.min()) < low or int(values.max()) > high:
        raise UserError(
            f"{what} expects values in {low}..{high}, got {int(values.min())}..{int(values.max())}",
            field="values",
        )
    return values.shape[0], values.shape[1]


def unpack_integers(matrix: Matrix) -> tuple[Array, Array]:
    """The integers int8[rows, columns] and scales f32 ([rows, groups] in groups, else [rows])."""
    rows, columns = matrix.shape
    blocks = _round_up(rows, 16) // 16
    if matrix.kind == "int8" and matrix.group is not None:
        grouped = matrix.data.reshape(blocks, -1, matrix.group * 16 + 32)
        groups = grouped.shape[1]
        quads = grouped[:, :, :-32].reshape(blocks, -1, 16, 4).transpose(0, 2, 1, 3).reshape(blocks * 16, -1)
        halves = np.ascontiguousarray(grouped[:, :, -32:]).view("<f2").transpose(0, 2, 1)
        return (
            (quads[:rows, :columns].astype(np.int16) - 128).astype(np.int8),
            halves.reshape(blocks * 16, groups)[:rows].astype(np.float32),
        )
    if matrix.kind == "int8":
        packed = matrix.data.reshape(blocks, -1)
        bytes_ = packed[:, :-64].reshape(blocks, -1, 16, 4).transpose(0, 2, 1, 3).reshape(blocks * 16, -1)
        scales = np.ascontiguousarray(packed[:, -64:]).view("<f4").reshape(-1)[:rows]
        return (bytes_[:rows, :columns].astype(np.int16) - 128).astype(np.int8), scales.astype(np.float32)
    if matrix.kind not in SMALL or matrix.group is None:
        raise not_allowed("kind", matrix.kind, PACKED)
    bits, group = SMALL[matrix.kind], matrix.group
    grouped = matrix.data.reshape(blocks, -1, group * 2 * bits + 32)
    groups = grouped.shape[1]
    joined = grouped[:, :, :-32].reshape(blocks, groups, group * bits // 32, 16, 4)
    quads = split_fours(joined) if matrix.kind == "int4" else split_threes(joined)
    # block, group, quad, row, column -> block, row, group, quad, column
    codes = quads.transpose(0, 3, 1, 2, 4).reshape(blocks * 16, -1)
    stored = np.ascontiguousarray(grouped[:, :, -32:]).view("<f2").transpose(0, 2, 1)
    scales = stored.reshape(blocks * 16, groups)[:rows].astype(np.float32)
    return codes[:rows, :columns].astype(np.int8) - np.int8(1 << (bits - 1)), scales


def unpack(matrix: Matrix) -> Array:
    """The matrix as f32[rows, columns]."""
    rows, columns = matrix.shape
    if matrix.interleaved:
        blocks = matrix.data.view("<f4").reshape(-1, columns, 16).transpose(0, 2, 1)
        return blocks.reshape(-1, columns)[:rows].astype(np.float32)
    if matrix.kind == "f32":
        return np.frombuffer(matrix.data, dtype="<f4").reshape(rows, columns).astype(np.float32)
    if matrix.kind == "f16":
        return np.frombuffer(matrix.data, dtype="<f2").reshape(rows, columns).astype(np.float32)
    if matrix.kind == "bf16":
        return from_bf16(np.frombuffer(matrix.data, dtype="<u2").reshape(rows, columns))
    integers, scales = unpack_integers(matrix)
    spread = scales[:, None] if matrix.group is None else np.repeat(scales, matrix.group, axis=1)[:, :columns]
    return integers.astype(np.float32) * spread
