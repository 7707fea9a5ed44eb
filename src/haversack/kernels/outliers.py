"""Single weights beside a packed matrix, and inputs picked out of rows.

`Outliers` are the weights of a matrix [rows, columns] that its packed part leaves out: row r has the weights
starts[r] to starts[r + 1], weight i belongs to column at[i]. `add` adds their products to what is in `out`:
for each row and token one chain of fused sums in the order of the weights, begun at 0 and added to `out` at
the end, so that the bits of a row do not depend on the call around it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from haversack.core.errors import UserError
from haversack.kernels._arguments import check_array, check_out, refuse_arrays
from haversack.kernels._matrix import Array
from haversack.kernels._native import native

COLUMNS_MOST = 1 << 16
"""A column is 16 bits."""


class Outliers:
    """starts i32 [rows + 1], at u16 [n], values f32 [n] of a matrix of `columns` columns; `handle` is what
    native kernels take.

    Raises UserError where they do not fit each other.
    """

    __slots__ = ("at", "columns", "handle", "rows", "starts", "values")

    def __init__(self, starts: Array, at: Array, values: Array, columns: int) -> None:
        self.starts = np.ascontiguousarray(check_array("outliers", "starts", starts, [None], ("int32",)))
        self.at = np.ascontiguousarray(check_array("outliers", "at", at, [None], ("uint16",)))
        self.values = np.ascontiguousarray(check_array("outliers", "values", values, [len(at)]))
        self.rows, self.columns = len(starts) - 1, columns
        ordered = self.rows > 0 and starts[0] == 0 and starts[-1] == len(at) and (np.diff(starts) >= 0).all()
        if not ordered or (len(at) and int(self.at.max()) >= columns):
            raise UserError(
                f"outliers: starts, at and values do not fit each other and {columns} columns", field="starts"
            )
        module = native()
        made = None if module is None else module.Outliers(self.starts, self.at, self.values, columns)
        self.handle: Any = made

    @property
    def nbytes(self) -> int:
        """Bytes as they are held."""
        return int(self.starts.nbytes + self.at.nbytes + self.values.nbytes)

    def dense(self) -> Array:
        """The weights in a matrix f32 [rows, columns] that is 0 elsewhere."""
        found = np.zeros((self.rows, self.columns), np.float32)
        found[np.repeat(np.arange(self.rows), np.diff(self.starts)), self.at] = self.values
        return found

    def add(self, x: Array, out: Array) -> Array:
        """out f32 [n, rows] += the products with x f32 [n, columns]. Raises UserError for what does not
        fit.
        """
        if self.handle is not None and self.handle.add(x, out):
            return out
        check_array("outliers", "x", x, [None, self.columns])
        check_out("outliers", out, (len(x), self.rows))
        if self.handle is not None:
            refuse_arrays("outliers")
        out += add_twin(self, x)
        return out


def add_twin(outliers: Outliers, x: Array) -> Array:
    """The definition of what `add` adds, in numpy: f32 [n, rows]."""
    found = np.zeros((len(x), outliers.rows), np.float32)
    for row in range(outliers.rows):
        own = slice(int(outliers.starts[row]), int(outliers.starts[row + 1]))
        for value, column in zip(outliers.values[own], outliers.at[own], strict=True):
            # f64 holds the product of two f32 exactly; one rounding to f32 follows, as in a fused operation.
            found[:, row] = (np.float64(value) * x[:, column] + found[:, row]).astype(np.float32)
    return found


def gather(x: Array, at: Array, *, out: Array | None = None) -> Array:
    """The inputs `at` i32 [k] of x f32 [n, columns]: f32 [n, k], into `out` where given.

    Raises UserError for what does not fit.
    """
    module = native()
    if module is not None:
        to = np.empty((len(x), len(at)), np.float32) if out is None else out
        if module.gather(x, at, to):
            return to
    check_array("gather", "x", x, [None, None])
    check_array("gather", "at", at, [None], ("int32",))
    check_out("gather", out, (len(x), len(at)))
    if len(at) and not 0 <= int(at.min()) <= int(at.max()) < x.shape[1]:
        raise UserError(f"gather: at must name columns 0..{x.shape[1] - 1}", field="at")
    if module is not None and x.flags.c_contiguous and (out is None or out.flags.c_contiguous):
        refuse_arrays("gather")
    found: Array = x[:, at]
    if out is None:
        return found
    out[...] = found
    return out
