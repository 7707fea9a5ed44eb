"""Factors in a pack: a structure method and a precision method that act as one precision.

The matrices of one input are factored first. Those that multiply the input, the first factors and what stays
dense, are compressed together; then each second factor, for the numbers that its first factor gives as it is
stored: with x of mean square H these have the mean square A H A^T, so calibration sees compressed factors
without another pass. Where the precision rounds, the second factor is fitted anew to the rounded first, which
makes good what a second factor can: B = W H A^T (A H A^T)^-1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError
from haversack.core.pack import TensorSource
from haversack.kernels import unpack
from haversack.shrink._pipeline import Walk
from haversack.shrink._precision import (
    Compressed,
    Formed,
    InputStatistics,
    Precision,
    Stored,
)
from haversack.shrink._rounding import F32
from haversack.shrink._source import read_tensor
from haversack.shrink.structure._energy import energy_ranks
from haversack.shrink.structure.low_rank import LowRank, Shape

F64 = NDArray[np.float64]
FLOATS = ("f32", "f16", "bf16")
DAMPING = 1e-6


@dataclass(frozen=True)
class StoredFactors:
    """How a matrix of rank `rank` is stored."""

    rank: int
    first: Stored
    second: Stored

    @property
    def kind(self) -> str:
        return self.first.kind

    @property
    def group(self) -> int | None:
        return self.first.group

    def nbytes(self, rows: int, columns: int) -> int:
        """Bytes of both factors of a matrix [rows, columns]."""
        return self.first.nbytes(self.rank, columns) + self.second.nbytes(rows, self.rank)

    def products(self, rows: int, columns: int) -> int:
        """Multiplications of one input."""
        return self.rank * (rows + columns)


@dataclass(frozen=True)
class Factors:
    """A matrix as its compressed factors; see run/forms/low_rank.py."""

    rank: int
    first: Compressed
    second: Compressed

    @property
    def form(self) -> dict[str, Any]:
        return {"form": "low-rank", "rank": self.rank}

    def parts(self) -> dict[str, Compressed]:
        """See Formed."""
        return {"first": self.first, "second": self.second}


@dataclass(frozen=True)
class Layer:
    """What became of one matrix: `rank` None where it stayed dense, for the reason `kept`.

    `before` and `after`: bytes as stored. `error`: ||W - BA|| / ||W|| with the factors as stored;
    `output_error`: the same of outputs on calibration text, None without.
    """

    name: str
    rows: int
    columns: int
    rank: int | None
    before: int
    after: int
    error: float | None = None
    output_error: float | None = None
    kept: str | None = None

    def record(self) -> dict[str, Any]:
        """As `pack --json` prints it."""
        errors = {"error": self.error, "output_error": self.output_error}
        return {
            "name": self.name,
            "shape": [self.rows, self.columns],
            "rank": self.rank,
            "nbytes": {"before": self.before, "after": self.after},
            **{name: None if value is None else round(value, 5) for name, value in errors.items()},
            "kept": self.kept,
        }


class Factored:
    """The precision method `inner` on the factors that `structure` gives; fills shrink: precision.

    `ranks`: matrix -> rank, or None where it stays dense (see `ranks_of`). `layers` says what became of each
    matrix, in order; `lost` is what `noise` adds for the factors. `held` gives factors (second, first) that
    are there already by the matrix's name, in place of the structure's solver.
    """

    def __init__(
        self,
        structure: LowRank,
        inner: Precision,
        ranks: Mapping[str, int | None],
        lost: float = 0.0,
        held: Callable[[str], tuple[F32, F32]] | None = None,
    ) -> None:
        self.structure, self.inner, self.ranks, self.lost, self.held = structure, inner, ranks, lost, held
        self.name = inner.name
        self.needs = inner.needs | structure.needs
        self.layers: list[Layer] = []

    def stored(self, rows: int, columns: int) -> Stored:
        """How a matrix outside the blocks is stored: dense."""
        return self.inner.stored(rows, columns)

    def stored_as(self, name: str, rows: int, columns: int) -> Stored:
        """How the matrix `name` [rows, columns] is stored: dense where factors would take as many bytes."""
        dense, rank = self.inner.stored(rows, columns), self.ranks.get(name)
        if rank is None:
            return dense
        found = StoredFactors(rank, self.inner.stored(rank, columns), self.inner.stored(rows, rank))
        return found if found.nbytes(rows, columns) < dense.nbytes(rows, columns) else dense

    def noise(self) -> float:
        """Expected squared error of the weights over their mean square: of factors, then of rounding them
        both.
        """
        return self.lost + 2 * self.inner.noise() if self.lost else self.inner.noise()

    def factoring_nbytes(self, rows: int, columns: int) -> int:
        """Bytes that factoring a matrix [rows, columns] takes beside it: its singular vectors and the
        solver's copies, and the statistics in double precision where they are kept.
        """
        least = min(rows, columns)
        vectors = 4 * (rows + columns) * least + 4 * rows * columns
        statistics = 8 * columns * columns * (2 if self.needs else 0)
        doubles = 8 * rows * columns * 3 if self.structure.needs else 0
        return vectors + statistics + doubles

    def quantize(
        self, weights: Mapping[str, F32], inputs: InputStatistics | None
    ) -> Mapping[str, Compressed | Formed]:
        """Compress matrices f32 [rows, columns] of one input, in factors where that saves bytes."""
        hessian = None if inputs is None else inputs.hessian
        pairs: dict[str, tuple[F32, F32]] = {}
        for name, weight in weights.items():
            stored = self.stored_as(name, *weight.shape)
            if isinstance(stored, StoredFactors):
                pairs[name] = self._factors(name, weight, stored.rank, hessian)
        firsts = {first_name(name): first for name, (_, first) in pairs.items()}
        dense = {name: weight for name, weight in weights.items() if name not in pairs}
        kept = None if hessian is None else hessian.copy()  # a method may overwrite what it is given
        found = self.inner.quantize({**dense, **firsts}, inputs if self.inner.needs else None)
        done: dict[str, Compressed | Formed] = {}
        for name, weight in weights.items():
            if name not in pairs:
                done[name] = found[name]
                self._stays(name, weight.shape)
                continue
            first = found[first_name(name)]
            if getattr(first, "form", None) is not None:
                raise UserError(
                    f"{self.name} stores a matrix in parts, and so does {self.structure.name}; take another "
                    "precision.",
                    field="structure",
                    given=self.structure.name,
                    nearest="none",
                )
            done[name] = self._second(name, weight, pairs[name], first, kept, inputs)
        return done

    def _factors(self, name: str, weight: F32, rank: int, hessian: F64 | None) -> tuple[F32, F32]:
        if self.held is not None:
            return self.held(name)
        try:
            found = self.structure.factors(weight, hessian, rank)
        except UserError as error:
            raise UserError(f"{name}: {error}", field="structure", given=self.structure.solver) from error
        assert found is not None, "a rank was given"
        second, first = found
        return second.astype(np.float32), first.astype(np.float32)

    def _second(
        self,
        name: str,
        weight: F32,
        pair: tuple[F32, F32],
        first: Any,
        hessian: F64 | None,
        inputs: InputStatistics | None,
    ) -> Factors:
        second, plain = pair
        rounded = first.kind.kind not in FLOATS
        stored: F32 = unpack(first.packed()) if rounded else plain
        if rounded and self.structure.solver not in ("snmf", "nmf"):
            second = refitted(weight, stored, hessian)
        between = None
        if inputs is not None and self.inner.needs and hessian is not None:
            between = InputStatistics(inputs.tokens, through(hessian, stored))
        key = f"{name}.second"
        last: Any = self.inner.quantize({key: second}, between)[key]
        missed = weight - unpack(last.packed()) @ stored
        rows, columns = weight.shape
        self.layers.append(
            Layer(
                name,
                rows,
                columns,
                len(stored),
                before=self.inner.stored(rows, columns).nbytes(rows, columns),
                after=self.stored_as(name, rows, columns).nbytes(rows, columns),
                error=relative(missed, weight, None),
                output_error=None if hessian is None else relative(missed, weight, hessian),
            )
        )
        return Factors(len(stored), first, last)

    def _stays(self, name: str, shape: tuple[int, ...]) -> None:
        rows, columns = shape
        dense, rank = self.inner.stored(rows, columns).nbytes(rows, columns), self.ranks.get(name)
        reason = "a factor of its rank would save nothing"
        if rank is not None:
            first, second = self.inner.stored(rank, columns), self.inner.stored(rows, rank)
            factored = first.nbytes(rank, columns) + second.nbytes(rows, rank)
            reason = f"factors of rank {rank} take {factored} bytes as stored, the matrix {dense}"
        self.layers.append(Layer(name, rows, columns, None, dense, dense, kept=reason))


def first_name(name: str) -> str:
    """The name under which a precision method sees the first factor of `name`."""
    return f"{name}.first"


def through(hessian: F64, first: F32) -> F64:
    """Mean square f64 [rank, rank] of the numbers that `first` [rank, columns] gives for inputs of
    `hessian`.
    """
    wide = first.astype(np.float64)
    found: F64 = wide @ hessian @ wide.T
    return found


def refitted(weight: F32, first: F32, hessian: F64 | None) -> F32:
    """The second factor f32 [rows, rank] that is best beside `first` [rank, columns] as it is stored:
    W H A^T (A H A^T)^-1, with H the identity where no inputs are known.
    """
    wide = first.astype(np.float64)
    seen = wide if hessian is None else wide @ hessian
    gram = seen @ wide.T
    gram[np.diag_indices_from(gram)] += DAMPING * float(np.trace(gram)) / len(gram)
    found: F32 = np.linalg.solve(gram, seen @ weight.T.astype(np.float64)).T.astype(np.float32)
    return np.ascontiguousarray(found)


def relative(missed: F32, weight: F32, hessian: F64 | None) -> float:
    """||missed|| / ||weight||, or of their outputs for inputs of mean square `hessian`."""

    def size(values: F32) -> float:
        if hessian is None:
            return float(np.linalg.norm(values))
        return float(np.sqrt(max(np.einsum("rc,rc->", values @ hessian, values), 0.0)))

    whole = size(weight)
    return size(missed) / whole if whole else size(missed)


def shapes_of(walk: Walk) -> dict[str, Shape]:
    """Every matrix of the blocks, in order of use."""
    names = [name for block in range(walk.blocks) for group in walk.products(block) for name in group]
    return {name: Shape(walk.shape(name)[1], walk.shape(name)[0]) for name in names}


def ranks_of(
    structure: LowRank,
    walk: Walk,
    source: TensorSource,
    tell: Callable[[str], None] = lambda name: None,
) -> dict[str, int | None]:
    """The rank of every matrix of the blocks; None: it stays dense.

    With `energy` the singular values of all are found first, one matrix in memory at a time.
    """
    shapes = shapes_of(walk)
    if not structure.energy:
        return {name: shape.rank(structure.rank) for name, shape in shapes.items()}
    spectra = {}
    for name in shapes:
        tell(name)
        spectra[name] = spectrum(read_tensor(source, name))
    most = int(structure.weights * sum(shape.dense for shape in shapes.values()))
    return energy_ranks(spectra, shapes, energy=structure.energy, parameters=most)


def spectrum(weight: F32) -> F64:
    """Squared singular values of `weight`, largest first, from the smaller of its two squares."""
    wide = weight.astype(np.float64)
    gram = wide @ wide.T if len(wide) <= wide.shape[1] else wide.T @ wide
    values: F64 = np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0)
    return values


def share_lost(values: F64, rank: int | None) -> float:
    """The share of the squared singular values `values` that the best matrix of rank `rank` misses."""
    total = float(values.sum())
    return 0.0 if rank is None or not total else float(values[rank:].sum()) / total


def expected_loss(walk: Walk, source: TensorSource, ranks: Mapping[str, int | None]) -> float:
    """The mean of `share_lost` over the matrices of the middle block: what a plan's noise is guessed from."""
    names = [name for group in walk.products(max(0, (walk.blocks - 1) // 2)) for name in group]
    found = [share_lost(spectrum(read_tensor(source, name)), ranks.get(name)) for name in names]
    return sum(found) / max(len(found), 1)
