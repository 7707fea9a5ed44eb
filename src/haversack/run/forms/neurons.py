"""Neurons: an up matrix of which a token reads only the rows that its gate left.

Paper: SmallThinker (arXiv 2507.20984, 2025) for experts that are ReGLU; any gated feed-forward layer whose
activation gives zeros has such rows (see gated.py).
What is here: `rows` hold the matrix row after row (kernels/neurons.py), and `gated` multiplies those that the
activated gate has not made 0. The matrix behind, in the form row-sparse with limits of 0, then skips the same
inputs. Activations are f32 whatever the plan says: few rows are multiplied.
Row-invariant; float weights give the bits of the dense layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from haversack.kernels import Channels, channel_nbytes
from haversack.kernels.neurons import Neurons
from haversack.run._forms import F32, Entry, Part, whole

FLOATS = ("f32", "f16", "bf16")
KINDS = (*FLOATS, "int4")


def parts(entry: Entry) -> Mapping[str, Part]:
    """See Form; the fields are `kind` and `group` (int4: columns that share a scale)."""
    rows, columns = entry["shape"]
    kind, group = entry.get("kind"), None
    if kind not in KINDS:
        raise ValueError(f"kind is {str(kind)[:40]}, not one of {', '.join(KINDS)}")
    if kind == "int4":
        group = whole(entry, "group", 64, 128)
        if group not in (64, 128):
            raise ValueError(f"group is {group}, not 64 or 128")
    return {"rows": Part((channel_nbytes(str(kind), columns, group) * rows,), ("u8",))}


def bind(entry: Entry, parts: Mapping[str, Any]) -> BoundNeurons:
    """See Form."""
    rows, columns = entry["shape"]
    return BoundNeurons(
        Neurons(Channels(str(entry["kind"]), columns, rows, entry.get("group"), parts["rows"]))
    )


class BoundNeurons:
    """A `Neurons` in a block: see Bound. `gated` is what feed-forward layers ask of it."""

    __slots__ = ("columns", "kind", "matrix", "nbytes", "rows")

    def __init__(self, matrix: Neurons) -> None:
        self.matrix, self.kind, self.nbytes = matrix, matrix.transposed.kind, matrix.nbytes
        self.rows, self.columns = matrix.rows, matrix.columns

    def gated(self, x: F32, gate: F32) -> None:
        """gate f32 [n, rows] *= x f32 [n, columns] times the matrix, in place; rows at 0 are not read."""
        self.matrix.gated(x, gate, out=gate)

    def multiply(self, x: F32, out: F32, *, activations: str, add: bool, bias: F32 | None) -> None:
        """See Bound: every row is read."""
        found = self.matrix.gated(x, np.ones((len(x), self.rows), np.float32))
        if add:
            found += out
        out[...] = found if bias is None else found + bias

    def dense(self) -> F32:
        """See Bound."""
        values: F32 = self.matrix.dense()
        return values
