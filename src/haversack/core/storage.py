"""Storage read past the page cache, and storage slower than this machine's.

`DirectFile` reads ranges of a file with O_DIRECT, so that streamed weights cost only the buffer they are read
into; where a file system refuses that, it reads and drops. `SlowStorage` gives reads the bandwidth and
latency of another device, so that a fast machine shows how a board's card would do; `FailingStorage` stalls
or fails, so that whoever waits for it can be seen to end.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from haversack.core._pace import Pace
from haversack.core.device import Device
from haversack.core.errors import DamagedFileError, UserError

BLOCK = 4096
STEP = 2**17
"""Bytes after which a read can be called off."""
_MOST_AT_ONCE = 8 * 2**20
_AT_ONCE_S = 1e-3


class ReadingStopped(Exception):  # noqa: N818 - it is no error
    """A read was called off."""


class SlowStorage:
    """Reads at `mb_s` (10^6 bytes a second) after `latency_us` each. All files given the same object share
    it."""

    def __init__(self, mb_s: float, latency_us: float = 0.0) -> None:
        if not latency_us >= 0:
            raise UserError(f"latency_us={latency_us} is not a time.", field="latency_us", given=latency_us)
        self.latency_s = latency_us * 1e-6
        self._pace = Pace(mb_s * 1e6)
        self._due = self._woke = 0.0

    @classmethod
    def of(cls, device: Device, latency_us: float = 0.0) -> Self:
        """The storage of a device profile."""
        return cls(device.storage_mb_s, latency_us)

    def ready_at(self, count: int, now: float) -> float:
        """When a read of `count` bytes that is asked for at `now` has arrived."""
        return self._pace.reserve(count, now) + self.latency_s

    def wait(self, count: int, started: float) -> None:
        """Sleep until a read that began at `started` (time.monotonic) would have arrived.

        A sleep ends late, by more than a small read takes. A read that follows it at once counts as asked for
        when the one before was due, so that reads in a row keep the rate.
        """
        if started - self._woke < _AT_ONCE_S:
            started -= self._woke - self._due
        due = self._due = self._woke = self.ready_at(count, started)
        remaining = due - time.monotonic()
        if remaining > 0:
            time.sleep(remaining)
            self._woke = time.monotonic()


class FailingStorage(SlowStorage):
    """Storage that is sound for its first `sound` bytes. Every read after them returns an input/output error,
    or, with `stalls`, does not return before `release` is set.
    """

    def __init__(self, sound: int, *, stalls: bool = False, mb_s: float = 1e6) -> None:
        super().__init__(mb_s)
        self.release = threading.Event()
        self._left = sound
        self._stalls = stalls

    def wait(self, count: int, started: float) -> None:
        """See SlowStorage. Raises OSError where the read fails."""
        self._left -= count
        if self._left < 0:
            if not self._stalls:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            self.release.wait()
        super().wait(count, started)


class DirectFile:
    """Reads ranges of `path` past the page cache; a context manager, safe to use from several threads.

    `direct` says whether the file system took O_DIRECT; where not, what was read is dropped from the cache
    again. `bytes_read` counts what left the storage, alignment included. Raises UserError when the file
    cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str], storage: SlowStorage | None = None) -> None:
        self.path = Path(path)
        self.bytes_read = 0
        self._storage = storage
        self._counting = threading.Lock()
        try:
            self._descriptor, self.direct = _open(self.path)
        except OSError as error:
            raise UserError(
                f"{path} cannot be read: {error.strerror}.", field="path", given=str(path)
            ) from error
        self.size = os.fstat(self._descriptor).st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; reading afterwards fails."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def read(
        self,
        offset: int,
        count: int,
        buffer: mmap.mmap | None = None,
        going: Callable[[], bool] | None = None,
    ) -> memoryview:
        """`count` bytes from `offset`, as a view into `buffer` (made by `aligned_buffer`; reused, its
        contents change with the next read) or into memory of its own.

        With `going`, which is asked after each `STEP` bytes, a read can be called off. Raises
        DamagedFileError when the file ends before, UserError when the storage fails, ReadingStopped when
        `going` says False.
        """
        if count < 0 or offset < 0:
            raise ValueError("offset and count are not negative")
        first = offset // BLOCK * BLOCK
        span = -(-(offset + count - first) // BLOCK) * BLOCK
        if buffer is None:
            buffer = aligned_buffer(count)
        elif len(buffer) < span:
            raise ValueError(f"the buffer has {len(buffer)} bytes and this read takes {span}")
        view = memoryview(buffer)
        done, step = 0, _MOST_AT_ONCE if going is None else STEP
        while done < offset + count - first:
            started = time.monotonic()
            got = self._read_some(view[done : min(span, done + step)], first + done)
            if got == 0:
                raise DamagedFileError(self.path, f"it ends at byte {first + done}, before {offset + count}")
            done += got
            with self._counting:
                self.bytes_read += got
            if self._storage is not None:
                self._slow_down(-(-got // BLOCK) * BLOCK, started)
            if going is not None and not going():
                raise ReadingStopped
        if not self.direct and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, first, span, os.POSIX_FADV_DONTNEED)
        return view[offset - first : offset - first + count]

    def _slow_down(self, count: int, started: float) -> None:
        assert self._storage is not None
        try:
            self._storage.wait(count, started)
        except OSError as error:
            raise self._unreadable(error) from error

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        """Each (offset, count) of `ranges`, in memory of its own; neighbours that touch are read together."""
        found: dict[int, memoryview] = {}
        order = sorted(range(len(ranges)), key=lambda i: ranges[i])
        at = 0
        while at < len(order):
            begin, count = ranges[order[at]]
            end, run = begin + count, [order[at]]
            while at + len(run) < len(order):
                following = ranges[order[at + len(run)]]
                if following[0] > end + BLOCK:
                    break
                end = max(end, following[0] + following[1])
                run.append(order[at + len(run)])
            view = self.read(begin, end - begin)
            for index in run:
                start = ranges[index][0] - begin
                found[index] = view[start : start + ranges[index][1]]
            at += len(run)
        return [found[index] for index in range(len(ranges))]

    def _read_some(self, view: memoryview, offset: int) -> int:
        try:
            return os.preadv(self._descriptor, [view], offset)
        except OSError as error:
            if (
                self.direct and error.errno == errno.EINVAL
            ):  # opened with O_DIRECT, but reading needs the cache
                os.close(self._descriptor)
                self._descriptor, self.direct = os.open(self.path, os.O_RDONLY), False
                return os.preadv(self._descriptor, [view], offset)
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> UserError:
        return UserError(f"{self.path} cannot be read: {error.strerror}.", field="path", given=str(self.path))


def aligned_buffer(count: int) -> mmap.mmap:
    """Memory for `DirectFile.read` of up to `count` bytes at any offset: page-aligned, not touched before it
    is used."""
    size = max(1, -(-count // BLOCK) + 1) * BLOCK
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared pages cost more to touch


def _open(path: Path) -> tuple[int, bool]:
    if hasattr(os, "O_DIRECT"):
        try:
            return os.open(path, os.O_RDONLY | os.O_DIRECT), True
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
    return os.open(path, os.O_RDONLY), False
