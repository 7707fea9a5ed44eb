"""R-Sparse in packs: a precision method's kind of numbers, by columns, with thresholds and factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError
from haversack.kernels import Channels, SparseMatrix, channel_nbytes, pack_channels, pack_channels_int4
from haversack.run.forms.row_sparse import RowSparse
from haversack.shrink._block import BlockView
from haversack.shrink._pipeline import Walk
from haversack.shrink._precision import Formed, InputStatistics, Precision, Stored
from haversack.shrink._rounding import F32
from haversack.shrink.precision.keep import Keep
from haversack.shrink.precision.round_to_nearest import RoundToNearest, round_to_nearest
from haversack.shrink.structure._packed import Layer
from haversack.shrink.structure.r_sparse import (
    SEARCH,
    RSparse,
    channel_scales,
    decomposed,
    evolved,
    limits_of,
    sorted_quantile,
    sorted_sizes,
    split_budget,
    threshold,
)

FACTORS = "f16"
GROUPS = (64, 128)
SEARCH_TOKENS = 1024
READ_COST = {"f32": 1.05, "f16": 1.05, "bf16": 1.05, "int4": 1.5}
"""Time of a byte that is read by columns over that of one read in order, as the bench of system 45 finds."""


@dataclass(frozen=True)
class StoredColumns:
    """How a row-sparse matrix is stored: `kind`, `group` of outputs (int4), `rank` of its factors (0: none),
    and the share of its inputs that a token reads."""

    kind: str
    group: int | None
    rank: int
    active: float

    def nbytes(self, rows: int, columns: int) -> int:
        """Bytes of a matrix [rows, columns], its limits and factors."""
        total = channel_nbytes(self.kind, rows, self.group) * columns + 4 * columns
        if self.rank:
            total += channel_nbytes(FACTORS, self.rank) * columns + channel_nbytes(FACTORS, rows) * self.rank
        return total

    def skipped(self, rows: int, columns: int) -> int:
        """Bytes whose time one token alone saves: those it does not read, less what reading by columns costs
        beyond reading in order."""
        run = channel_nbytes(self.kind, rows, self.group)
        read = self.active * columns * run * READ_COST[self.kind]
        return max(0, int(columns * run - read))

    def products(self, rows: int, columns: int) -> int:
        """Multiplications of one sparse input."""
        return int(self.active * columns) * rows + self.rank * (rows + columns)


@dataclass(frozen=True)
class Columns:
    """A matrix as run/forms/row_sparse.py takes it."""

    matrix: SparseMatrix
    sparsity: float
    alpha: float
    threshold: float

    @property
    def form(self) -> dict[str, Any]:
        weights, down = self.matrix.weights, self.matrix.down
        entry: dict[str, Any] = {"form": "row-sparse", "kind": weights.kind}
        if weights.group is not None:
            entry["group"] = weights.group
        entry["rank"] = 0 if down is None else down.rows
        if down is not None:
            entry["factors"] = down.kind
        return {**entry, "sparsity": self.sparsity, "alpha": self.alpha, "threshold": self.threshold}

    def parts(self) -> dict[str, NDArray[Any]]:
        """See Formed."""
        one = self.matrix
        found = {"channels": one.weights.data, "limits": one.limits}
        if one.down is not None and one.up is not None:
            found |= {"down": one.down.data, "up": one.up.data}
        return found


def by_columns(weight: F32, inner: Precision) -> Channels:
    """`weight` [rows, columns] in the numbers of `inner`; see `require_known`."""
    if isinstance(inner, Keep):
        return pack_channels(weight, inner.kind)
    assert isinstance(inner, RoundToNearest)
    codes, scales = round_to_nearest(np.ascontiguousarray(weight.T), inner.bits, inner.group, inner.scales)
    return pack_channels_int4(codes.T, scales.T, inner.group)


def known(inner: Precision) -> bool:
    """True for a precision that has a layout by columns."""
    if isinstance(inner, RoundToNearest):
        return inner.bits == 4 and inner.group in GROUPS
    return isinstance(inner, Keep)


def require_known(inner: Precision, structure: str = "r-sparse") -> None:
    """Raises UserError for a precision that has no layout by columns."""
    if known(inner):
        return
    raise UserError(
        f"{inner} has no layout by columns, which {structure} needs (it takes keep, and round-to-nearest at "
        "4 bits in groups of 64 or 128); use round-to-nearest:bits=4,group=64 or keep:kind=f16.",
        field="precision",
        given=str(inner),
        nearest="round-to-nearest:bits=4,group=64",
    )


class Sparsified:
    """The precision `inner` with activation sparsity by `method`; fills shrink: precision.

    `layers` says what became of each matrix, in order; `recipe` (alpha, sparsity) of each.
    """

    def __init__(self, method: RSparse, inner: Precision, names: Sequence[str]) -> None:
        require_known(inner)
        self.method, self.inner = method, inner
        self.name = inner.name
        self.needs = frozenset({"inputs"})
        self.recipe = dict(method.shares(names))
        self.layers: list[Layer] = []
        if method.searches:
            self.transform = self._search

    def stored(self, rows: int, columns: int) -> Stored:
        """How a matrix outside the blocks is stored: dense."""
        return self.inner.stored(rows, columns)

    def stored_as(self, name: str, rows: int, columns: int) -> Stored:
        """How the matrix `name` [rows, columns] is stored."""
        alpha, sparsity = self.recipe[name]
        budget = split_budget(rows, columns, sparsity, alpha)
        dense = self.inner.stored(rows, columns)
        rank = 0 if alpha == 1 else min(budget.rank, rows, columns)
        return StoredColumns(dense.kind, dense.group, rank, budget.channels / columns)

    def noise(self) -> float:
        """Expected squared error of the weights over their mean square: what is skipped weighs less than its
        share, since the smallest inputs go; of normal inputs the smallest half has 7 % of the square."""
        skipped = float(np.mean([sparsity for _, sparsity in self.recipe.values()]))
        return self.inner.noise() + normal_share(skipped)

    def factoring_nbytes(self, rows: int, columns: int) -> int:
        """Bytes that a decomposition takes beside the matrix."""
        return 8 * (rows * columns + (rows + columns) * min(rows, columns)) + 8 * rows * columns

    def quantize(self, weights: Mapping[str, F32], inputs: InputStatistics | None) -> Mapping[str, Formed]:
        """Matrices f32 [rows, columns] of one input, whose sample says where their thresholds are."""
        assert inputs is not None and inputs.inputs is not None
        found: dict[str, Formed] = {}
        for name, weight in weights.items():
            alpha, sparsity = self.recipe[name]
            found[name] = one = sparsified(
                weight, by_columns(weight, self.inner), inputs.inputs, sparsity, alpha
            )
            self._note(name, weight, one, inputs.inputs)
        return found

    def _note(self, name: str, weight: F32, one: Columns, inputs: F32) -> None:
        rows, columns = weight.shape
        wanted = inputs @ weight.T
        missed = one.matrix.multiply(np.ascontiguousarray(inputs)) - wanted
        one.matrix.counts[:] = 0
        size = float(np.linalg.norm(wanted))
        down = one.matrix.down
        self.layers.append(
            Layer(
                name,
                rows,
                columns,
                None if down is None else down.rows,
                before=self.inner.stored(rows, columns).nbytes(rows, columns),
                after=one.matrix.nbytes,
                output_error=float(np.linalg.norm(missed)) / size if size else 0.0,
                kept=f"row-sparse: alpha {one.alpha:.3f}, sparsity {one.sparsity:.3f}",
            )
        )

    def _search(self, block: BlockView) -> None:
        """Find the alpha of every matrix of a block."""
        names = [name for group in block.walk.products(block.index) for name in group]
        sparsity = self.method.sparsity
        trial = Trial(block, names, self.inner, sparsity)
        genes, _ = evolved(trial.loss, len(names), self.method.seed + block.index)
        for name, alpha in zip(names, genes, strict=True):
            self.recipe[name] = float(alpha), sparsity


def sparsified(weight: F32, channels: Channels, inputs: F32, sparsity: float, alpha: float) -> Columns:
    """`weight`, held as `channels`, with thresholds on `inputs` f32 [tokens, columns] and its factors."""
    rows, columns = weight.shape
    budget = split_budget(rows, columns, sparsity, alpha)
    scales = None if alpha == 1 else channel_scales(weight)
    found = threshold(inputs, scales, budget.quantile) if sparsity else 0.0
    down = up = None
    if alpha < 1:
        first, second = decomposed(weight)
        rank = min(budget.rank, rows, columns)
        down, up = factors_of(first, second, rank)
    if alpha == 0:  # only the low-rank product
        limits = np.full(columns, np.finfo(np.float32).max, np.float32)
    else:
        limits = limits_of(found, scales, columns)
    return Columns(SparseMatrix(channels, limits, down, up), sparsity, alpha, found)


def factors_of(first: F32, second: F32, rank: int) -> tuple[Channels, Channels]:
    """The first `rank` of the factors that `decomposed` gives, as the kernels take them."""
    return pack_channels(first[:rank], FACTORS), pack_channels(second[:, :rank], FACTORS)


class Trial:
    """A block with any alphas: the squared error of its output on some calibration text, relative to what
    the block adds."""

    def __init__(self, block: BlockView, names: Sequence[str], inner: Precision, sparsity: float) -> None:
        self.block, self.names, self.sparsity = block, names, sparsity
        count = max(1, min(len(block.states), SEARCH_TOKENS // max(1, block.states.shape[1])))
        self.pieces = [int(piece) for piece in np.linspace(0, len(block.states) - 1, count)]
        seen: dict[str, list[F32]] = {}
        self.wanted: list[F32] = []
        for piece in self.pieces:
            self.wanted.append(block.run(piece, lambda name, x: seen.setdefault(name, []).append(x.copy())))
        self.held: dict[str, Any] = {
            name: values for name, values in block.weights().items() if name not in names
        }
        self.matrices: dict[str, tuple[F32, Channels, F32, tuple[F32, F32]]] = {}
        for group in block.walk.products(block.index):
            inputs = np.concatenate(seen[group[0]])
            for name in group:
                weight = block.tensors[name]
                self.matrices[name] = weight, by_columns(weight, inner), inputs, decomposed(weight)
        self._made: dict[tuple[str, float], RowSparse] = {}
        self._sizes: dict[tuple[str, bool], F32] = {}

    def loss(self, genes: NDArray[np.float64]) -> float:
        """The error with alpha `genes` [matrices]; of genes that were seen, nothing is made again."""
        weights = dict(self.held)
        for name, gene in zip(self.names, genes, strict=True):
            weights[name] = self._matrix(name, float(gene))
        missed = added = 0.0
        for piece, wanted in zip(self.pieces, self.wanted, strict=True):
            hidden = self.block.states.read(piece)
            got = self.block.walk.run(self.block.index, hidden, weights, None)
            missed += float(np.square(got - wanted).sum(dtype=np.float64))
            added += float(np.square(wanted - hidden).sum(dtype=np.float64))
        return missed / max(added, 1e-30)

    def _matrix(self, name: str, alpha: float) -> RowSparse:
        if (name, alpha) not in self._made:
            weight, channels, inputs, (first, second) = self.matrices[name]
            rows, columns = weight.shape
            budget = split_budget(rows, columns, self.sparsity, alpha)
            scales = None if alpha == 1 else channel_scales(weight)
            key = name, scales is None
            if key not in self._sizes:
                self._sizes[key] = sorted_sizes(inputs, scales)
            limits = limits_of(sorted_quantile(self._sizes[key], budget.quantile), scales, columns)
            if alpha == 0:
                limits[:] = np.finfo(np.float32).max
            down = up = None
            if alpha < 1:
                down, up = factors_of(first, second, min(budget.rank, rows, columns))
            self._made[name, alpha] = RowSparse(SparseMatrix(channels, limits, down, up), {})
        return self._made[name, alpha]


def normal_share(skipped: float) -> float:
    """The share of the square of normal numbers that the smallest `skipped` of them have."""
    from statistics import NormalDist

    if skipped <= 0:
        return 0.0
    normal = NormalDist()
    bound = normal.inv_cdf(0.5 + skipped / 2)
    return skipped - 2 * bound * normal.pdf(bound)


def recipe_text(recipe: Mapping[str, tuple[float, float]]) -> str:
    """`recipe` as `read_recipe` takes it: a line for each number."""
    return "".join(f"{alpha:.6g}\n{sparsity:.6g}\n" for alpha, sparsity in recipe.values())


def names_of(walk: Walk) -> list[str]:
    """The matrices of the blocks, in order of use."""
    return [name for block in range(walk.blocks) for group in walk.products(block) for name in group]


__all__ = ["SEARCH", "Columns", "Sparsified", "StoredColumns", "by_columns", "names_of", "sparsified"]
