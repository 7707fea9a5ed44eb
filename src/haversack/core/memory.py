"""Memory, counted the same way everywhere: what a job holds at its peak, planned and measured.

The peak is the sum of `VmHWM` over a process and every process it started, plus the pages of the given files
that sit in the page cache without being mapped by them (a file read with `read` costs memory too, a mapped
one is in VmHWM already). `ru_maxrss` is not used: a child inherits its parent's figure at exec, so a small
program started by a large one would report the large one's peak. A child that still runs in its parent's
memory (between vfork and exec) counts for nothing; pages that forked processes share count once for each,
which errs upwards.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from haversack.core._cgroup import MemoryGroup
from haversack.core.errors import UserError

PAGE = mmap.PAGESIZE
MIB = 2**20
POLL_S = 0.005
STEP = 2 * MIB  # growth after which the page cache is looked at again, however busy the machine
_PRESENT = bytes(128) + b"\x01" * 128  # pagemap: the highest bit of an entry says that the page is mapped
_RESIDENT = bytes([0, 1] * 128)  # mincore: the lowest bit says that the page is in the cache
_KCMP = {"x86_64": 312, "aarch64": 272}.get(os.uname().machine)  # number of the system call
_KCMP_MEMORY = 1


@dataclass(frozen=True)
class MemoryPlan:
    """What a job will hold: `lines` of (label, bytes), printed the same way by every command."""

    lines: tuple[tuple[str, int], ...]

    @property
    def total_bytes(self) -> int:
        """The sum of all lines."""
        return sum(count for _, count in self.lines)

    @property
    def total_mib(self) -> float:
        """The sum of all lines in MiB."""
        return self.total_bytes / MIB

    def __add__(self, other: MemoryPlan) -> MemoryPlan:
        return MemoryPlan(self.lines + other.lines)

    def record(self) -> dict[str, Any]:
        """As `--json` prints it, in MiB."""
        return {
            "total_mib": round(self.total_mib, 2),
            "lines": {label: round(count / MIB, 2) for label, count in self.lines},
        }

    def text(self, measured_mib: float | None = None) -> str:
        """A table of the lines, their sum, and beside it what was measured."""
        width = max((len(label) for label, _ in self.lines), default=0)
        width = max(width, len("measured"))
        rows = [f"  {label:<{width}} {count / MIB:>9.1f} MiB" for label, count in self.lines]
        rows.append(f"  {'planned':<{width}} {self.total_mib:>9.1f} MiB")
        if measured_mib is not None:
            rows.append(f"  {'measured':<{width}} {measured_mib:>9.1f} MiB")
        return "\n".join(rows)

    def __str__(self) -> str:
        return self.text()


@dataclass(frozen=True)
class MeasuredRun:
    """A command that ran to its end: `returncode` (negative: the signal that ended it), its output as text,
    wall `seconds` and the peak memory of it and its children."""

    returncode: int
    stdout: str
    stderr: str
    seconds: float
    peak_mib: float


class MemoryWatch:
    """Watches a process tree from a thread, so that children that end before anyone asks are counted.

    `process`: the root's id (default: this process). `files`: whose unmapped cached pages count. A context
    manager; `peak_mib` may be read at any time. Samples every 5 ms: VmHWM never falls, so only growth in a
    child's last 5 ms or a child that lives less can be missed.
    """

    def __init__(self, process: int | None = None, files: Iterable[os.PathLike[str] | str] = ()) -> None:
        self._root = process or os.getpid()
        self._files = tuple(Path(file) for file in files)
        self._highest: dict[tuple[int, str], int] = {}
        self._mapped: dict[
            int, tuple[int, int]
        ] = {}  # pages mapped at the last sample, and when VmHWM last grew
        self._grown = False
        self._looked_at = 0  # bytes of VmHWM when the page cache was last looked at
        self._peak = 0
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="haversack-memory", daemon=True)

    def __enter__(self) -> Self:
        self.sample()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.sample()

    @property
    def peak_mib(self) -> float:
        """The peak so far, in MiB."""
        self.sample()
        return self._peak / MIB

    def sample(self, *, files: bool = True) -> bool:
        """Take one sample; False when the root has no memory any more (it ended)."""
        with self._lock:
            tree = _tree(self._root, {key[0]: key[1] for key in self._highest})
            alive = False
            for key, parent in tree.items():
                if key not in self._highest and key[0] != self._root and _same_memory(key[0], parent):
                    continue  # until it runs a program of its own
                high = _high_water(key[0])
                if high is not None:
                    self._grown = self._grown or high > self._highest.get(key, 0)
                    self._highest[key] = max(high, self._highest.get(key, 0))
                    alive = alive or key[0] == self._root
            total = sum(self._highest.values())
            # What is mapped and unmapped again between two looks would count twice: in VmHWM and as cached.
            if alive and (files or total >= self._looked_at + STEP):
                self._looked_at = total
                # After VmHWM: a page that is mapped meanwhile must not count in both.
                processes = [pid for pid, _ in tree]
                pages = [_pages(file, processes) for file in self._files]
                if _high_water(self._root) is not None:  # the pages of one that just ended look unmapped
                    total += PAGE * sum(self._unmapped(i, *states) for i, states in enumerate(pages))
                    self._grown = False
            self._peak = max(self._peak, total)
            return alive

    def _unmapped(self, index: int, cached: int, mapped: int) -> int:
        """Cached pages of a file that VmHWM does not hold: neither mapped now nor when VmHWM last grew, as
        far as samples tell."""
        before, held = self._mapped.get(index, (0, 0))
        if self._grown:
            held = before | mapped
        self._mapped[index] = (mapped, held)
        return (cached & ~(mapped | held)).bit_count()

    def _watch(self) -> None:
        files_again = 0.0
        while not self._ended.wait(POLL_S):
            files = bool(self._files) and time.monotonic() >= files_again
            before = time.thread_time()
            if not self.sample(files=files):
                return
            if files:
                files_again = time.monotonic() + 20 * (time.thread_time() - before)


def peak_mib(files: Iterable[os.PathLike[str] | str] = ()) -> float:
    """Peak memory of this process and its living children so far, plus unmapped cached pages of `files`, in
    MiB.

    Children that have ended are counted only under a `MemoryWatch`. On systems without /proc: this process
    alone.
    """
    if not Path("/proc/self/status").exists():
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return used / (MIB if sys.platform == "darwin" else 1024)
    watch = MemoryWatch(files=files)
    return watch.peak_mib


def reset_peak() -> bool:
    """Make VmHWM of this process start again from what it holds now; False where the system does not allow
    it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def give_back_freed() -> None:
    """Give freed memory back to the system, which the C library may put off (no-op where it cannot)."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def run_measured(
    argv: Sequence[str | os.PathLike[str]],
    *,
    files: Iterable[os.PathLike[str] | str] = (),
    env: Mapping[str, str] | None = None,
    cwd: os.PathLike[str] | str | None = None,
    stdin: str | None = None,
    timeout: float | None = None,
    limit_mib: float | None = None,
) -> MeasuredRun:
    """Run a command in a fresh process and measure it from outside.

    `files` are those whose unmapped cached pages count (call `drop_cached` first where only what the run
    itself reads should). `env` is added to this process's environment. `limit_mib` runs it in a memory
    control group that the kernel enforces (the command is killed when it cannot stay below). Raises UserError
    when the command cannot be started, takes longer than `timeout` seconds (it is killed) or the limit is not
    available on this machine.
    """
    words = [os.fspath(word) for word in argv]
    group = MemoryGroup(limit_mib) if limit_mib is not None else None
    started = time.perf_counter()
    try:
        try:
            process = subprocess.Popen(
                group.join(words) if group else words,
                stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, **(env or {})},
                cwd=cwd,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            raise UserError(
                f"{words[0]} cannot be started: {error.strerror}.", field="command", given=words[0]
            ) from error
        with MemoryWatch(process.pid, files) as watch:
            try:
                stdout, stderr = process.communicate(stdin, timeout=timeout)
            except BaseException as error:
                os.killpg(process.pid, 9)
                process.communicate()
                if isinstance(error, subprocess.TimeoutExpired):
                    said = f"{words[0]} took longer than {timeout:g} s."
                    raise UserError(said, field="timeout", given=timeout) from error
                raise
        return MeasuredRun(
            process.returncode, stdout, stderr, time.perf_counter() - started, watch._peak / MIB
        )
    finally:
        if group is not None:
            group.remove()


def cached_mib(file: os.PathLike[str] | str) -> float:
    """How much of a file is in the page cache, mapped or not, in MiB."""
    path = Path(file)
    return int.from_bytes(_cached_pages(path), "little").bit_count() * PAGE / MIB if path.exists() else 0.0


def drop_cached(files: Iterable[os.PathLike[str] | str]) -> None:
    """Drop the files' pages from the page cache, as far as nobody maps them; written pages are flushed
    first."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _tree(root: int, known: Mapping[int, str]) -> dict[tuple[int, str], int]:
    """(id, start time) of `root` and all its descendants, and of `known` processes that lost their parent;
    for each the id of its parent."""
    found: dict[int, tuple[str, int]] = {}
    waiting = [root, *known]
    while waiting:
        pid = waiting.pop()
        if pid in found:
            continue
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if known.get(pid, fields[19]) != fields[19]:
            continue  # the id was given to another process
        found[pid] = fields[19], int(fields[1])
        waiting += _children(pid)
    return {(pid, started): parent for pid, (started, parent) in found.items()}


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    except OSError:  # a task ended, or a kernel without this file
        if found or Path("/proc/self/task").joinpath(str(os.getpid()), "children").exists():
            return found
        return [child for child, parent in _parents().items() if parent == pid]
    return found


