"""Copied weights: read once into memory in 2 MiB pages, which the processor reads faster than a mapped file.

Paper: none.
What is here: each file's tensors lie in one anonymous mapping with huge pages advised; they are read in
pieces of at most 8 MiB, and each piece leaves the page cache before the next is read, so that copy and file
are never resident together.
Cost: the time of one copy at load; a later start reads from storage again.
"""

from __future__ import annotations

import mmap
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from haversack.core.errors import DamagedFileError
from haversack.core.method import Method
from haversack.core.pack import TensorEntry, TensorSource
from haversack.models._architecture import Architecture
from haversack.models._checkpoint import Turned
from haversack.models._rearranged import Piece, RearrangingSource
from haversack.run._forms import stored_names
from haversack.run._residency import AllHeld, Lines

PIECE = 8 * 2**20
HUGE = 2 * 2**20
PAGE = 4096
GAP = 64 * 1024
"""Tensors closer than this are copied together, with what lies between."""
LINE = 64
"""Tensors put in order begin at a multiple of this."""


@dataclass(frozen=True)
class Copied(Method):
    name = "copied"
    stage = "run"
    slot = "residency"
    paper = "-"
    summary = "Weights copied once into huge pages; faster, and the file's pages are dropped."
    provides = frozenset({"blocks-at-hand"})
    excludes = frozenset({"sealed-weights"})

    def planned(
        self, blocks: Sequence[int], top: int, files: int = 1, limit: int | None = None, aside: int = 0
    ) -> Lines:
        """All weights, the rest of each file's last huge page, and the pieces on their way."""
        weights = sum(blocks) + top
        return (("weights, copied", weights + files * HUGE + min(2 * PIECE, weights)),)

    def open(self, source: TensorSource, architecture: Architecture, limit: int | None = None) -> AllHeld:
        """Copy every tensor that the architecture uses; one that is turned over is copied by that."""
        entries = [source.tensors[name] for name in stored_names(source, architecture.tensors())]
        if isinstance(source, RearrangingSource):
            ordered = in_order(source, entries)
            return AllHeld(source, architecture, lambda entry: ordered[entry.name])
        entries = [entry for entry in entries if not isinstance(entry, Turned)]
        paths = {path.name: path for path in source.files}
        copies = {file: Copy(paths[file], [e for e in entries if e.file == file]) for file in paths}

        def data(entry: TensorEntry) -> Any:
            turned = isinstance(entry, Turned)
            return source.bytes(entry.name) if turned else copies[entry.file].bytes(entry)

        return AllHeld(source, architecture, data)


