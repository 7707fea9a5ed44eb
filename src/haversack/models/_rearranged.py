"""Tensors that lie in their file in another order than the kernels read them: what they are, and where."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from haversack.core.pack import TensorEntry


class Rearranged(TensorEntry, frozen=True):
    """A tensor whose bytes are put in order when it is read: `kind`, `group`, `layout` and `nbytes` are those
    of the result, `offset` and `stored` (bytes) say where it lies.

    `heads`: its rows belong to so many heads, each of which has its two halves interleaved in the file (0:
    rows are in order). `shift` is taken from every number of a vector. What it holds is never changed in
    value.
    """

    stored: int = 0
    heads: int = 0
    shift: float = 0.0


@dataclass(frozen=True)
class Piece:
    """A part of a tensor as it lies in the file: `count` bytes from `offset`; `put` takes them, and puts them
    in order where they belong."""

    offset: int
    count: int
    put: Callable[[Any], None]


@runtime_checkable
class RearrangingSource(Protocol):
    """A source that holds `Rearranged` tensors; its `bytes` gives a copy of these, in order."""

    def pieces(self, name: str, out: Any) -> Iterator[Piece]:
        """What any tensor is read in, to be put in order into `out` u8 [nbytes]."""

    def reader(self) -> AbstractContextManager[Callable[[int, int], Any]]:
        """(offset, count) -> bytes of the file, whose pages leave the cache; asked for in the file's order,
        they are read ahead."""


def ordered(entry: TensorEntry) -> TensorEntry:
    """The entry of the bytes that a source's `bytes` gives, which are in order."""
    if not isinstance(entry, Rearranged):
        return entry
    fields = (entry.kind, entry.shape, entry.group, entry.layout, entry.file, entry.offset, entry.nbytes)
    return TensorEntry(entry.name, *fields)


def put_in_order(entry: Rearranged, data: Any, out: Any = None) -> Any:
    """Whole rows of a matrix as they lie in the file (whole heads, where it has them) in the order and layout
    of `entry`: u8, into `out` when given."""
    import numpy as np

    raw = np.frombuffer(data, np.uint8)
    row = entry.stored // entry.shape[0]
    rows = raw.size // row
    order = head_order(rows, entry.shape[0] // entry.heads) if entry.heads else None
    if entry.layout == "rows16-1":
        from haversack.kernels import interleave

        return interleave(raw, entry.kind, rows, entry.shape[1], order, out)
    held = raw.reshape(rows, row)
    ordered = (held if order is None else held[order]).reshape(-1)
    if out is None:
        return ordered
    out[...] = ordered
    return out


def head_order(rows: int, head: int) -> Any:
    """Rows of the file in our order: the two halves of every head of `head` rows, which the file
    interleaves."""
    import numpy as np

    halves = np.arange(rows, dtype=np.int32).reshape(-1, head // 2, 2)
    return np.ascontiguousarray(halves.transpose(0, 2, 1)).reshape(-1)
