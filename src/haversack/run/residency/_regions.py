"""Memory that one process writes and another only reads: where restored weights live.

A region is anonymous shared memory (memfd). The process that made it keeps the only writable mapping there
will ever be: the kernel refuses new ones, and writes and changes of size by any other way
(F_SEAL_FUTURE_WRITE).
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os

from haversack.core.errors import UserError

_SEALS = 0x1 | 0x2 | 0x4 | 0x10  # no other seals, no shrinking, no growing, no more writers
_ADD_SEALS = 1033
_POPULATE_WRITE = 23
_PIECE = 2**20
PAGE = mmap.PAGESIZE


class Region:
    """`size` bytes that this process writes through `view`.

    `allocate` takes their memory from the system; `touch` maps a part here at once, instead of page by
    page, and `forget` unmaps it while its memory stays: what is restored then counts in the process that
    reads it alone.
    """

    def __init__(self, size: int) -> None:
        if not hasattr(os, "memfd_create"):
            raise UserError("sealed weights need Linux: shared memory that can be sealed.", field="residency")
        self.size = max(PAGE, -(-size // PAGE) * PAGE)
        self.descriptor = os.memfd_create("haversack", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.descriptor, self.size)
        self._memory = mmap.mmap(self.descriptor, self.size)
        fcntl.fcntl(self.descriptor, _ADD_SEALS, _SEALS)
        self.view = memoryview(self._memory)

    def allocate(self) -> None:
        """Take the memory."""
        os.posix_fallocate(self.descriptor, 0, self.size)

    def touch(self, start: int, count: int) -> None:
        """Map the pages of `count` bytes from `start`; older kernels do it at the first write."""
        with contextlib.suppress(OSError):
            self._advise(_POPULATE_WRITE, start, count)

    def forget(self, start: int, count: int) -> None:
        """Unmap them."""
        self._advise(mmap.MADV_DONTNEED, start, count)

    def _advise(self, advice: int, start: int, count: int) -> None:
        first = start // PAGE * PAGE
        self._memory.madvise(advice, first, min(self.size, start + count) - first)

    def wipe(self) -> None:
        """Overwrite what was restored."""
        zeros = bytes(_PIECE)
        for at in range(0, self.size, _PIECE):
            count = min(_PIECE, self.size - at)
            self.touch(at, count)
            self.view[at : at + count] = zeros[:count]
            self.forget(at, count)

    def close(self) -> None:
        """Give the memory back, once no other process maps it."""
        self.view.release()
        self._memory.close()
        os.close(self.descriptor)


def map_region(descriptor: int) -> memoryview:
    """A region that another process made, read-only; takes over `descriptor`."""
    try:
        size = os.fstat(descriptor).st_size
        return memoryview(mmap.mmap(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ))
    finally:
        os.close(descriptor)
