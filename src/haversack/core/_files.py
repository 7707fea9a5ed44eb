"""Files that are whole or absent: the user's folders, atomic replacement, exchange of folders, full disks
worded.

A write goes to `NAME.partial-PID-RANDOM` beside its goal, is flushed to the device and then takes the goal's
name in one step. A process killed on the way leaves only a partial, which the next write of the same goal
removes once its process is gone.
"""

from __future__ import annotations

import binascii
import contextlib
import ctypes
import errno
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

from haversack.core.errors import UserError

_PARTIAL = ".partial-"
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


def data_folder() -> Path:
    """Where a user's own device profiles and the like live (`$XDG_DATA_HOME/haversack`); not created."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "haversack"


def cache_folder() -> Path:
    """What can be made again at any time (`$HAVERSACK_CACHE`, else `$XDG_CACHE_HOME/haversack`);
    not created."""
    if named := os.environ.get("HAVERSACK_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "haversack"


def fingerprint(text: str) -> str:
    """Some twenty hex digits that change when `text` does; for names in caches, not against forgery.

    Without hashlib: it loads OpenSSL, which is megabytes of a small device's memory.
    """
    data = text.encode()
    return f"{binascii.crc32(data):08x}{zlib.adler32(data):08x}{len(data):x}"


def partial_path(goal: Path) -> Path:
    """A fresh name beside `goal` for what is being written; it holds this process's id."""
    return goal.with_name(f"{goal.name}{_PARTIAL}{os.getpid()}-{os.urandom(4).hex()}")


def remove_stale_partials(goal: Path) -> list[Path]:
    """Remove partials of `goal` whose writer is no longer alive; returns what was removed."""
    removed = []
    with contextlib.suppress(OSError):
        for path in list(goal.parent.iterdir()):
            if not path.name.startswith(goal.name + _PARTIAL):
                continue
            process = path.name[len(goal.name + _PARTIAL) :].partition("-")[0]
            if process.isdigit() and not _alive(int(process)):
                remove(path)
                removed.append(path)
    return removed


def remove(path: Path) -> None:
    """Remove a file or a folder with all it holds; an absent one is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def flush_data(descriptor: int) -> None:
    """Make a file's data durable, and of its properties only what reading it back needs."""
    getattr(os, "fdatasync", os.fsync)(descriptor)


def flush_folder(path: Path) -> None:
    """Make a folder's entries durable (fsync of the folder); file systems that cannot are left alone."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def put_in_place(partial: Path, goal: Path) -> None:
    """Give `partial` (file or folder, already flushed) the name `goal`, in one step where the system can.

    A file replaces a file by rename. A folder takes a free name by rename and is exchanged with an existing
    folder (renameat2 with RENAME_EXCHANGE); what was there before is removed afterwards. Where the file
    system cannot exchange, the old folder steps aside under a partial name first, and returns if the second
    rename fails.
    """
    if partial.is_dir() and os.path.lexists(goal):
        if _exchange(partial, goal):
            flush_folder(goal.parent)
            remove(partial)
            return
        aside = partial_path(goal)
        goal.rename(aside)
        try:
            partial.rename(goal)
        except BaseException:
            aside.rename(goal)
            raise
        flush_folder(goal.parent)
        remove(aside)
        return
    partial.replace(goal)
    flush_folder(goal.parent)


def write_atomically(goal: Path, data: bytes) -> None:
    """Replace the file `goal` by `data`: after a kill or a full disk the old file or the new one is there,
    whole.

    Raises UserError when the disk is full or the folder cannot be written.
    """
    with explain_write_errors(goal):
        remove_stale_partials(goal)
        partial = partial_path(goal)
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            put_in_place(partial, goal)
        except BaseException:
            remove(partial)
            raise


@contextlib.contextmanager
def explain_write_errors(goal: Path) -> Iterator[None]:
    """Turn a full disk, a read-only folder and the like into a UserError with one sentence on `goal`."""
    try:
        yield
    except OSError as error:
        raise write_error(goal, error) from error


def write_error(goal: Path, error: OSError) -> UserError:
    """The UserError for a failed write of `goal`."""
    reasons = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
        errno.EFBIG: "the file would be larger than this process may write",
        errno.EACCES: "you may not write there",
        errno.EPERM: "you may not write there",
        errno.EROFS: "the file system is read-only",
        errno.ENOENT: f"the folder {goal.parent} does not exist",
        errno.ENOTDIR: f"{goal.parent} is not a folder",
        errno.ENAMETOOLONG: "the name is too long",
    }
    reason = reasons.get(error.errno or 0, error.strerror or str(error))
    advice = ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(goal.parent).free / 2**20
            advice = f" ({free:.1f} MiB are free); free some space or choose another -o"
    return UserError(f"{goal} cannot be written: {reason}{advice}.", field="output", given=str(goal))


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    with contextlib.suppress(OSError, IndexError):  # a zombie writes no more
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system or the file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))
