"""A ledger counts what was spent: bytes sent and received, energy, money. Entries are added, never changed.

In memory, or in a file of one JSON line an entry, which several processes may share and which survives a
kill: a last line cut short is ignored and mended by the next write. An entry with a `key` counts once however
often it is added, so that work that is resumed is not charged twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from haversack.core._files import explain_write_errors, flush_data
from haversack.core.budget import Budget
from haversack.core.errors import DamagedFileError, UserError, not_allowed

COUNTERS = ("uplink_bytes", "downlink_bytes", "energy_mj", "cost_usd")


@dataclass(frozen=True)
class Entry:
    """`amount` of a counter of COUNTERS spent for `what` at `time` (seconds since 1970); `key` when it counts
    once."""

    counter: str
    amount: float
    what: str = ""
    key: str = ""
    time: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        if self.counter not in COUNTERS:
            raise not_allowed("counter", self.counter, COUNTERS)
        if not math.isfinite(self.amount) or self.amount < 0:
            raise UserError(
                f"{self.counter}={self.amount} cannot be spent; amounts are 0 or more.",
                field=self.counter,
                given=self.amount,
            )


class Ledger:
    """Counters with every entry behind them; `path` keeps them in a file, and threads and processes may share
    one.

    Raises DamagedFileError when a line of the file other than a last one cut short was altered, UserError
    when the file cannot be read or written.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = Path(path) if path is not None else None
        self._entries: list[Entry] = []
        self._totals = dict.fromkeys(COUNTERS, 0.0)
        self._keys: set[tuple[str, str]] = set()
        self._read_to = 0
        self._lock = threading.RLock()
        if self.path is not None and self.path.exists():
            with self._opened() as descriptor:
                self._read(descriptor)

    def add(self, counter: str, amount: float, what: str = "", key: str = "") -> bool:
        """Count `amount`; False when an entry of this counter and `key` is there already and nothing was
        counted.

        The entry is on the disk when this returns. Raises UserError for an unknown counter, an amount below
        0, a full disk.
        """
        return self._put(Entry(counter, amount, what, key), None)

    def spend(self, budget: Budget, counter: str, amount: float, what: str = "", key: str = "") -> bool:
        """Like `add`, but nothing is counted and BudgetError raised when the totals would then exceed
        `budget`.

        Looking and counting are one step, also among several processes.
        """
        return self._put(Entry(counter, amount, what, key), budget)

    def total(self, counter: str) -> float:
        """The sum of a counter, entries of other processes included."""
        if counter not in COUNTERS:
            raise not_allowed("counter", counter, COUNTERS)
        self._refresh()
        return self._totals[counter]

    def demand(self) -> dict[str, float]:
        """The totals as a `Budget` judges them: `uplink_kib`, `energy_mj`, `cost_usd`."""
        self._refresh()
        return _demand(self._totals)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Every entry in the order it was added."""
        self._refresh()
        return tuple(self._entries)

    def _put(self, entry: Entry, budget: Budget | None) -> bool:
        with self._lock:
            if self.path is None:
                return self._count(entry, budget)
            with explain_write_errors(self.path), self._opened() as descriptor:
                whole = self._read(descriptor)
                if not self._would_count(entry, budget):
                    return False
                os.ftruncate(descriptor, whole)
                _write_all(descriptor, whole, _line(entry))
                flush_data(descriptor)
                self._read(descriptor)
                return True

    def _would_count(self, entry: Entry, budget: Budget | None) -> bool:
        if entry.key and (entry.counter, entry.key) in self._keys:
            return False
        if budget is not None:
            after = {**self._totals, entry.counter: self._totals[entry.counter] + entry.amount}
            budget.require(_demand(after), entry.what or "this spending")
        return True

    def _count(self, entry: Entry, budget: Budget | None = None) -> bool:
        if not self._would_count(entry, budget):
            return False
        self._entries.append(entry)
        self._totals[entry.counter] += entry.amount
        if entry.key:
            self._keys.add((entry.counter, entry.key))
        return True

    def _refresh(self) -> None:
        if self.path is not None and self.path.exists():
            with self._lock, self._opened() as descriptor:
                self._read(descriptor)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        """The file, created when absent, locked among processes."""
        assert self.path is not None
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            said = f"{self.path} cannot be opened: {error.strerror}."
            raise UserError(said, field="ledger", given=str(self.path)) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    def _read(self, descriptor: int) -> int:
        """Count the lines that are new; returns where the whole lines end."""
        data = bytearray()
        while piece := os.pread(descriptor, 1 << 20, self._read_to + len(data)):
            data += piece
        end = data.rfind(b"\n") + 1
        for line in bytes(data[:end]).splitlines(keepends=True):
            self._count(self._entry(line))
            self._read_to += len(line)
        return self._read_to

    def _entry(self, line: bytes) -> Entry:
        try:
            text, _, checksum = line.rstrip(b"\n").rpartition(b" ")
            if zlib.crc32(text) != int(checksum, 16):
                raise ValueError("its checksum does not match")
            return Entry(**json.loads(text))
        except (ValueError, TypeError, RecursionError, UserError) as error:
            what = f"the entry at byte {self._read_to} was altered"
            raise DamagedFileError(self.path, what) from error


def _demand(totals: dict[str, float]) -> dict[str, float]:
    return {
        "uplink_kib": totals["uplink_bytes"] / 1024,
        "energy_mj": totals["energy_mj"],
        "cost_usd": totals["cost_usd"],
    }


def _line(entry: Entry) -> bytes:
    text = json.dumps(entry.__dict__, separators=(",", ":")).encode()
    return text + b" %08x\n" % zlib.crc32(text)


def _write_all(descriptor: int, offset: int, data: bytes) -> None:
    try:
        done = 0
        while done < len(data):
            done += os.pwrite(descriptor, data[done:], offset + done)
    except OSError:
        os.ftruncate(descriptor, offset)
        raise
