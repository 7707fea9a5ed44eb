"""A file that is written front to back with a CRC-32 for each MiB, and flushed and dropped from the page
cache as it grows.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING

from haversack.core._files import flush_data
from haversack.core._record import PIECE, FileEntry

if TYPE_CHECKING:
    from typing_extensions import Buffer

_FLUSH_EVERY = 16 * PIECE  # written bytes that may wait in the page cache


class SummedFile:
    """The file `path`, `start` bytes of which are left free for a header. `size` counts what follows them."""

    def __init__(self, path: Path, start: int) -> None:
        self.path = path
        self.size = 0
        self._start = start
        self._pieces: list[int] = []
        self._sum = 0
        self._file: IO[bytes] = path.open("w+b", buffering=0)
        self._file.seek(start)
        self._flushed = 0

    def write(self, chunk: Buffer) -> None:
        """Append the bytes of `chunk`."""
        view = memoryview(chunk)
        view = view.cast("B") if view.c_contiguous else memoryview(view.tobytes())
        while view.nbytes:
            room = PIECE - self.size % PIECE
            piece = view[:room]
            _write_all(self._file, piece)
            self._sum = zlib.crc32(piece, self._sum)
            self.size += piece.nbytes
            if self.size % PIECE == 0:
                self._pieces.append(self._sum)
                self._sum = 0
            view = view[room:]
            if self.size - self._flushed >= _FLUSH_EVERY:
                self._drop()

    def close(self, header: bytes) -> FileEntry:
        """Put `header` in front, flush, close; the file's entry."""
        if self.size % PIECE:
            self._pieces.append(self._sum)
        if len(header) > self._start:
            self._make_room(len(header))
        if header:
            self._file.seek(0)
            _write_all(self._file, memoryview(header))
        os.fsync(self._file.fileno())
        self._file.close()
        return FileEntry(self._start + self.size, self._start, zlib.crc32(header), tuple(self._pieces))

    def abandon(self) -> None:
        """Close the file as it is."""
        with contextlib.suppress(OSError):
            self._file.close()

    def _make_room(self, start: int) -> None:
        """Move the data to begin at `start`, the last piece first."""
        descriptor = self._file.fileno()
        end = self.size
        while end > 0:
            begin = max(0, end - PIECE)
            piece = os.pread(descriptor, end - begin, self._start + begin)
            self._file.seek(start + begin)
            _write_all(self._file, memoryview(piece))
            end = begin
        self._start = start

    def _drop(self) -> None:
        flush_data(self._file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self._flushed = self.size


def _write_all(file: IO[bytes], data: memoryview) -> None:
    while data.nbytes:
        data = data[file.write(data) :]
