"""Gated: the gate of a feed-forward layer whose small outputs count as nothing.

Paper: Lee et al., "CATS: Contextually-Aware Thresholding for Sparsity in Large Language Models" (2024).
What is here: g = `weight` x; where |activation(g)| is at most `threshold`, g is 0, and so is what the layer
makes of it (SiLU and GELU of 0 are 0). The matrix behind, in the form row-sparse, then skips these inputs.
Row-invariant; rows that read everything (see row_sparse.py) have no threshold.
Limits: `up` is computed in full: the rows that a token does not need are not skipped here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.kernels import Matrix, gate, matmul, unpack
from haversack.run._forms import F32, Entry, Part
from haversack.run._products import activations_of

FUNCTIONS = ("silu", "gelu", "gelu-tanh")


def parts(entry: Entry) -> Mapping[str, Part]:
    """See Form; the fields are `threshold` and `activation`."""
    value = entry.get("threshold")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e30:
        raise ValueError(f"threshold is {str(value)[:40]}, not a number from 0 on")
    if entry.get("activation") not in FUNCTIONS:
        raise ValueError(
            f"activation is {str(entry.get('activation'))[:40]}, not one of {', '.join(FUNCTIONS)}"
        )
    rows, columns = entry["shape"]
    return {"weight": Part((rows, columns))}


def bind(entry: Entry, parts: Mapping[str, Any]) -> Gated:
    """See Form."""
    return Gated(parts["weight"], float(entry["threshold"]), str(entry["activation"]))


class Gated:
    """The matrix `weight`, whose outputs are 0 where `activation` of them is at most `threshold`; not in the
    rows `reads`."""

    __slots__ = ("activation", "columns", "kind", "nbytes", "reads", "rows", "threshold", "weight")

    def __init__(
        self,
        weight: Matrix,
        threshold: float,
        activation: str,
        reads: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        self.weight, self.threshold, self.activation, self.reads = weight, threshold, activation, reads
        self.rows, self.columns, self.kind = weight.rows, weight.columns, weight.kind
        self.nbytes = weight.nbytes

    def reading(self, rows: npt.NDArray[np.bool_]) -> Gated:
        """The same matrix for a step whose `rows` bool [n] have no threshold."""
        return Gated(self.weight, self.threshold, self.activation, rows)

    def multiply(self, x: F32, out: F32, *, activations: str, add: bool, bias: F32 | None) -> None:
        """See Bound."""
        before = out.copy() if add else None
        matmul(x, self.weight, activations=activations_of(self.weight, activations), out=out, bias=bias)
        gated = out.copy()
        gate(gated, None, self.activation, out=gated)
        small = np.abs(gated) <= self.threshold
        if self.reads is not None:
            small &= ~self.reads[:, None]
        out[small] = 0
        if before is not None:
            out += before

    def dense(self) -> F32:
        """See Bound: the matrix without its threshold."""
        values: F32 = unpack(self.weight)
        return values
