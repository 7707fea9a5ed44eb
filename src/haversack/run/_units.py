"""What is read from storage at once: the matrices of a block, or a part of the output matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from haversack.core.pack import TensorEntry, TensorSource
from haversack.models._architecture import Architecture, Block
from haversack.models._checkpoint import Turned, extent
from haversack.models._rearranged import Rearranged
from haversack.run._forms import Entry, forms_of, stored_names
from haversack.run._weights import row_span

PAGE = 4096
GAP = 64 * 1024
"""Tensors closer than this are read together, with what lies between."""
SMALLEST_PART = 1 << 20


@dataclass(frozen=True)
class Range:
    """`nbytes` of `file` from `offset`; `parts` are (tensor, start in the range, bytes, rows)."""

    file: str
    offset: int
    nbytes: int
    parts: tuple[tuple[TensorEntry, int, int, int], ...]


@dataclass(frozen=True)
class Unit:
    """A block's matrices, or rows from `first_row` of the output matrix; `forms` are those of the matrices
    that are read in parts.
    """

    ranges: tuple[Range, ...]
    first_row: int = 0
    forms: Mapping[str, Entry] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of memory it takes, pages around it and copies of what is turned over included."""
        read = sum(-(-span.nbytes // PAGE) * PAGE + 2 * PAGE for span in self.ranges)
        return read + sum(copied_nbytes(part[0]) for span in self.ranges for part in span.parts)


def copied_nbytes(entry: TensorEntry) -> int:
    """Bytes that a tensor takes beside those that are read."""
    if entry.kind == "int2":
        return 2 * entry.nbytes
    return entry.nbytes if isinstance(entry, Turned | Rearranged) else 0


def resident(architecture: Architecture) -> list[str]:
    """Names of what is small and always resident: norms, biases, projections outside the blocks, what biases
    attention by distance.
    """
    ends = (architecture.project_in, architecture.project_out)
    matrices = {linear.weight for linear in ends if linear is not None}
    matrices |= {bias.weight for bias in architecture.distances}
    return [name for name, shape in architecture.tensors().items() if len(shape) == 1 or name in matrices]


def aside_nbytes(source: TensorSource, architecture: Architecture) -> int:
    """Bytes that streamed weights take beside their buffers: resident matrices, and copies of what is turned
    over in two blocks.
    """
    tensors = source.tensors
    fixed = sum(tensors[name].nbytes for name in resident(architecture) if len(tensors[name].shape) == 2)
    copies = [
        sum(copied_nbytes(tensors[name]) for name in _matrices(source, block))
        for block in architecture.blocks
    ]
    return fixed + 2 * max(copies, default=0)


def model_units(source: TensorSource, architecture: Architecture) -> list[Unit]:
    """One unit for each block, then the output matrix in parts about as large as the largest block."""
    forms = forms_of(source)
    units = [
        Unit(
            _ranges([source.tensors[name] for name in _matrices(source, block)]),
            forms={one.weight: forms[one.weight] for one in block.matrices() if one.weight in forms},
        )
        for block in architecture.blocks
    ]
    most = max([SMALLEST_PART, *(unit.nbytes for unit in units)])
    entry = source.tensors[architecture.head.weight]
    rows = entry.shape[0]
    step = max(16, most // max(1, entry.nbytes // rows) // 16 * 16)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        at, count = row_span(entry, start, stop)
        span = Range(entry.file, entry.offset + at, count, ((entry, 0, count, stop - start),))
        units.append(Unit((span,), start))
    return units


def _matrices(source: TensorSource, block: Block) -> list[str]:
    """The tensors that the matrices of `block` are stored in."""
    return list(stored_names(source, (linear.weight for linear in block.matrices())))


def _ranges(entries: list[TensorEntry]) -> tuple[Range, ...]:
    """`entries` as few reads, in order of their place in the files."""
    groups: list[list[TensorEntry]] = []
    for entry in sorted(entries, key=lambda e: (e.file, e.offset)):
        last = groups[-1][-1] if groups else None
        if last is not None and last.file == entry.file and entry.offset - last.offset - extent(last) <= GAP:
            groups[-1].append(entry)
        else:
            groups.append([entry])
    found = []
    for group in groups:
        start, end = group[0].offset, group[-1].offset + extent(group[-1])
        parts = tuple((e, e.offset - start, extent(e), e.shape[0] if e.shape else 1) for e in group)
        found.append(Range(group[0].file, start, end - start, parts))
    return tuple(found)
