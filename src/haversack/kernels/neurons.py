"""Products with the rows of a matrix that a gate left, and a layout in which the others are never read.

out[n, rows] = gate[n, rows] * (x[n, columns] times the matrix, transposed), where of a row whose gate is 0
nothing is read: out is 0 there, also where the row or x are not finite. Rows lie one after the other, each in
one piece: the layout is columns-1 (kernels/sparse.py) of the transpose, so that int4 has one f16 scale for
each row and group of 64 or 128 columns. Activations are f32, whatever the weights.

Row-invariant; float weights give the bits of `matmul` and `gate`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from haversack.kernels._arguments import check_array, refuse_arrays
from haversack.kernels._matrix import Array
from haversack.kernels._native import native
from haversack.kernels.sparse import Channels, unpack_channels


@dataclass(frozen=True, eq=False)
class Neurons:
    """A matrix [rows, columns]; `transposed` are its channels, one for each row."""

    transposed: Channels
    _handle: Any = field(default=None, init=False, repr=False, compare=False)

    @property
    def rows(self) -> int:
        return self.transposed.columns

    @property
    def columns(self) -> int:
        return self.transposed.rows

    @property
    def nbytes(self) -> int:
        return self.transposed.nbytes

    def dense(self) -> Array:
        """The matrix as f32 [rows, columns]."""
        return np.ascontiguousarray(unpack_channels(self.transposed).T)

    def gated(self, x: Array, gate: Array, *, out: Array | None = None) -> Array:
        """x f32[n, columns] and gate f32[n, rows] -> gate * product, f32[n, rows]; `out` may be `gate`.

        Raises UserError for what does not fit.
        """
        module = native()
        if module is not None:
            result = np.empty(np.shape(gate), np.float32) if out is None else out
            if module.neurons_gated(x, self._bound(module), gate, result):
                return result
        n = len(check_array("gated", "x", x, (None, self.columns)))
        check_array("gated", "gate", gate, (n, self.rows))
        if out is not None:
            check_array("gated", "out", out, (n, self.rows))
        if module is not None:
            refuse_arrays("gated")
        found = gated_twin(self, x, gate)
        if out is None:
            return found
        out[...] = found
        return out

    def _bound(self, module: Any) -> Any:
        if self._handle is None:
            object.__setattr__(self, "_handle", module.neurons(*self.transposed._native()))
        return self._handle


def gated_twin(matrix: Neurons, x: Array, gate: Array) -> Array:
    """The definition of `Neurons.gated`, in numpy."""
    weights, out = matrix.dense(), np.zeros(gate.shape, np.float32)
    for row, opened, to in zip(x, gate, out, strict=True):
        read = opened != 0
        to[read] = opened[read] * (weights[read] @ row)
    return out
