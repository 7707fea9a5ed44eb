"""Products that read only some of their inputs' weights, and the layout that makes skipping real.

out[n, rows] = sum over the active inputs j of x[:, j] * weights[:, j]: input j of a row is active where
|x_j| is not at most `limits[j]` (NaN is active, and is seen in every output). What the others would have
added may be approximated by two thin matrices: `up` [rows, rank] times `down` [rank, columns] times the
inactive inputs.

Layout `columns-1`: the weights of one input lie side by side, so that a skipped input's weights are never
read. Outputs go by blocks (2,048 for floats, 4,096 for int4, the last perhaps shorter); blocks follow one
another, and in a block the inputs. Floats are little endian, without padding. int4 has one f16 scale for each
input and group of 64 or 128 *outputs*; outputs are padded to a multiple of 128. A run (one input in one
block) is its groups' scales, zeros up to a multiple of 64 bytes, then 64 bytes for every 128 outputs: byte
16 l + 4 r + i (l, r, i = 0..3) holds output 16 r + 4 l + i, raised by 8, in its low half, and the output 64
further in its high half.

With int8 activations the product of input and scale is what is rounded: to int8, with one scale for every 32
inputs in order (their active ones) and group of outputs; sums of 32 inputs are exact integers. A row with an
active input that is not finite then gives NaN in all outputs.

Row-invariant: what a row gives does not depend on the rows beside it. Several rows read the union of their
inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from haversack.core.errors import UserError, not_allowed
from haversack.kernels._arguments import check_array, refuse_arrays
from haversack.kernels._matrix import FLOAT_BYTES, Array, from_bf16, to_bf16
from haversack.kernels._native import native

CHANNEL_KINDS = ("f32", "f16", "bf16", "int4")
GROUPS = (64, 128)
BLOCK, INT4_BLOCK, UNIT = 2048, 4096, 128
CHUNK = 32
SMALLEST = np.float32(1e-30)
_CODES = {"f32": 0, "f16": 1, "bf16": 2, "int4": 4}


def _round_up(n: int, step: int) -> int:
    return -(-n // step) * step


def block_sizes(kind: str, rows: int) -> list[int]:
    """The outputs of each block, padding included."""
    size, padded = (INT4_BLOCK, _round_up(rows, UNIT)) if kind == "int4" else (BLOCK, rows)
    return [min(size, padded - first) for first in range(0, padded, size)]


def header_nbytes(outputs: int, group: int) -> int:
    """Bytes of the scales of one input in a block of int4."""
    return _round_up(-(-outputs // group) * 2, 64)


def channel_nbytes(kind: str, rows: int, group: int | None = None) -> int:
    """Bytes that one input's weights take: what is read where it is active."""
    if kind == "int4":
        checked = _checked_group(group)
        return sum(header_nbytes(count, checked) + count // 2 for count in block_sizes(kind, rows))
    if kind not in FLOAT_BYTES:
        raise not_allowed("kind", kind, CHANNEL_KINDS)
    return rows * FLOAT_BYTES[kind]


def _checked_group(group: int | None) -> int:
    if group not in GROUPS:
        raise not_allowed("group", group, GROUPS)
    return group


@dataclass(frozen=True, eq=False)
class Channels:
    """`rows` outputs by `columns` inputs of `kind` in layout columns-1; `data` is flat uint8, at any
    alignment, and may be a view of a mapped file. `group` (int4): outputs that share a scale."""

    kind: str
    rows: int
    columns: int
    group: int | None
    data: Array

    def __post_init__(self) -> None:
        if self.kind not in CHANNEL_KINDS:
            raise not_allowed("kind", self.kind, CHANNEL_KINDS)
        if self.rows < 1 or self.columns < 1:
            raise UserError(
                f"a matrix needs at least one row and column, not {self.rows} x {self.columns}", field="shape"
            )
        if self.kind != "int4" and self.group is not None:
            raise UserError(f"group={self.group} is for int4; {self.kind} takes none", field="group")
        needed = self.channel_nbytes * self.columns
        data = self.data
        if data.dtype != np.uint8 or data.ndim != 1 or data.nbytes != needed:
            raise UserError(
                f"a {self.kind} matrix of {self.rows} x {self.columns} by columns takes {needed} bytes, got "
                f"{data.nbytes}",
                field="data",
                given=int(data.nbytes),
                nearest=needed,
            )

    @property
    def channel_nbytes(self) -> int:
        """Bytes of one input's weights."""
        return channel_nbytes(self.kind, self.rows, self.group)

    @property
    def nbytes(self) -> int:
        return int(self.data.nbytes)

    def _native(self) -> tuple[Any, ...]:
        return self.data, _CODES[self.kind], self.rows, self.columns, self.group or 0


def pack_channels(values: Array, kind: str = "f32") -> Channels:
    """Numbers [rows, columns] as floats of `kind`, rounded to nearest even."""
    rows, columns = values.shape
    if kind not in FLOAT_BYTES:
        raise not_allowed("kind", kind, list(FLOAT_BYTES))
    stored = {"f32": lambda part: part.astype("<f4"), "f16": lambda part: part.astype("<f2"), "bf16": to_bf16}
    data = np.empty(channel_nbytes(kind, rows) * columns, np.uint8)
    at = first = 0
    for count in block_sizes(kind, rows):
        part = np.ascontiguousarray(values[first : first + count].T, np.float32)
        piece = np.ascontiguousarray(stored[kind](part)).reshape(-1).view(np.uint8)
        data[at : at + piece.nbytes] = piece
        at, first = at + piece.nbytes, first + count
    return Channels(kind, rows, columns, None, data)


def pack_channels_int4(codes: Array, scales: Array, group: int) -> Channels:
    """int4 weights `codes` [rows, columns] in -8..7 with scales f32 [ceil(rows / group), columns], stored as
    f16; scales that f16 cannot hold are refused."""
    rows, columns = codes.shape
    groups = -(-rows // _checked_group(group))
    if scales.shape != (groups, columns):
        raise UserError(
            f"pack_channels_int4 expects scales of shape ({groups}, {columns}), got {scales.shape}",
            field="scales",
        )
    if int(codes.min()) < -8 or int(codes.max()) > 7:
        raise UserError("pack_channels_int4 expects codes in -8..7", field="codes")
    if not bool(np.all(np.abs(scales) < 65520)):
        raise UserError(
            "pack_channels_int4: a scale does not fit f16 (beyond 65504, or not finite)", field="scales"
        )
    data = np.zeros(channel_nbytes("int4", rows, group) * columns, np.uint8)
    at = first = 0
    for count in block_sizes("int4", rows):
        header, own = header_nbytes(count, group), min(count, rows - first)
        runs = data[at : at + columns * (header + count // 2)].reshape(columns, -1)
        held = scales[first // group : -(-(first + own) // group)]
        runs[:, : 2 * len(held)] = np.ascontiguousarray(held.T.astype("<f2")).view(np.uint8)
        raised = np.full((columns, count), 8, np.uint8)
        raised[:, :own] = (codes[first : first + own].T.astype(np.int16) + 8).astype(np.uint8)
        # unit, half, r, l, i -> unit, l, r, i
        halves = raised.reshape(columns, count // UNIT, 2, 4, 4, 4).transpose(0, 1, 2, 4, 3, 5)
        runs[:, header:] = (halves[:, :, 0] | (halves[:, :, 1] << 4)).reshape(columns, -1)
        at, first = at + runs.nbytes, first + count
    return Channels("int4", rows, columns, group, data)


def unpack_channels_int4(channels: Channels) -> tuple[Array, Array]:
    """The codes int8 [rows, columns] and scales f32 [groups, columns]."""
    assert channels.group is not None
    codes, scales = [], []
    at = 0
    for count in block_sizes("int4", channels.rows):
        header = header_nbytes(count, channels.group)
        size = channels.columns * (header + count // 2)
        runs = channels.data[at : at + size].reshape(channels.columns, -1)
        groups = -(-count // channels.group)
        scales.append(np.ascontiguousarray(runs[:, : 2 * groups]).view("<f2").astype(np.float32).T)
        units = runs[:, header:].reshape(channels.columns, -1, 4, 4, 4)
        halves = np.stack([units & 15, units >> 4], axis=2).transpose(0, 1, 2, 4, 3, 5)
        codes.append(halves.reshape(channels.columns, count).T.astype(np.int8) - np.int8(8))
        at += size
    groups = -(-channels.rows // channels.group)
    return np.concatenate(codes)[: channels.rows], np.concatenate(scales)[:groups]


def unpack_channels(channels: Channels) -> Array:
    """The matrix as f32 [rows, columns]."""
    if channels.kind == "int4":
        codes, scales = unpack_channels_int4(channels)
        spread = np.repeat(scales, channels.group or 1, axis=0)[: channels.rows]
        values: Array = codes.astype(np.float32) * spread
        return values
    parts, at = [], 0
    for count in block_sizes(channels.kind, channels.rows):
        size = count * FLOAT_BYTES[channels.kind] * channels.columns
        piece = channels.data[at : at + size]
        if channels.kind == "bf16":
            values = from_bf16(piece.view("<u2"))
        else:
            values = piece.view("<f4" if channels.kind == "f32" else "<f2").astype(np.float32)
        parts.append(values.reshape(channels.columns, count).T)
        at += size
    return np.ascontiguousarray(np.concatenate(parts))


@dataclass(frozen=True, eq=False)
class SparseMatrix:
    """Weights of which a row reads the channels of its active inputs; see the module.

    `counts` i64 [2] adds up what products did: rows that were not `whole`, and their active inputs.
    """

    weights: Channels
    limits: Array
    down: Channels | None = None
    up: Channels | None = None
    counts: Array = field(default_factory=lambda: np.zeros(2, np.int64))
    _handle: Any = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        one, down, up = self.weights, self.down, self.up
        check_array("sparse", "limits", self.limits, (one.columns,))
        if (down is None) != (up is None):
            raise UserError("sparse: a low-rank product has both matrices or none", field="down")
        if down is None or up is None:
            return
        if (down.columns, up.rows, down.rows) != (one.columns, one.rows, up.columns) or "int4" in (
            down.kind,
            up.kind,
        ):
            raise UserError(
                f"sparse: low-rank floats {up.rows} x {up.columns} x {down.rows} x {down.columns} do not fit "
                f"{one.rows} x {one.columns}",
                field="down",
            )

    @property
    def nbytes(self) -> int:
        parts = (self.weights, self.down, self.up)
        return sum(part.nbytes for part in parts if part is not None) + int(self.limits.nbytes)

    def row_nbytes(self, active: float) -> float:
        """Bytes of weights that a row with `active` inputs reads, the low-rank product's included."""
        read = active * self.weights.channel_nbytes
        if self.down is not None and self.up is not None and active < self.weights.columns:
            read += (self.weights.columns - active) * self.down.channel_nbytes + self.up.nbytes
        return read

    def multiply(
        self,
        x: Array,
        *,
        out: Array | None = None,
        add: Array | None = None,
        bias: Array | None = None,
        whole: Array | None = None,
        activations: str = "f32",
    ) -> Array:
        """x f32 [n, columns] -> out f32 [n, rows], plus `add` (may be `out`), plus `bias`; of the rows that
        `whole` bool [n] names every input is active. Raises UserError for what does not fit."""
        if activations not in ("f32", "int8-dynamic"):
            raise not_allowed("activations", activations, ("f32", "int8-dynamic"))
        module, int8 = native(), activations != "f32"
        if module is not None:
            result = np.empty((len(x), self.weights.rows), np.float32) if out is None else out
            if module.sparse_multiply(x, self._bound(module), result, add, bias, whole, int8, self.counts):
                return result
        op, rows = "sparse", self.weights.rows
        n = len(check_array(op, "x", x, (None, self.weights.columns)))
        for name, value in (("out", out), ("add", add)):
            if value is not None:
                check_array(op, name, value, (n, rows))
        if bias is not None:
            check_array(op, "bias", bias, (rows,))
        if whole is not None:
            check_array(op, "whole", whole, (n,), ("bool",))
        if module is not None:
            refuse_arrays(op)
        found = sparse_twin(self, x, whole, activations)
        found = found if add is None else found + add
        found = found if bias is None else found + bias
        if out is None:
            return found
        out[...] = found
        return out

    def _bound(self, module: Any) -> Any:
        if self._handle is None:
            low = [None if part is None else part._native() for part in (self.down, self.up)]
            made = module.sparse_product(self.weights._native(), self.limits, *low)
            object.__setattr__(self, "_handle", made)
        return self._handle


def active_inputs(x: Array, limits: Array, whole: Array | None) -> Array:
    """Which inputs of x [n, columns] each row reads, bool [n, columns]."""
    found: Array = ~(np.abs(x) <= limits)
    if whole is not None:
        found |= whole[:, None]
    return found


def sparse_twin(matrix: SparseMatrix, x: Array, whole: Array | None, activations: str) -> Array:
    """The definition of `SparseMatrix.multiply` without `add` and `bias`, in numpy."""
    active = active_inputs(x, matrix.limits, whole)
    sparse_rows = np.ones(len(x), bool) if whole is None else ~whole
    matrix.counts[0] += int(sparse_rows.sum())
    matrix.counts[1] += int(active[sparse_rows].sum())
    out = np.zeros((len(x), matrix.weights.rows), np.float32)
    if matrix.down is not None and matrix.up is not None:
        down, up = unpack_channels(matrix.down), unpack_channels(matrix.up)
        for row, rest, to in zip(x, ~active, out, strict=True):
            to += up @ (down[:, rest] @ row[rest])
    if matrix.weights.kind == "int4" and activations != "f32":
        return out + _int8_products(matrix.weights, np.where(active, x, np.float32(0)))
    weights = unpack_channels(matrix.weights)
    for row, used, to in zip(x, active, out, strict=True):
        to += weights[:, used] @ row[used]
    return out


def _int8_products(weights: Channels, x: Array) -> Array:
    """x f32 [n, columns], 0 where an input is skipped, times int4 `weights` as int8 activations do it."""
    codes, scales = unpack_channels_int4(weights)
    group = weights.group or 1
    out = np.zeros((len(x), weights.rows), np.float32)
    for row, to in zip(x, out, strict=True):
        if not np.isfinite(row).all():
            to[:] = np.nan
            continue
        for first in range(0, weights.columns, CHUNK):
            part = slice(first, first + CHUNK)
            terms = scales[:, part] * row[part]
            largest = np.abs(terms).max(axis=1)
            alive = largest >= SMALLEST
            safe = np.where(alive, largest, np.float32(1))
            step = np.where(alive, safe / np.float32(127), np.float32(0)).astype(np.float32)
            inverse = np.where(alive, np.float32(127) / safe, np.float32(0)).astype(np.float32)
            rounded = np.rint(terms * inverse[:, None])
            spread = np.repeat(rounded, group, axis=0)[: weights.rows]
            exact = (codes[:, part] * spread).sum(axis=1).astype(np.float32)
            to += exact * np.repeat(step, group)[: weights.rows]
    return out