def _parents() -> dict[int, int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    return parents


def _same_memory(pid: int, other: int) -> bool:
    """True when two processes share one address space; False also where the system does not say."""
    if _KCMP is None or sys.platform != "linux":
        return False
    return bool(ctypes.CDLL(None).syscall(_KCMP, pid, other, _KCMP_MEMORY, 0, 0) == 0)


def _high_water(pid: int) -> int | None:
    """VmHWM in bytes; None for a process that ended."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _pages(file: Path, processes: Iterable[int]) -> tuple[int, int]:
    """The pages of `file` in the page cache, and those that `processes` map: numbers with byte i = 1 for page
    i."""
    try:
        cached = _cached_pages(file)
        identity = file.stat()
    except OSError:
        return 0, 0
    mapped = 0
    for pid in processes:
        mapped |= _mapped_pages(pid, identity, len(cached))
    return int.from_bytes(cached, "little"), mapped


def _cached_pages(file: Path) -> bytes:
    """One byte a page of the file: 1 when it is in the page cache."""
    with file.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        pages = math.ceil(size / PAGE)
        if not pages:
            return b""
        with mmap.mmap(opened.fileno(), size, access=mmap.ACCESS_COPY) as view:  # mapped, never touched
            first = ctypes.c_char.from_buffer(view)
            states = ctypes.create_string_buffer(pages)
            failed = ctypes.CDLL(None, use_errno=True).mincore(
                ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(size), states
            )
            del first
        return b"" if failed else states.raw.translate(_RESIDENT)


def _mapped_pages(pid: int, identity: os.stat_result, pages: int) -> int:
    """The pages of a file that a process maps, as a number with byte i = 1 for page i."""
    flags = bytearray(pages)
    try:
        with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/pagemap").open("rb", 0) as pagemap:
            for line in maps:
                fields = line.split(None, 5)
                if len(fields) < 6 or int(fields[4]) != identity.st_ino:
                    continue
                begin, end = (int(part, 16) for part in fields[0].split("-"))
                first = int(fields[2], 16) // PAGE
                pagemap.seek(begin // PAGE * 8)
                entries = pagemap.read((end - begin) // PAGE * 8)
                present = entries[7::8].translate(_PRESENT)
                last = min(pages, first + len(present))
                either = int.from_bytes(flags[first:last], "little") | int.from_bytes(
                    present[: last - first], "little"
                )
                flags[first:last] = either.to_bytes(last - first, "little")
    except (OSError, OverflowError):
        return int.from_bytes(flags, "little")
    return int.from_bytes(flags, "little")
