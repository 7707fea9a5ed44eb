"""Nested: a matrix whose first bits are a smaller matrix, of which a token reads as many as it is given.

Paper: D2MoE (arXiv 2504.15299, 2025), Matryoshka weight quantization; see shrink/precision/d2moe.py.
What is here: `base` holds the first bits, `plane3`, `plane4` and so on one bit more each, in the order of
their widths (kernels/nested.py). Level 0 is the base alone, level k the base and k planes; `multiply` takes
all of them, `at` a level for each row. With `copies` nothing is nested: each part is a whole matrix of its
width, and a level is one of them.
Planes are added up in their order and the sum is then added to what was there, so that a row's bits depend on
its level alone. Activations are f32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.kernels.nested import MOST_BITS, Plane, plane_nbytes
from haversack.run._forms import F32, Entry, Part, whole

I32 = npt.NDArray[np.int32]
ACTIVATIONS = ("f32",)


def names_of(entry: Entry) -> list[str]:
    """The parts of a matrix: `base`, then a plane for each width above."""
    first, last = whole(entry, "first", 1, MOST_BITS), whole(entry, "last", 1, MOST_BITS)
    if last < first:
        raise ValueError(f"the widths go from {first} to {last}")
    return ["base", *(f"plane{bits}" for bits in range(first + 1, last + 1))]


def parts(entry: Entry) -> Mapping[str, Part]:
    """See Form; the fields are `first` and `last`, the narrowest and the widest bits, `group`, and `copies`
    where parts are whole matrices."""
    rows, columns = entry["shape"]
    group = whole(entry, "group", 16, 4096)
    found = {}
    for level, name in enumerate(names_of(entry)):
        bits, base = _kind(entry, level)
        found[name] = Part((plane_nbytes(rows, columns, group, bits, base),), ("u8",))
    return found


def _kind(entry: Entry, level: int) -> tuple[int, bool]:
    """(bits, whether it is a base) of the part of a level."""
    if level == 0 or entry.get("copies"):
        return int(entry["first"]) + level, True
    return 1, False


def plane_of(entry: Entry, level: int, data: Any) -> Plane:
    """The part of a level over its bytes."""
    rows, columns = entry["shape"]
    bits, base = _kind(entry, level)
    return Plane(rows, columns, entry["group"], bits, base, np.frombuffer(data, np.uint8))


def bind(entry: Entry, parts: Mapping[str, Any]) -> BoundNested:
    """See Form."""
    planes = [plane_of(entry, level, parts[name]) for level, name in enumerate(names_of(entry))]
    return BoundNested(planes, int(entry["first"]), not entry.get("copies"))


class BoundNested:
    """The planes of a matrix in a block: see Bound. `levels` i32 [rows of x] is what `at` gave it, None: the
    last one for all."""

    __slots__ = ("columns", "first", "kind", "levels", "nbytes", "nested", "planes", "rows")

    def __init__(self, planes: Sequence[Plane], first: int, nested: bool, levels: I32 | None = None) -> None:
        self.planes, self.first, self.nested, self.levels = planes, first, nested, levels
        self.rows, self.columns, self.kind = planes[0].rows, planes[0].columns, "nested"
        self.nbytes = sum(plane.nbytes for plane in planes)

    def at(self, levels: I32) -> BoundNested:
        """The same matrix, of which row i of the input meets level `levels`[i]."""
        return BoundNested(self.planes, self.first, self.nested, levels)

    def multiply(self, x: F32, out: F32, *, activations: str, add: bool, bias: F32 | None) -> None:
        """See Bound."""
        found = np.zeros((len(x), self.rows), np.float32)
        last = len(self.planes) - 1
        for level, plane in enumerate(self.planes):
            if self.levels is None:
                taken = self.nested or level == last
                if taken:
                    plane.add(x, found)
                continue
            reads = self.levels >= level if self.nested else self.levels == level
            if reads.all():
                plane.add(x, found)
            elif reads.any():
                some = found[reads]
                plane.add(np.ascontiguousarray(x[reads]), some)
                found[reads] = some
        if bias is not None:
            found += bias
        if add:
            out += found
        else:
            out[...] = found

    def dense(self, level: int | None = None) -> F32:
        """See Bound; the matrix at a level (None: the last)."""
        level = len(self.planes) - 1 if level is None else level
        planes = self.planes[: level + 1] if self.nested else self.planes[level : level + 1]
        total = planes[0].dense()
        for plane in planes[1:]:
            total = total + plane.dense()
        return total


class AtLevels(dict[str, Any]):
    """An expert's tensors, each nested matrix with a level for every row."""

    __slots__ = ()

    def __init__(self, weights: Mapping[str, Any], names: Sequence[str], levels: I32) -> None:
        super().__init__({name: weights[name] for name in names})
        for name, value in self.items():
            if isinstance(value, BoundNested):
                self[name] = value.at(levels)
