"""What sealed weights are restored by: what is always needed, each block, the output matrix, tables of
rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from haversack.core.pack import Pack, TensorEntry
from haversack.formats.sealed import BLOCK
from haversack.models._architecture import Architecture
from haversack.run._forms import Entry, assemble
from haversack.run._units import copied_nbytes, model_units, resident
from haversack.run._weights import MATRIX_KINDS, rows_matrix, tensor
from haversack.run.residency._restoration import HEAD_LAYER, MEMORY_LAYER, Span, Wanted, lay_out


@dataclass(frozen=True)
class Part:
    """`count` bytes from byte `start` of a tensor: `rows` of it, or all."""

    entry: TensorEntry
    start: int
    count: int
    rows: int


@dataclass(frozen=True)
class SealedUnit:
    """Parts that are restored together, at `spans` of a region of `nbytes`. `table`: a matrix read by rows,
    of which single blocks may be restored before the rest."""

    layer: int
    parts: tuple[Part, ...]
    spans: tuple[Span, ...]
    nbytes: int
    first_row: int = 0
    forms: Mapping[str, Entry] = field(default_factory=dict)
    table: bool = False

    @property
    def held_nbytes(self) -> int:
        """Bytes of memory: its region, and what the computing process makes of 2-bit experts."""
        return self.nbytes + sum(copied_nbytes(part.entry) for part in self.parts)


def sealed_units(pack: Pack, architecture: Architecture, *, whole: bool) -> list[SealedUnit]:
    """The units in order of use. `whole`: the output matrix is one unit, and matrices that are read by rows
    are units too; else the output matrix comes in parts no larger than a block, and rows are restored
    alone."""
    tensors = pack.tensors
    entries = [tensors[name] for name in resident(architecture)]
    units = [_unit(MEMORY_LAYER, [_all(entry) for entry in entries])]
    head = architecture.head.weight
    learned = architecture.positions
    tables = {architecture.embedding: None} | ({learned.weight: None} if learned is not None else {})
    for number, unit in enumerate(model_units(pack, architecture)):
        in_block = number < len(architecture.blocks)
        if whole and not in_block:
            break
        parts = [
            Part(entry, span.offset + start - entry.offset, count, rows)
            for span in unit.ranges
            for entry, start, count, rows in span.parts
        ]
        layer = number if in_block else HEAD_LAYER + number
        units.append(_unit(layer, parts, unit.first_row, unit.forms))
    if whole:
        for at, name in enumerate(dict.fromkeys([head, *tables])):
            units.append(_unit(HEAD_LAYER + at, [_all(tensors[name])], table=name in tables))
    return units


def bound_unit(unit: SealedUnit, region: Any) -> dict[str, Any]:
    """The tensors of a unit over the bytes of its region."""
    found: dict[str, Any] = {}
    for part, span in zip(unit.parts, unit.spans, strict=True):
        at = span.at + part.start - span.first * BLOCK
        data = region[at : at + part.count]
        entry = part.entry
        matrix = len(entry.shape) == 2 and entry.kind in MATRIX_KINDS
        found[entry.name] = rows_matrix(entry, 0, part.rows, data) if matrix else tensor(entry, data)
    return assemble(unit.forms, found)


def _all(entry: TensorEntry) -> Part:
    return Part(entry, 0, entry.nbytes, entry.shape[0] if entry.shape else 1)


def _unit(
    layer: int,
    parts: Sequence[Part],
    first_row: int = 0,
    forms: Mapping[str, Entry] | None = None,
    table: bool = False,
) -> SealedUnit:
    spans, nbytes = lay_out(Wanted(p.entry.name, p.entry.nbytes, p.start, p.count) for p in parts)
    return SealedUnit(layer, tuple(parts), spans, nbytes, first_row, forms or {}, table)
