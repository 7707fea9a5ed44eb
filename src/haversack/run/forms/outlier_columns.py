"""Outlier columns: the inputs with the largest values in floating point, all others in 8 or 4 bits.

Paper: Ashkboos et al., "QUIK" (2023); shrink/precision/quik.py chooses the inputs.
What is here: `kept_columns` i32 [k], rising, are the inputs that stay floats; `kept` f16 [rows, k] are their
weights, `rest` [rows, columns - k] those of the others, in their order. The inputs of a call are taken apart,
each part meets its weights, and the float part is added last, then the bias.
Cost: two gathers and two products in place of one.
Limits: made for int8 activations; with f32 ones it would be a dearer way to store a weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import DamagedFileError
from haversack.kernels import Matrix, gather, matmul, unpack
from haversack.kernels._matrix import PACKED
from haversack.run._forms import F32, Entry, Part, whole

ACTIVATIONS = ("int8-dynamic",)
"""What a plan may say; run/_forms.py refuses another. A call with f32 ones, as in calibration, is served."""


def parts(entry: Entry) -> Mapping[str, Part]:
    """See Form; the field `kept` is the number of inputs that stay floats."""
    rows, columns = entry["shape"]
    kept = whole(entry, "kept", 1, columns - 1)
    return {
        "rest": Part((rows, columns - kept), PACKED),
        "kept": Part((rows, kept), ("f16",)),
        "kept_columns": Part((kept,), ("i32",)),
    }


def bind(entry: Entry, parts: Mapping[str, Any]) -> OutlierColumns:
    """See Form. Raises DamagedFileError for columns that do not rise inside the matrix."""
    at, columns = np.ascontiguousarray(parts["kept_columns"], np.int32), int(entry["shape"][1])
    if (np.diff(at) <= 0).any() or not 0 <= int(at[0]) <= int(at[-1]) < columns:
        raise DamagedFileError("the pack", f"kept columns must rise from 0 to {columns - 1}", field="forms")
    return OutlierColumns(parts["rest"], parts["kept"], at)


class OutlierColumns:
    """`kept` [rows, k] for the inputs `at` i32 [k], `rest` [rows, columns - k] for the others."""

    __slots__ = ("at", "columns", "kept", "kind", "nbytes", "others", "rest", "rows")

    def __init__(self, rest: Matrix, kept: Matrix, at: NDArray[np.int32]) -> None:
        self.rest, self.kept, self.at = rest, kept, at
        self.rows, self.columns, self.kind = rest.rows, rest.columns + kept.columns, rest.kind
        others = np.ones(self.columns, bool)
        others[at] = False
        self.others = np.flatnonzero(others).astype(np.int32)
        self.nbytes = rest.nbytes + kept.nbytes + at.nbytes + self.others.nbytes

    def multiply(self, x: F32, out: F32, *, activations: str, add: bool, bias: F32 | None) -> None:
        """See Bound."""
        added = out if add else None
        matmul(gather(x, self.others), self.rest, activations=activations, out=out, add=added)
        matmul(gather(x, self.at), self.kept, out=out, add=out, bias=bias)

    def append(self, maker: Any, x: int, out: int, bias: F32 | None, add: bool) -> None:
        """See Bound: the inputs apart in two buffers."""
        rest, kept = maker.buffer("rest", self.rest.columns), maker.buffer("kept", self.kept.columns)
        maker.program.gather(x, self.others, rest)
        maker.program.gather(x, self.at, kept)
        maker.product(rest, self.rest, out, None, add)
        maker.product(kept, self.kept, out, bias, True)

    def dense(self) -> F32:
        """See Bound."""
        found = np.empty((self.rows, self.columns), np.float32)
        found[:, self.at], found[:, self.others] = unpack(self.kept), unpack(self.rest)
        return found
