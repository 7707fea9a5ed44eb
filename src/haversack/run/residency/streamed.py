"""Streamed weights: a model larger than memory runs from storage, block by block, and gives the same tokens.

Paper: none of its own; Alizadeh et al., "LLM in a flash" (2023) for the setting.
What is here: two buffers take turns: while one block computes, a thread reads the next past the page cache.
What the budget leaves beyond the two buffers keeps the first blocks in memory. The embedding is read row by
row, the output matrix in parts no larger than a block.
Cost: every step reads all blocks that are not kept, so long prompts and drafts, which share a step, pay best.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.method import Method, parameter
from haversack.core.pack import TensorSource
from haversack.core.storage import DirectFile, aligned_buffer
from haversack.kernels import Matrix
from haversack.models._architecture import Architecture
from haversack.models._rearranged import Rearranged
from haversack.run._forms import assemble
from haversack.run._residency import Lines
from haversack.run._units import PAGE, SMALLEST_PART, Unit, aside_nbytes, model_units, resident
from haversack.run._weights import MATRIX_KINDS, Weights, bind, row_span, rows_matrix, tensor

I32 = npt.NDArray[np.int32]

BUFFER_SPARE = 4 * PAGE + 64 * 1024
"""Pages around a block, and what lies between its tensors."""
ROWS_SPARE = 4 << 20
"""Rows of the embedding on their way, norms and biases."""


@dataclass(frozen=True)
class Streamed(Method):
    name = "streamed"
    stage = "run"
    slot = "residency"
    paper = "Alizadeh et al., LLM in a flash (2023)"
    summary = "Blocks are read from storage while the one before computes; the same tokens in less memory."
    excludes = frozenset({"mapped-weights", "sealed-weights"})

    keep: int = parameter(-1, help="blocks kept in memory; -1: as many as the budget allows, 0 without one")

    def kept(self, units: Sequence[Unit], limit: int | None, aside: int = 0) -> int:
        """How many of `units` (blocks, then parts of the output matrix) stay in memory, with `aside` bytes
        beside the buffers.
        """
        if self.keep >= 0:
            return min(self.keep, len(units))
        if limit is None:
            return 0
        left = limit - 2 * (max(unit.nbytes for unit in units) + BUFFER_SPARE) - ROWS_SPARE - aside
        count = 0
        while count < len(units) and units[count].nbytes + BUFFER_SPARE <= left:
            left -= units[count].nbytes + BUFFER_SPARE
            count += 1
        return count

    def planned(
        self, blocks: Sequence[int], top: int, files: int = 1, limit: int | None = None, aside: int = 0
    ) -> Lines:
        """Two buffers for a block or a part of the output matrix, rows of the embedding, and what is kept."""
        least = 2 * (max([*blocks, SMALLEST_PART]) + BUFFER_SPARE) + ROWS_SPARE + aside
        lines: Lines = (("weights, two blocks on their way", least),)
        kept = sum(blocks[: self.keep]) if self.keep > 0 else 0
        if self.keep < 0 and limit is not None:
            for nbytes in (*blocks, top):
                if least + kept + nbytes + BUFFER_SPARE > limit:
                    break
                kept += nbytes + BUFFER_SPARE
        return (*lines, ("weights, kept", kept)) if kept else lines

    def open(
        self, source: TensorSource, architecture: Architecture, limit: int | None = None
    ) -> StreamedHeld:
        """Read what is kept and start reading ahead."""
        for path in source.files:
            drop_cached(path)
        units = model_units(source, architecture)
        aside = aside_nbytes(source, architecture)
        return StreamedHeld(source, architecture, units, self.kept(units, limit, aside))


def drop_cached(path: Path) -> None:
    """Let the page cache forget a file that an earlier run left there: it would count as this run's
    memory.
    """
    if hasattr(os, "posix_fadvise"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


class StreamedHeld:
    """The buffers, the reading thread and what is kept. `bytes_read` counts what left the storage."""

    def __init__(
        self, source: TensorSource, architecture: Architecture, units: Sequence[Unit], kept: int
    ) -> None:
        self._source = source
        self._architecture = architecture
        self._files = {path.name: DirectFile(path) for path in source.files}
        self._units = units
        names = resident(architecture)
        self._resident = bind(source, names, self._read_tensor)
        self.top: Weights = {
            name: self._resident[name] for name in architecture.top_tensors() if name in names
        }
        self._kept = {i: _Slot([self._units[i]]) for i in range(min(kept, len(self._units)))}
        for index, slot in self._kept.items():
            slot.read(self._units[index], self._files)
        self._streamed = [i for i in range(len(self._units)) if i not in self._kept]
        self._changed = threading.Condition()
        self._free = [_Slot(self._units) for _ in range(2)] if self._streamed else []
        self._ready: dict[int, _Slot] = {}
        self._next = self._streamed[0] if self._streamed else -1
        self._loading = (-1, 0)  # unit and epoch of the read under way
        self._epoch = 0
        self._failure: BaseException | None = None
        self._closed = not self._streamed
        self._thread = threading.Thread(target=self._read_ahead, name="haversack-stream", daemon=True)
        if self._streamed:
            self._thread.start()
            atexit.register(self.close)

    @property
    def bytes_read(self) -> int:
        """Bytes that left the storage so far."""
        return sum(file.bytes_read for file in self._files.values())

    @contextmanager
    def _unit(self, index: int) -> Iterator[_Slot]:
        if index in self._kept:
            yield self._kept[index]
            return
        slot = self._take(index)
        try:
            yield slot
        finally:
            with self._changed:
                self._free.append(slot)
                self._changed.notify_all()

    def _take(self, index: int) -> _Slot:
        """Wait for a unit. One that is neither read nor being read makes the reader start over from it."""
        with self._changed:
            if index not in self._ready:
                self._free += self._ready.values()
                self._ready.clear()
                if (index, self._epoch) != self._loading:
                    self._next = index
                    self._epoch += 1
                self._changed.notify_all()
            while index not in self._ready:
                if self._failure is not None:
                    raise self._failure
                self._changed.wait()
            return self._ready.pop(index)

    def _read_ahead(self) -> None:
        try:
            while True:
                with self._changed:
                    while not self._free and not self._closed:
                        self._changed.wait()
                    if self._closed:
                        return
                    slot, index, epoch = self._free.pop(), self._next, self._epoch
                    after = self._streamed.index(index) + 1
                    self._loading = (index, epoch)
                    self._next = self._streamed[after % len(self._streamed)]
                slot.read(self._units[index], self._files)
                with self._changed:
                    self._loading = (-1, 0)
                    if epoch == self._epoch:
                        self._ready[index] = slot
                    else:
                        self._free.append(slot)
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._failure, self._loading = error, (-1, 0)
                self._changed.notify_all()

    @contextmanager
    def _block(self, block: int) -> Iterator[Weights]:
        with self._unit(block) as slot:
            yield {**self._resident, **slot.tensors}

    def weights(self, block: int, names: Sequence[str] = ()) -> Any:
        """See Held."""
        return self._block(block)

    def want(self, block: int, ids: Sequence[int] = (), priority: int = 0) -> None:
        """Nothing to do: blocks are read in order."""

    def head(self) -> Iterator[tuple[int, Matrix]]:
        """See Held; parts no larger than a block."""
        for index in range(len(self._architecture.blocks), len(self._units)):
            with self._unit(index) as slot:
                yield self._units[index].first_row, slot.tensors[self._architecture.head.weight]

    def rows(self, tokens: I32, table: str | None = None) -> tuple[Matrix, I32]:
        """See Held; reads only the rows asked for (packed kinds: the 16 rows around each)."""
        entry = self._source.tensors[table or self._architecture.embedding]
        unit = 16 if entry.layout == "rows16-1" else 1
        wanted, local = np.unique(tokens // unit, return_inverse=True)
        spans = [row_span(entry, int(w) * unit, min(int(w + 1) * unit, entry.shape[0])) for w in wanted]
        file = self._files[entry.file]
        parts = file.read_many([(entry.offset + start, count) for start, count in spans])
        matrix = rows_matrix(entry, 0, len(wanted) * unit, b"".join(parts))
        return matrix, (local.reshape(-1) * unit + tokens % unit).astype(np.int32)

    def _read_tensor(self, entry: Any) -> Any:
        if isinstance(entry, Rearranged):
            return self._source.bytes(entry.name)
        return self._files[entry.file].read(entry.offset, entry.nbytes)

    def close(self) -> None:
        """End the reading thread and close the files."""
        atexit.unregister(self.close)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        for file in self._files.values():
            file.close()


class _Slot:
    """Buffers for any of `units`, and the tensors of the one read last."""

    def __init__(self, units: Sequence[Unit]) -> None:
        count = max(len(unit.ranges) for unit in units)
        self._buffers = [
            aligned_buffer(max(unit.ranges[i].nbytes for unit in units if len(unit.ranges) > i) + PAGE)
            for i in range(count)
        ]
        self.tensors: dict[str, Any] = {}

    def read(self, unit: Unit, files: dict[str, DirectFile]) -> None:
        """Read `unit` from storage."""
        self.tensors = {}
        for buffer, span in zip(self._buffers, unit.ranges, strict=False):
            data = files[span.file].read(span.offset, span.nbytes, buffer)
            for entry, start, count, rows in span.parts:
                part = data[start : start + count]
                matrix = len(entry.shape) == 2 and entry.kind in MATRIX_KINDS
                self.tensors[entry.name] = (
                    rows_matrix(entry, 0, rows, part) if matrix else tensor(entry, part)
                )
        assemble(unit.forms, self.tensors)
