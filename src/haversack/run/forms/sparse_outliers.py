"""Sparse outliers: a packed matrix, and single weights that stay 16-bit numbers beside it.

Paper: Dettmers et al., "SpQR" (2023); shrink/precision/spqr.py finds the outliers.
What is here: `base` [rows, columns] in any kind, which has 0 where an outlier is; the outliers row by row:
`starts` i32 [rows + 1], the two bytes of each one's column `columns` u8 [n, 2] (low byte first), `values` f16
[1, n]. The base's product comes first, bias included, then each row's outliers in one chain.
Cost: the base's product, and one multiplication for each outlier; values are held as f32.
Limits: f32 activations, since the outliers meet the inputs as they are; at most 65536 columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from haversack.core.errors import DamagedFileError, UserError
from haversack.kernels import Matrix, Outliers, matmul, unpack
from haversack.run._forms import F32, Entry, Part, whole

ACTIVATIONS = ("f32",)
"""What the product takes; run/_forms.py refuses a plan with another."""


def parts(entry: Entry) -> Mapping[str, Part]:
    """See Form; the field `outliers` is their number."""
    rows, columns = entry["shape"]
    count = whole(entry, "outliers", 1, rows * columns)
    return {
        "base": Part((rows, columns)),
        "starts": Part((rows + 1,), ("i32",)),
        "columns": Part((count, 2), ("u8",)),
        "values": Part((1, count), ("f16",)),
    }


def bind(entry: Entry, parts: Mapping[str, Any]) -> SparseOutliers:
    """See Form. Raises DamagedFileError where starts or columns cannot be."""
    base = parts["base"]
    at = np.ascontiguousarray(parts["columns"]).view("<u2").reshape(-1).astype(np.uint16, copy=False)
    values = unpack(parts["values"]).reshape(-1)
    try:
        outliers = Outliers(parts["starts"], at, values, base.columns)
    except UserError as error:
        raise DamagedFileError("the pack", str(error).rstrip("."), field="outliers") from error
    return SparseOutliers(base, outliers)


class SparseOutliers:
    """`base` [rows, columns] plus `outliers`."""

    __slots__ = ("base", "columns", "kind", "nbytes", "outliers", "rows")

    def __init__(self, base: Matrix, outliers: Outliers) -> None:
        self.base, self.outliers = base, outliers
        self.rows, self.columns, self.kind = base.rows, base.columns, base.kind
        self.nbytes = base.nbytes + outliers.nbytes

    def multiply(self, x: F32, out: F32, *, activations: str, add: bool, bias: F32 | None) -> None:
        """See Bound."""
        matmul(x, self.base, out=out, add=out if add else None, bias=bias)
        self.outliers.add(x, out)

    def append(self, maker: Any, x: int, out: int, bias: F32 | None, add: bool) -> None:
        """See Bound."""
        maker.product(x, self.base, out, bias, add)
        maker.program.outliers(x, self.outliers, out)

    def dense(self) -> F32:
        """See Bound."""
        found: F32 = unpack(self.base) + self.outliers.dense()
        return found
