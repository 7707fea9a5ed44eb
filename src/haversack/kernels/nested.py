"""Planes of nested matrices, and products with one of them: bits of a weight that are stored, read and added
apart.

A nested matrix is a base of `bits` bits, value (code - zero) * scale, and residual planes of one bit each,
value scale or -scale, which are added to it; a width of b bits is the base and the first planes. Each plane
multiplies alone, out += plane times x, so that a product begins when the base is there and grows as planes
arrive.

Layout of a plane: blocks of 16 rows, the last filled up with zeros; in a block the groups of columns, the
last of which may be shorter. A group holds, for each bit, the lowest first, 16 bits for every column (bit r:
row r of the block); then the 16 scales as f16, and in a base the 16 zeros as f16.

One chain of sums along the columns of a group for each bit; groups are added in order from zero, and their
sum is then added to `out`. Activations are f32. Row-invariant.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from haversack.core.errors import UserError
from haversack.kernels._arguments import check_array, refuse_arrays
from haversack.kernels._matrix import Array
from haversack.kernels._native import native

MOST_BITS = 8


def plane_nbytes(rows: int, columns: int, group: int, bits: int, base: bool) -> int:
    """How many bytes a plane takes: exact, padding included."""
    return -(-rows // 16) * (columns * bits * 2 + -(-columns // group) * (64 if base else 32))


@dataclass(frozen=True, eq=False)
class Plane:
    """A base (`base`) of `bits` bits, or a residual plane, of a matrix [rows, columns] with a scale for each
    row and `group` columns; `data` is flat uint8 in the layout above."""

    rows: int
    columns: int
    group: int
    bits: int
    base: bool
    data: Array
    _handle: Any = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1 or self.group < 1:
            raise UserError(
                f"a plane needs rows, columns and a group, not {self.rows}, {self.columns}, {self.group}",
                field="shape",
            )
        if not 1 <= self.bits <= MOST_BITS or (self.bits != 1 and not self.base):
            raise UserError(
                f"a base has 1 to {MOST_BITS} bits and a residual plane one, not {self.bits}",
                field="bits",
                given=self.bits,
            )
        needed = plane_nbytes(self.rows, self.columns, self.group, self.bits, self.base)
        if self.data.dtype != np.uint8 or self.data.ndim != 1 or self.data.nbytes != needed:
            raise UserError(
                f"a plane of {self.rows} x {self.columns} takes {needed} bytes, got {self.data.nbytes}",
                field="data",
                given=int(self.data.nbytes),
                nearest=needed,
            )

    @property
    def nbytes(self) -> int:
        return int(self.data.nbytes)

    def unpacked(self) -> tuple[Array, Array, Array]:
        """Codes uint8 [rows, columns], scales f32 [rows, groups] and zeros f32 [rows, groups] (a residual
        plane's codes are 1 for plus and 0 for minus, its zeros one half)."""
        blocks, groups = -(-self.rows // 16), -(-self.columns // self.group)
        cells = self.data.reshape(blocks, -1)
        codes = np.zeros((blocks, 16, self.columns), np.uint8)
        scales, zeros = np.zeros((2, blocks, 16, groups), np.float32)
        at = 0
        for g in range(groups):
            part = slice(g * self.group, min((g + 1) * self.group, self.columns))
            count = part.stop - part.start
            for bit in range(self.bits):
                masks = np.ascontiguousarray(cells[:, at : at + 2 * count]).view("<u2")
                rows = masks[:, None, :] >> np.arange(16, dtype=np.uint16)[None, :, None] & 1
                codes[:, :, part] |= (rows << bit).astype(np.uint8)
                at += 2 * count
            scales[:, :, g] = np.ascontiguousarray(cells[:, at : at + 32]).view("<f2")
            at += 32
            if self.base:
                zeros[:, :, g] = np.ascontiguousarray(cells[:, at : at + 32]).view("<f2")
                at += 32
            else:
                zeros[:, :, g] = 0.5
        return tuple(  # type: ignore[return-value]
            each.reshape(blocks * 16, -1)[: self.rows] for each in (codes, scales, zeros)
        )

    def dense(self) -> Array:
        """What the plane adds to the matrix, f32 [rows, columns]."""
        codes, scales, zeros = self.unpacked()
        wide = [np.repeat(each, self.group, axis=1)[:, : self.columns] for each in (scales, zeros)]
        step = np.float32(1 if self.base else 2)
        return np.asarray((codes.astype(np.float32) - wide[1]) * (step * wide[0]), np.float32)

    def add(self, x: Array, out: Array) -> None:
        """out f32 [n, rows] += the plane times x f32 [n, columns]. Raises UserError for what does not fit."""
        module = native()
        if module is not None and module.nested_add(x, self._bound(module), out):
            return
        n = len(check_array("nested_add", "x", x, (None, self.columns)))
        check_array("nested_add", "out", out, (n, self.rows))
        if module is not None:
            refuse_arrays("nested_add")
        add_twin(self, x, out)

    def _bound(self, module: Any) -> Any:
        if self._handle is None:
            given = (self.data, self.rows, self.columns, self.group, self.bits, self.base)
            object.__setattr__(self, "_handle", module.nested_plane(*given))
        return self._handle


def add_twin(plane: Plane, x: Array, out: Array) -> None:
    """The definition of `Plane.add`, in numpy."""
    weights = plane.dense()
    for row, to in zip(x, out, strict=True):
        to += weights @ row


def pack_base(codes: Array, scales: Array, zeros: Array, bits: int, group: int) -> Plane:
    """A base of codes [rows, columns] below 2^bits with scales and zeros [rows, groups], which are stored as
    f16."""
    return _packed(codes, (scales, zeros), bits, group, base=True)


def pack_signs(plus: Array, scales: Array, group: int) -> Plane:
    """A residual plane: `plus` [rows, columns] says where scales [rows, groups] are added, not taken away."""
    return _packed(np.asarray(plus), (scales,), 1, group, base=False)


def _packed(codes: Array, ends: tuple[Array, ...], bits: int, group: int, base: bool) -> Plane:
    rows, columns = codes.shape
    blocks, groups = -(-rows // 16), -(-columns // group)
    if codes.size and not 0 <= int(codes.min()) <= int(codes.max()) < 1 << bits:
        raise UserError(f"codes of {bits} bits are 0 to {(1 << bits) - 1}", field="codes")
    for each in ends:
        if each.shape != (rows, groups) or not bool(np.all(np.abs(each) < 65520)):
            raise UserError(
                f"a plane of {rows} x {columns} has f16 scales and zeros of shape ({rows}, {groups})",
                field="scales",
            )
    wide = np.zeros((blocks * 16, columns), np.uint16)
    wide[:rows] = codes
    wide = wide.reshape(blocks, 16, columns)
    weights = (np.uint16(1) << np.arange(16, dtype=np.uint16))[None, :, None]
    pieces: list[Array] = []
    for g in range(groups):
        part = wide[:, :, g * group : (g + 1) * group]
        for bit in range(bits):
            masks = ((part >> np.uint16(bit) & np.uint16(1)) * weights).sum(axis=1).astype("<u2")
            pieces.append(masks.view(np.uint8))
        for each in ends:
            halves = np.zeros(blocks * 16, "<f2")
            halves[:rows] = each[:, g]
            pieces.append(halves.reshape(blocks, 16).view(np.uint8))
    data = np.ascontiguousarray(np.concatenate(pieces, axis=1)).reshape(-1)
    return Plane(rows, columns, group, bits, base, data)
