"""Row-sparse: a matrix of which each row of inputs reads only the columns of its active inputs.

Paper: R-Sparse (2025) and TEAL (2024); shrink/structure/r_sparse.py finds thresholds and factors.
What is here: `channels` hold the matrix by columns (kernels/sparse.py); input j is active where |x_j| is
above `limits[j]`; `down` and `up`, where there is a rank, stand in for the inactive inputs.
Row-invariance: which inputs are active follows from the row alone, so eight tokens at once equal eight steps.
Rows at positions below the engine's `sparse_from` read everything. It belongs to a text, never to a call:
generation sets it to the length of the prompt, so that a prompt is read with all weights however it is cut,
and every token behind it is sparse however many come at once. Elsewhere it is 0: a score is of sparse
positions only.
Cost: the columns of the active inputs; with several rows a call those of any of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.kernels import Channels, SparseMatrix, channel_nbytes, unpack_channels
from haversack.run._forms import F32, Entry, Part, whole

FLOATS = ("f32", "f16", "bf16")
KINDS = (*FLOATS, "int4")


def parts(entry: Entry) -> Mapping[str, Part]:
    """See Form; the fields are `kind`, `group` (int4), `rank` (0: none) and `factors`, the factors' kind."""
    rows, columns = entry["shape"]
    kind, group = _kind(entry, "kind", KINDS), None
    if kind == "int4":
        group = whole(entry, "group", 64, 128)
        if group not in (64, 128):
            raise ValueError(f"group is {group}, not 64 or 128")
    found = {
        "channels": Part((channel_nbytes(kind, rows, group) * columns,), ("u8",)),
        "limits": Part((columns,), ("f32",)),
    }
    rank = whole(entry, "rank", 0, min(rows, columns))
    if rank:
        factors = _kind(entry, "factors", FLOATS)
        found["down"] = Part((channel_nbytes(factors, rank) * columns,), ("u8",))
        found["up"] = Part((channel_nbytes(factors, rows) * rank,), ("u8",))
    return found


def _kind(entry: Entry, field: str, allowed: tuple[str, ...]) -> str:
    value = entry.get(field)
    if value not in allowed:
        raise ValueError(f"{field} is {str(value)[:40]}, not one of {', '.join(allowed)}")
    return str(value)


def bind(entry: Entry, parts: Mapping[str, Any]) -> RowSparse:
    """See Form."""
    rows, columns = entry["shape"]
    rank, factors = int(entry["rank"]), str(entry.get("factors"))
    down = Channels(factors, rank, columns, None, parts["down"]) if rank else None
    up = Channels(factors, rows, rank, None, parts["up"]) if rank else None
    weights = Channels(str(entry["kind"]), rows, columns, entry.get("group"), parts["channels"])
    return RowSparse(SparseMatrix(weights, parts["limits"], down, up), entry)


class RowSparse:
    """A `SparseMatrix` in a block, whose rows `reads` (bool [n], None: no row) take every input."""

    __slots__ = ("columns", "entry", "kind", "matrix", "nbytes", "reads", "rows")

    def __init__(
        self, matrix: SparseMatrix, entry: Entry, reads: npt.NDArray[np.bool_] | None = None
    ) -> None:
        self.matrix, self.entry, self.reads = matrix, entry, reads
        self.rows, self.columns, self.kind = matrix.weights.rows, matrix.weights.columns, matrix.weights.kind
        self.nbytes = matrix.nbytes

    def reading(self, rows: npt.NDArray[np.bool_]) -> RowSparse:
        """The same matrix for a step whose `rows` bool [n] read every input."""
        return RowSparse(self.matrix, self.entry, rows)

    def multiply(self, x: F32, out: F32, *, activations: str, add: bool, bias: F32 | None) -> None:
        """See Bound."""
        how = "f32" if self.kind in FLOATS else activations
        self.matrix.multiply(
            x, out=out, add=out if add else None, bias=bias, whole=self.reads, activations=how
        )

    def dense(self) -> F32:
        """See Bound: the matrix that a row with every input active meets."""
        values: F32 = unpack_channels(self.matrix.weights)
        return values