def in_order(source: RearrangingSource, entries: list[TensorEntry]) -> dict[str, memoryview]:
    """Tensors that are put in order while they are read, one after the other in huge pages.

    What lies together in the file is read together, in the file's order, each PIECE while the one before is
    put in order: two are held.
    """
    view = huge_pages(sum(-(-entry.nbytes // LINE) * LINE for entry in entries))
    found: dict[str, memoryview] = {}
    pieces: list[Piece] = []
    at = 0
    for entry in entries:
        found[entry.name] = view[at : at + entry.nbytes]
        pieces += source.pieces(entry.name, found[entry.name])
        at += -(-entry.nbytes // LINE) * LINE
    groups = together(pieces)
    with source.reader() as read:
        for group, data in zip(groups, _ahead(read, groups), strict=True):
            whole = memoryview(data)
            for piece in group:
                start = piece.offset - group[0].offset
                piece.put(whole[start : start + piece.count])
    return found


def together(pieces: list[Piece]) -> list[list[Piece]]:
    """`pieces` in order of their place, in groups that lie within PIECE bytes without a gap of GAP."""
    groups: list[list[Piece]] = []
    stop = 0
    for piece in sorted(pieces, key=lambda piece: piece.offset):
        last = groups[-1] if groups else None
        end = piece.offset + piece.count
        if last is not None and piece.offset - stop <= GAP and end - last[0].offset <= PIECE:
            last.append(piece)
        else:
            groups.append([piece])
        stop = end
    return groups


def _ahead(read: Callable[[int, int], Any], groups: Sequence[list[Piece]]) -> Iterator[Any]:
    """The bytes of each group; a thread reads the next while this one's are in use."""
    asked: queue.SimpleQueue[list[Piece] | None] = queue.SimpleQueue()
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def answer() -> None:
        while (group := asked.get()) is not None:
            start, last = group[0].offset, group[-1]
            try:
                answers.put(read(start, last.offset + last.count - start))
            except Exception as error:
                answers.put(error)

    thread = threading.Thread(target=answer, name="haversack-copy", daemon=True)
    thread.start()
    try:
        for group in groups[:1]:
            asked.put(group)
        for following in (*groups[1:], None)[: len(groups)]:
            data = answers.get()
            if isinstance(data, Exception):
                raise data
            if following is not None:
                asked.put(following)
            yield data
    finally:
        asked.put(None)
        thread.join()


def huge_pages(size: int) -> memoryview:
    """`size` bytes of anonymous memory that begins at a huge page."""
    # Private: memory that can be shared with a child gets no huge pages.
    memory = mmap.mmap(-1, size + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(memory, "madvise") and hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    address = np.frombuffer(memory, np.uint8, count=1).ctypes.data
    return memoryview(memory)[-address % HUGE :][:size]


class Copy:
    """The parts of the file `path` that hold `entries`, in huge pages."""

    def __init__(self, path: Path, entries: list[TensorEntry]) -> None:
        self.path = path
        self.places: dict[int, int] = {}
        """Where a tensor at an offset of the file is in memory."""
        self._pieces: list[tuple[int, int, int]] = []
        """(offset in the file, place in memory, bytes) of what is read at once."""
        self.size = 0
        for span in _spans(entries):
            start = span[0].offset // PAGE * PAGE
            stop = span[-1].offset + span[-1].nbytes
            self.places.update((entry.offset, self.size + entry.offset - start) for entry in span)
            for at in range(start, stop, PIECE):
                self._pieces.append((at, self.size + at - start, min(PIECE, stop - at)))
            self.size += -(-(stop - start) // PAGE) * PAGE
        self.view = huge_pages(self.size)
        self._read_all()

    def bytes(self, entry: TensorEntry) -> Any:
        """The copied bytes of a tensor."""
        place = self.places[entry.offset]
        return self.view[place : place + entry.nbytes]

    def _read_all(self) -> None:
        """Two threads, each over every second piece: one copies while the other drops or waits."""
        descriptor = os.open(self.path, os.O_RDONLY)
        failures: list[Exception] = []
        try:
            others = threading.Thread(target=self._read_every, args=(descriptor, 1, failures))
            others.start()
            self._read_every(descriptor, 0, failures)
            others.join()
            if hasattr(os, "posix_fadvise"):  # what was read ahead, and pages across the pieces' ends
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
        if failures:
            raise failures[0]

    def _read_every(self, descriptor: int, first: int, failures: list[Exception]) -> None:
        try:
            for at, place, count in self._pieces[first::2]:
                done = 0
                while done < count:
                    got = os.preadv(descriptor, [self.view[place + done : place + count]], at + done)
                    if got == 0:
                        raise DamagedFileError(self.path, f"it ends at byte {at + done}")
                    done += got
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(descriptor, at, count, os.POSIX_FADV_DONTNEED)
        except Exception as error:
            failures.append(error)


def _spans(entries: list[TensorEntry]) -> list[list[TensorEntry]]:
    """`entries` in order of their place, in groups between which the file holds more than `GAP` else."""
    spans: list[list[TensorEntry]] = []
    for entry in sorted(entries, key=lambda entry: entry.offset):
        last = spans[-1][-1] if spans else None
        if last is not None and entry.offset - last.offset - last.nbytes <= GAP:
            spans[-1].append(entry)
        else:
            spans.append([entry])
    return spans
