"""ReGLU in packs: up matrices by rows and down matrices by columns, in a precision method's numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError
from haversack.kernels import Channels, SparseMatrix, channel_nbytes
from haversack.shrink._precision import Compressed, Formed, InputStatistics, Precision, Stored
from haversack.shrink._rounding import F32
from haversack.shrink.structure._packed import Layer
from haversack.shrink.structure._row_sparse import Columns, StoredColumns, by_columns, require_known
from haversack.shrink.structure.reglu import Reglu, relu_layers, zero_share

EXPECTED = 0.5
"""Zeros that prediction reckons with, and that are noted where calibration text did not reach a layer."""


@dataclass(frozen=True)
class StoredRows:
    """How an up matrix is stored: `kind`, `group` of columns (int4)."""

    kind: str
    group: int | None

    def nbytes(self, rows: int, columns: int) -> int:
        """Bytes of a matrix [rows, columns]."""
        return channel_nbytes(self.kind, columns, self.group) * rows

    def skipped(self, rows: int, columns: int) -> int:
        """Bytes whose time one token alone saves."""
        return int(EXPECTED * self.nbytes(rows, columns))

    def products(self, rows: int, columns: int) -> int:
        """Multiplications of one input."""
        return int((1 - EXPECTED) * rows) * columns


@dataclass(frozen=True)
class Rows:
    """A matrix as run/forms/neurons.py takes it."""

    transposed: Channels

    @property
    def form(self) -> dict[str, Any]:
        entry: dict[str, Any] = {"form": "neurons", "kind": self.transposed.kind}
        return entry if self.transposed.group is None else {**entry, "group": self.transposed.group}

    def parts(self) -> dict[str, NDArray[Any]]:
        """See Formed."""
        return {"rows": self.transposed.data}


class Neuronal:
    """The precision `inner` with ReGLU's layouts; fills shrink: precision. `layers` says what became of each
    matrix."""

    def __init__(self, method: Reglu, inner: Precision, walk: Any) -> None:
        require_known(inner, "reglu")
        self.method, self.inner, self.name = method, inner, inner.name
        self.needs = frozenset({"inputs"}) | inner.needs
        layers = relu_layers(walk.architecture.blocks)
        if not layers:
            raise UserError(
                "reglu leaves out what a ReLU has made 0, and this model has no layers gated by one; use "
                "cats or r-sparse.",
                field="structure",
                given="reglu",
                nearest="r-sparse",
            )
        self.ups = {layer.up.weight for layer in layers}
        self.downs = {layer.down.weight for layer in layers}
        self.layers: list[Layer] = []

    def stored(self, rows: int, columns: int) -> Stored:
        """How a matrix outside such layers is stored: dense."""
        return self.inner.stored(rows, columns)

    def stored_as(self, name: str, rows: int, columns: int) -> Stored:
        """How the matrix `name` is stored."""
        dense = self.inner.stored(rows, columns)
        if name in self.downs:
            return StoredColumns(dense.kind, dense.group, 0, 1 - EXPECTED)
        return StoredRows(dense.kind, dense.group) if name in self.ups else dense

    def noise(self) -> float:
        """That of the numbers alone."""
        return self.inner.noise()

    def quantize(
        self, weights: Mapping[str, F32], inputs: InputStatistics | None
    ) -> Mapping[str, Compressed | Formed]:
        """Matrices f32 [rows, columns] of one input; that of a down matrix shows how many neurons are 0."""
        assert inputs is not None and inputs.inputs is not None
        found: dict[str, Any] = {}
        for name, weight in weights.items():
            if name in self.downs:
                share = zero_share(inputs.inputs) if inputs.tokens else EXPECTED
                limits = np.zeros(weight.shape[1], np.float32)
                found[name] = Columns(SparseMatrix(by_columns(weight, self.inner), limits), share, 1.0, 0.0)
                self._note(
                    name, weight, found[name].matrix.nbytes, f"by columns: {share:.1%} of inputs are 0"
                )
            elif name in self.ups:
                found[name] = one = Rows(by_columns(np.ascontiguousarray(weight.T), self.inner))
                self._note(name, weight, one.transposed.nbytes, "by rows")
            else:
                found[name] = self.inner.quantize({name: weight}, inputs if self.inner.needs else None)[name]
        return found

    def _note(self, name: str, weight: F32, nbytes: int, kept: str) -> None:
        rows, columns = weight.shape
        before = self.inner.stored(rows, columns).nbytes(rows, columns)
        self.layers.append(Layer(name, rows, columns, None, before=before, after=nbytes, kept=kept))
