"""CATS in packs: gates with thresholds, and the matrices behind them by columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from haversack.core.errors import UserError
from haversack.kernels import SparseMatrix, gate
from haversack.models._architecture import FeedForward
from haversack.shrink._precision import Compressed, Formed, InputStatistics, Precision, Stored
from haversack.shrink._rounding import F32
from haversack.shrink.structure._packed import Layer
from haversack.shrink.structure._row_sparse import Columns, StoredColumns, by_columns, require_known
from haversack.shrink.structure.cats import Cats, gate_threshold, share_of, weights_of


@dataclass(frozen=True)
class Threshold:
    """A gate as run/forms/gated.py takes it."""

    weight: Compressed
    threshold: float
    activation: str

    @property
    def form(self) -> dict[str, Any]:
        return {"form": "gated", "threshold": self.threshold, "activation": self.activation}

    def parts(self) -> dict[str, Compressed]:
        """See Formed."""
        return {"weight": self.weight}


class Gates:
    """The precision `inner` with CATS; fills shrink: precision."""

    def __init__(self, method: Cats, inner: Precision, walk: Any) -> None:
        require_known(inner)
        self.method, self.inner, self.name = method, inner, inner.name
        self.needs = frozenset({"inputs"}) | inner.needs
        layers = [
            branch.layer
            for block in walk.architecture.blocks
            for branch in block.branches
            if isinstance(branch.layer, FeedForward) and branch.layer.gate is not None
        ]
        if not layers:
            raise UserError(
                "cats thresholds the gates of feed-forward layers, and this model has none; use r-sparse.",
                field="structure",
                given="cats",
                nearest="r-sparse",
            )
        self.gates = {layer.gate.weight: layer.activation for layer in layers if layer.gate is not None}
        self.downs = {layer.down.weight for layer in layers}
        ups = {layer.up.weight for layer in layers}
        shapes = {
            name: walk.shape(name)
            for block in range(walk.blocks)
            for group in walk.products(block)
            for name in group
        }
        self.share = share_of(method.sparsity, *weights_of(shapes, self.downs | ups))
        self.layers: list[Layer] = []

    def stored(self, rows: int, columns: int) -> Stored:
        """How a matrix outside the blocks is stored: dense."""
        return self.inner.stored(rows, columns)

    def stored_as(self, name: str, rows: int, columns: int) -> Stored:
        """How the matrix `name` is stored: what lies behind a gate by columns."""
        dense = self.inner.stored(rows, columns)
        if name in self.downs:
            return StoredColumns(dense.kind, dense.group, 0, 1 - self.share)
        return dense

    def noise(self) -> float:
        """Expected squared error of the weights over their mean square; of gates a guess."""
        return self.inner.noise() + self.method.sparsity**2

    def quantize(
        self, weights: Mapping[str, F32], inputs: InputStatistics | None
    ) -> Mapping[str, Compressed | Formed]:
        """Matrices f32 [rows, columns] of one input."""
        assert inputs is not None and inputs.inputs is not None
        found: dict[str, Any] = {}
        for name, weight in weights.items():
            if name in self.downs:
                channels = by_columns(weight, self.inner)
                limits = np.zeros(weight.shape[1], np.float32)
                found[name] = Columns(SparseMatrix(channels, limits), self.share, 1.0, 0.0)
                continue
            found[name] = self.inner.quantize({name: weight}, inputs if self.inner.needs else None)[name]
            if name in self.gates:
                gated = np.ascontiguousarray(inputs.inputs @ weight.T)
                gate(gated, None, self.gates[name], out=gated)
                found[name] = Threshold(found[name], gate_threshold(gated, self.share), self.gates[name])
        return found
