"""Which files were found whole before, so that mapped weights are summed once and not at every start.

A marker in the user's cache names a file by path, inode, size and time of change, and the checksums it had.
Losing or failing to write markers costs only the time of summing again.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from haversack.core._files import cache_folder, fingerprint, write_atomically
from haversack.core._record import FileEntry
from haversack.core.errors import UserError

_MOST = 1000  # markers kept; beyond it the older half goes


def is_verified(path: Path, entry: FileEntry) -> bool:
    """True when this very file was summed before and found as `entry` says."""
    try:
        return _marker(path).read_text() == _identity(path, entry)
    except (OSError, UnicodeDecodeError):
        return False


def mark_verified(path: Path, entry: FileEntry) -> None:
    """Remember that `path` holds what `entry` says; a cache that cannot be written is no error."""
    with contextlib.suppress(OSError, UserError):
        marker = _marker(path)
        marker.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(marker, _identity(path, entry).encode())
        _drop_oldest(marker.parent)


def forget_verified(path: Path) -> None:
    """Remove the marker of a file that was found damaged."""
    with contextlib.suppress(OSError):
        _marker(path).unlink()


def _drop_oldest(folder: Path) -> None:
    """Keep the number of markers bounded."""
    markers = list(folder.iterdir())
    if len(markers) > _MOST:
        markers.sort(key=lambda marker: marker.stat().st_mtime_ns)
        for marker in markers[: len(markers) - _MOST // 2]:
            marker.unlink(missing_ok=True)


def _marker(path: Path) -> Path:
    return cache_folder() / "verified" / fingerprint(str(path.resolve()))


def _identity(path: Path, entry: FileEntry) -> str:
    found = path.stat()
    sums = fingerprint(repr((entry.start, entry.head, entry.pieces)))
    said = {
        "inode": found.st_ino,
        "device": found.st_dev,
        "size": found.st_size,
        "changed": found.st_mtime_ns,
    }
    return json.dumps({**said, "sums": sums})
