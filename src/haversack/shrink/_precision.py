"""What a precision method is to the rest: a slot of three functions, what it is given and what it gives back.

A method that fills shrink: precision is asked once for each group of matrices that multiply the same input
(query, key and value; gate and up), in order of use, with the statistics it declared in `needs` gathered on
the already compressed blocks before it.

A method may also have `transform(block: BlockView) -> None` (shrink/_block.py), which is called with each
block before its matrices are quantized, to move scales from activations into weights.

A method that learns all blocks together has `learn(source, walk, texts) -> Precision`, which is called first
and gives what the blocks are then asked of; its `files()` are names and bytes that the pack holds beside
them. One that learns from what was made of all blocks has `finish(source, walk, texts, seed)`, which is
called last and gives such files too.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError
from haversack.kernels import Matrix, pack_int3, pack_int4, pack_int8, packed_nbytes
from haversack.kernels._narrow import U8, narrow_nbytes, pack_int2, widen_int2
from haversack.models._observers import ChannelMoments
from haversack.shrink._rounding import F32, I8

# Statistics of inputs that a method may name in `needs`: the mean of x x^T, some of the inputs themselves,
# and every channel's range, mean and mean magnitude. "block" gives it whole blocks instead, with their inputs
# and outputs (see shrink/_reconstruction.py).
STATISTICS = ("hessian", "inputs", "ranges", "block")
MATRICES = "expert-store:matrices"
SAMPLE_ROWS = 512  # inputs that are kept where a method needs them


@dataclass(frozen=True)
class StoredKind:
    """How a matrix is stored: `kind` f32, f16, bf16, int8, int4, int3 or int2; at the last three `group`
    inputs share a scale.
    """

    kind: str
    group: int | None = None

    @classmethod
    def of_bits(cls, bits: int, group: int | None) -> StoredKind:
        return cls("int8") if bits == 8 else cls(f"int{bits}", group)

    def nbytes(self, rows: int, columns: int) -> int:
        """Bytes of a stored matrix [rows, columns], scales and padding included."""
        if self.kind == "int2":
            return narrow_nbytes(rows, columns, self.group or 0)
        return int(packed_nbytes(self.kind, rows, columns, self.group))


@dataclass(frozen=True)
class InputStatistics:
    """What calibration saw of one input, of `tokens` rows; what the method did not ask for is None.

    `hessian` f64 [columns, columns] is the mean x x^T; a method may overwrite it (it is the largest array
    of the job), and does so at most once. `inputs` f32 [at most SAMPLE_ROWS, columns] are rows spread
    evenly over the text. `ranges` are of every channel.
    """

    tokens: int
    hessian: NDArray[np.float64] | None = None
    inputs: F32 | None = None
    ranges: ChannelMoments | None = None


class HessianSum:
    """Adds up x x^T in double precision, a panel of columns at a time so that no second matrix is held."""

    PANEL = 256

    def __init__(self, columns: int) -> None:
        self.sum: NDArray[np.float64] = np.zeros((columns, columns))
        self.tokens = 0

    def add(self, x: F32) -> None:
        """Count the rows of `x` f32 [n, columns]."""
        for start in range(0, x.shape[1], self.PANEL):
            stop = min(start + self.PANEL, x.shape[1])
            self.sum[:stop, start:stop] += x[:, :stop].T @ x[:, start:stop]
        self.tokens += len(x)

    def finish(self) -> InputStatistics:
        """The mean; the sum kept only the upper triangle, which is mirrored here."""
        self.sum /= max(self.tokens, 1)
        for start in range(0, len(self.sum), self.PANEL):
            stop = min(start + self.PANEL, len(self.sum))
            self.sum[start:stop, :start] = self.sum[:start, start:stop].T
            own = self.sum[start:stop, start:stop]
            own[:] = np.triu(own) + np.triu(own, 1).T
        return InputStatistics(self.tokens, self.sum)


class Gathering:
    """Adds up the statistics `needs` of one input of `columns` channels over a text of `tokens` tokens."""

    def __init__(self, columns: int, needs: Collection[str], tokens: int) -> None:
        self._hessian = HessianSum(columns) if "hessian" in needs else None
        self._ranges = ChannelMoments(columns) if "ranges" in needs else None
        self._sample: list[F32] | None = [] if "inputs" in needs else None
        self._step = max(1, -(-tokens // SAMPLE_ROWS))
        self._finite = True
        self.tokens = 0

    def add(self, x: F32) -> None:
        """Count the rows of `x` f32 [n, columns]."""
        self._finite &= bool(np.isfinite(x).all())
        if self._hessian is not None:
            self._hessian.add(x)
        if self._ranges is not None:
            self._ranges.add(x)
        if self._sample is not None and self._finite:
            self._sample.append(x[-self.tokens % self._step :: self._step].copy())
        self.tokens += len(x)

    def finish(self, name: str) -> InputStatistics:
        """What was seen; UserError, which names the matrix `name`, when some of it was not finite."""
        if not self._finite:
            raise UserError(
                f"calibration text gives inputs of {name} that are not finite; the model cannot be "
                "calibrated on it.",
                field="calibration",
                given=name,
            )
        hessian = None if self._hessian is None else self._hessian.finish().hessian
        sample = None if self._sample is None else np.concatenate(self._sample)[:SAMPLE_ROWS]
        return InputStatistics(self.tokens, hessian, sample, self._ranges)


def statistics_nbytes(needs: Collection[str], columns: int) -> int:
    """Bytes that `Gathering` holds at most, the temporaries of its sums included."""
    total = 2 * 4 * columns * columns if "hessian" in needs else 0
    total += 2 * 4 * SAMPLE_ROWS * columns if "inputs" in needs else 0
    return total + (7 * 8 * columns if "ranges" in needs else 0)


@dataclass(frozen=True)
class Quantized:
    """A matrix as codes int8 [rows, columns] and scales f32 [rows, groups], to be stored as `kind`."""

    kind: StoredKind
    codes: I8
    scales: F32

    def packed(self) -> Matrix:
        """The matrix in the kernels' layout."""
        if self.kind.kind == "int8":
            return pack_int8(self.codes, np.ascontiguousarray(self.scales[:, 0]))
        assert self.kind.group is not None
        pack = pack_int3 if self.kind.kind == "int3" else pack_int4
        return pack(self.codes, self.scales, self.kind.group)


