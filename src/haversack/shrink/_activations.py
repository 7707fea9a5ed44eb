"""Hidden states of calibration text between two blocks, in memory while they fit and on disk when they do
not.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from haversack.core._files import explain_write_errors
from haversack.shrink._rounding import F32

IN_MEMORY_MIB = 256
LARGEST_F16 = 6e4


class Activations:
    """`count` pieces f32 [length, width] that are read and replaced one at a time; a context manager.

    Kept as f32 when all fit in `limit_mib`, as f16 when that fits and they need not be `exact`, else in an
    unnamed file in `folder` whose pages leave memory after each piece.
    """

    def __init__(
        self,
        count: int,
        length: int,
        width: int,
        folder: Path,
        limit_mib: float = IN_MEMORY_MIB,
        *,
        exact: bool = False,
    ) -> None:
        self.shape = (count, length, width)
        limit = limit_mib * 2**20
        numbers = count * length * width
        self.kind = "f32" if numbers * 4 <= limit else "f16" if numbers * 2 <= limit and not exact else "disk"
        self._folder = folder
        self._file: Any = None
        self._memory: Any = None
        if self.kind == "disk":
            self._open_file()
        else:
            self._memory = np.empty(self.shape, np.float32 if self.kind == "f32" else np.float16)

    def __len__(self) -> int:
        return self.shape[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._memory = None
        if self._file is not None:
            self._file.close()
            self._file = None

    def read(self, index: int) -> F32:
        """Piece `index`, f32 [length, width]; a view or a copy, not to be written to."""
        if self._memory is not None:
            return np.asarray(self._memory[index], np.float32)
        data = os.pread(self._file.fileno(), self._piece_bytes, index * self._piece_bytes)
        self._drop(index)
        return np.frombuffer(data, np.float32).reshape(self.shape[1:])

    def write(self, index: int, piece: F32) -> None:
        """Replace piece `index`; one that is shorter replaces its beginning.

        Values beyond f16's range move everything to the file: nothing is clipped.
        """
        if self.kind == "f16" and float(np.abs(piece).max(initial=0.0)) > LARGEST_F16:
            self._spill()
        if self._memory is not None:
            self._memory[index, : len(piece)] = piece
            return
        with explain_write_errors(self._folder):
            os.pwrite(
                self._file.fileno(),
                np.ascontiguousarray(piece, np.float32).tobytes(),
                index * self._piece_bytes,
            )
        self._drop(index)

    @property
    def _piece_bytes(self) -> int:
        return self.shape[1] * self.shape[2] * 4

    def _open_file(self) -> None:
        with explain_write_errors(self._folder):
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 - __exit__ closes it
            self._file.truncate(self.shape[0] * self._piece_bytes)

    def _spill(self) -> None:
        kept, self._memory, self.kind = self._memory, None, "disk"
        self._open_file()
        for index, piece in enumerate(kept):
            self.write(index, piece.astype(np.float32))

    def _drop(self, index: int) -> None:
        """Take the piece out of the page cache, which counts as memory."""
        with contextlib.suppress(AttributeError, OSError):
            os.fdatasync(self._file.fileno())
            os.posix_fadvise(
                self._file.fileno(), index * self._piece_bytes, self._piece_bytes, os.POSIX_FADV_DONTNEED
            )
