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
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.method import Method, parameter
from haversack.core.pack import TensorSource
from haversack.core.storage import DirectFile, SlowStorage, aligned_buffer
from haversack.kernels import Matrix
from haversack.models._architecture import Architecture
from haversack.models._rearranged import Rearranged
from haversack.run._forms import assemble
from haversack.run._reader import NEEDED, WAITED_FOR, Reader, Reading
from haversack.run._residency import Lines
from haversack.run._units import PAGE, SMALLEST_PART, Unit, aside_nbytes, model_units, resident
from haversack.run._weights import MATRIX_KINDS, Weights, bind, row_span, rows_matrix, tensor

I32 = npt.NDArray[np.int32]

BUFFER_SPARE = 4 * PAGE + 64 * 1024
"""Pages around a block, and what lies between its tensors."""
ROWS_SPARE = 4 << 20
"""Rows of the embedding on their way, norms and biases."""
ROWS_KEPT = 1 << 19
"""Bytes of rows of the embedding that are kept for the next step."""


@dataclass(frozen=True)
class Streamed(Method):
    name = "streamed"
    stage = "run"
    slot = "residency"
    paper = "Alizadeh et al., LLM in a flash (2023)"
    summary = "Blocks are read from storage while the one before computes; the same tokens in less memory."
    excludes = frozenset({"mapped-weights", "sealed-weights"})

    keep: int = parameter(-1, help="blocks kept in memory; -1: as many as the budget allows, 0 without one")
    mb_s: int = parameter(
        0, help="storage to be emulated, in 10^6 bytes a second; 0: as fast as this machine's"
    )

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
        storage = SlowStorage(self.mb_s) if self.mb_s else None
        return StreamedHeld(source, architecture, units, self.kept(units, limit, aside), storage)


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
    """The buffers, the reading thread and what is kept. `bytes_read` counts what left the storage.

    `meanwhile`: something to do, again and again, while a block that is needed is still being read; it is
    told in how many seconds that will likely be over, and says whether it did anything.
    """

    def __init__(
        self,
        source: TensorSource,
        architecture: Architecture,
        units: Sequence[Unit],
        kept: int,
        storage: SlowStorage | None = None,
    ) -> None:
        self._source = source
        self._architecture = architecture
        self._files = {path.name: DirectFile(path, storage) for path in source.files}
        self._units = units
        names = resident(architecture)
        self._resident = bind(source, names, self._read_tensor)
        self.top: Weights = {
            name: self._resident[name] for name in architecture.top_tensors() if name in names
        }
        self._kept = {i: _Slot([self._units[i]]) for i in range(min(kept, len(self._units)))}
        for index, slot in self._kept.items():
            slot.read(self._units[index], self._files)
        self.meanwhile: Callable[[float], bool] | None = None
        self._rows: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._rows_nbytes = 0
        self._took = [0.0] * len(units)
        self._began = 0.0
        self._streamed = [i for i in range(len(self._units)) if i not in self._kept]
        self._turns = [self._streamed, [i for i in self._streamed if i >= len(architecture.reading)]]
        self._reader = Reader(name="haversack-stream")
        self._free = [_Slot(self._units) for _ in range(2)] if self._streamed else []
        self._filling: dict[int, _Slot] = {}
        self._ready: dict[int, _Slot] = {}
        self._readings: dict[int, Reading] = {}
        atexit.register(self.close)
        for index in self._streamed[:2]:
            self._ask(index)

    @property
    def bytes_read(self) -> int:
        """Bytes that left the storage so far."""
        return sum(file.bytes_read for file in self._files.values())

    @contextmanager
    def _unit(self, index: int) -> Iterator[_Slot]:
        if index in self._kept:
            yield self._kept[index]
            return
        while self.meanwhile is not None and index not in self._ready and self.meanwhile(self._left(index)):
            pass
        slot = self._take(index)
        try:
            yield slot
        finally:
            with self._reader.changed:
                self._free.append(slot)
                self._reader.changed.notify_all()

    def _left(self, index: int) -> float:
        """Seconds until a unit will likely have been read."""
        begun = time.monotonic() - self._began if index in self._filling else 0.0
        return max(0.0, self._took[index] - begun)

    def _take(self, index: int) -> _Slot:
        """Wait for a unit; the two that follow it are read meanwhile. What was read in another order makes
        room.
        """
        place = self._streamed.index(index)
        following = [self._streamed[(place + step) % len(self._streamed)] for step in (1, 2)]
        with self._reader.changed:
            for other, reading in list(self._readings.items()):
                if other not in (index, *following) and self._reader.cancel(reading):
                    del self._readings[other]
            for other in [each for each in self._ready if each not in (index, *following)]:
                self._free.append(self._ready.pop(other))
            self._ask(index)
            if index in self._readings:
                if index not in self._filling and not self._free and self._ready:
                    self._free.append(self._ready.pop(next(reversed(self._ready))))
                self._reader.hurry(self._readings[index], WAITED_FOR)
                self._reader.wait(self._readings[index])
            slot = self._ready.pop(index)
            for other in following:
                self._ask(other)
            return slot

    def _ask(self, index: int) -> None:
        """Let a unit be read as soon as there is a buffer for it."""
        with self._reader.changed:
            if index not in self._readings and index not in self._ready:
                self._readings[index] = Reading(
                    f"block {index}", NEEDED, lambda: self._fill(index), lambda: self._place(index)
                )
                self._reader.submit(self._readings[index])

    def _place(self, index: int) -> bool:
        """Take a buffer for a unit, if there is one; runs in the reading thread, under the lock."""
        if self._free:
            self._filling[index] = self._free.pop()
        return index in self._filling

    def _fill(self, index: int) -> None:
        slot = self._filling[index]
        try:
            self._began = time.monotonic()
            slot.read(self._units[index], self._files)
            self._took[index] = time.monotonic() - self._began
        except BaseException:
            with self._reader.changed:
                self._free.append(slot)
                del self._filling[index], self._readings[index]
            raise
        with self._reader.changed:
            self._ready[index] = slot
            del self._filling[index], self._readings[index]

    @contextmanager
    def _block(self, block: int) -> Iterator[Weights]:
        with self._unit(block) as slot:
            weights = {**self._resident, **slot.tensors}
            try:
                yield weights
            finally:
                weights.clear()  # whoever still has it keeps no copy alive while the buffer is filled again

    def weights(self, block: int, names: Sequence[str] = ()) -> Any:
        """See Held."""
        return self._block(block)

    def turn(self, everything: bool) -> None:
        """From now on all blocks follow one another, or those that write alone (see `_reading`)."""
        self._streamed = self._turns[0 if everything else 1]

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
        parts = self._read_rows(entry, wanted.tolist(), unit)
        matrix = rows_matrix(entry, 0, len(wanted) * unit, b"".join(parts))
        return matrix, (local.reshape(-1) * unit + tokens % unit).astype(np.int32)

    def _read_rows(self, entry: Any, wanted: list[int], unit: int) -> list[Any]:
        """The bytes of some groups of `unit` rows; those that were read last are kept, as texts and drafts
        repeat themselves."""
        kept = self._rows
        absent = [one for one in wanted if (entry.name, one) not in kept]
        spans = [row_span(entry, one * unit, min((one + 1) * unit, entry.shape[0])) for one in absent]
        file = self._files[entry.file]
        read = file.read_many([(entry.offset + start, count) for start, count in spans])
        for one, part in zip(absent, read, strict=True):
            kept[entry.name, one] = bytes(part)
            self._rows_nbytes += len(part)
        found = []
        for one in wanted:
            kept.move_to_end((entry.name, one))
            found.append(kept[entry.name, one])
        while len(kept) > len(wanted) and self._rows_nbytes > ROWS_KEPT:
            self._rows_nbytes -= len(kept.popitem(last=False)[1])
        return found

    def _read_tensor(self, entry: Any) -> Any:
        if isinstance(entry, Rearranged):
            return self._source.bytes(entry.name)
        return self._files[entry.file].read(entry.offset, entry.nbytes)

    def close(self) -> None:
        """End the reading thread and close the files."""
        atexit.unregister(self.close)
        if self._reader.close():
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