@dataclass(frozen=True)
class Narrow:
    """A matrix of int2 codes int8 [rows, columns] and scales f32 [rows, groups], which multiplies as int4."""

    kind: StoredKind
    codes: I8
    scales: F32

    def stored(self) -> U8:
        """Its bytes in the pack."""
        return pack_int2(self.codes, self.scales, self.kind.group or 0)

    def packed(self) -> Matrix:
        """The matrix in the kernels' layout."""
        rows, columns = self.codes.shape
        return widen_int2(self.stored(), rows, columns, self.kind.group or 0)


@dataclass(frozen=True)
class Kept:
    """A matrix f32 [rows, columns] to be stored in a float `kind`."""

    kind: StoredKind
    values: F32

    def packed(self) -> Matrix:
        """The matrix in the kernels' layout."""
        return Matrix.from_array(self.values, self.kind.kind)


class Stored(Protocol):
    """How a matrix is stored: a StoredKind, or several parts whose bytes are added up."""

    @property
    def kind(self) -> str:
        """That of most of its numbers."""

    @property
    def group(self) -> int | None: ...

    def nbytes(self, rows: int, columns: int) -> int:
        """Bytes of a stored matrix [rows, columns], scales and padding included."""


class Compressed(Protocol):
    """What a method gives back for a matrix: its stored kind, and the matrix in the kernels' layout."""

    @property
    def kind(self) -> StoredKind: ...

    def packed(self) -> Matrix: ...


class Formed(Protocol):
    """What a method gives back for a matrix that is stored as several parts; see run/_forms.py.

    `form` holds `form`, the name of a file of run/forms/, and the fields that it asks for (but the shape).
    """

    @property
    def form(self) -> Mapping[str, Any]: ...

    def parts(self) -> Mapping[str, Compressed | NDArray[Any]]:
        """Part -> matrix, or array of f32, i32 or u8, in order of use."""


class Precision(Protocol):
    """Fills shrink: precision.

    `needs` is the part of STATISTICS that `quantize` is given. Calibration text is read when it is not
    empty or the method has a `transform`.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]]

    def stored(self, rows: int, columns: int) -> Stored:
        """How a matrix [rows, columns] will be stored; the planner predicts sizes from it.

        A method that treats matrices by their names has `stored_as(name, rows, columns)` too, which is asked
        for the matrices of blocks.
        """

    def noise(self) -> float:
        """Expected squared weight error over the weights' mean square; the planner guesses lost quality by
        it.
        """

    def quantize(
        self, weights: Mapping[str, F32], inputs: InputStatistics | None
    ) -> Mapping[str, Compressed | Formed]:
        """Compress matrices f32 [rows, columns] of one input; `inputs` is None when `needs` is empty."""


def fitted_to(precision: Precision, walk: Any) -> Precision:
    """The method for the model of `walk`: what its `for_walk` gives, or itself where it has none."""
    prepare = getattr(precision, "for_walk", None)
    found: Precision = precision if prepare is None else prepare(walk)
    return found


def refused_by(precision: Precision, walk: Any) -> Mapping[str, str]:
    """The matrices of a model that a method cannot take, each with the reason: what it says in
    `refused(walk)`, where it has that.
    """
    asked = getattr(precision, "refused", None)
    found: Mapping[str, str] = {} if asked is None else asked(walk)
    return found


def stores_matrices(precision: Any) -> bool:
    """True for a method (or one that a structure was put on) whose packs keep every matrix of an expert in a
    record of its own."""
    inner = getattr(precision, "inner", precision)
    return MATRICES in getattr(inner, "provides", ())


def calibrated(precision: Precision) -> bool:
    """True for a method that reads calibration text."""
    return bool(precision.needs) or hasattr(precision, "transform") or hasattr(precision, "learn")


def expected_noise(bits: int, group: int, choice: str) -> float:
    """Rounding error of normally distributed weights, squared, over their mean square.

    The largest of n magnitudes is about a + (0.577 - (ln ln 2n + ln 4 pi) / 2) / a deviations with a = sqrt(2
    ln 2n) (extreme value theory), a step is that over the largest code, and the error is even over a step:
    step^2 / 12.
    """
    sharing = 1024 if bits == 8 else group
    peak = math.sqrt(2 * math.log(2 * sharing))
    peak += (0.5772 - (math.log(math.log(2 * sharing)) + math.log(4 * math.pi)) / 2) / peak
    largest_code = (1 << (bits - 1)) - (1 if choice == "largest" or bits == 8 else 0)
    return (peak / largest_code) ** 2 / 12 * (0.9 if choice == "searched" else 1.0)
