"""One thread that reads, the most urgent first: what streams experts, planes or blocks asks it for.

A `Reading` is one thing to read. It waits in the queue until its turn comes and its `ready` says that there
is room for it; while it waits it may be made more urgent or be cancelled. Whoever needs it waits for it, but
never for long: when the storage completes nothing within `timeout_s`, the wait ends with an error that says
so.
"""

from __future__ import annotations

import threading
import time
from bisect import insort
from collections.abc import Callable
from typing import Any

from haversack.core.errors import UserError
from haversack.core.storage import ReadingStopped

WAITED_FOR, NEEDED, LIKELY = 0, 1, 2
"""Priorities: someone waits for it now; it will certainly be used; it will probably be (and anything above).
"""
TIMEOUT_S = 30.0
CLOSE_S = 5.0
"""How long closing waits for a read under way."""

QUEUED, UNDER_WAY, DONE, FAILED, CANCELLED = "queued", "under way", "done", "failed", "cancelled"


class Reading:
    """One thing to read.

    `read` runs in the reading thread. `ready`, asked under the reader's lock right before, may put it off
    until something changes (False). A `read` under way that looks at `stopping` can be called off by
    `Reader.stop`: it raises ReadingStopped then (core/storage.py).
    """

    __slots__ = ("_order", "error", "key", "priority", "read", "ready", "state", "stopping")

    def __init__(
        self,
        key: Any,
        priority: int,
        read: Callable[[], None],
        ready: Callable[[], bool] | None = None,
    ) -> None:
        self.key = key
        self.priority = priority
        self.read = read
        self.ready = ready
        self.state = QUEUED
        self.error: BaseException | None = None
        self.stopping = False
        self._order = 0

    def __lt__(self, other: Reading) -> bool:
        return (self.priority, self._order) < (other.priority, other._order)


class Reader:
    """The thread and its queue. `changed` is the lock of both; those who keep books about what is read may
    take it too (it is re-entrant) and must notify it when something that a `ready` looks at changes.

    The thread begins with the first reading. `busy_s` adds up the time it spent reading.
    """

    def __init__(self, timeout_s: float = TIMEOUT_S, name: str = "haversack-reader") -> None:
        if not timeout_s > 0:
            raise UserError(
                f"timeout_s={timeout_s} is no time to wait.",
                field="timeout_s",
                given=timeout_s,
                nearest=TIMEOUT_S,
            )
        self.timeout_s = timeout_s
        self.changed = threading.Condition()
        self.busy_s = 0.0
        self._name = name
        self._queue: list[Reading] = []
        self._count = 0
        self._moved = time.monotonic()  # when a read last began or ended
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, reading: Reading) -> Reading:
        """Put `reading` into the queue, behind those of its priority."""
        with self.changed:
            if self._closed:
                raise UserError("the storage is closed already; open the model again.", field="storage")
            self._count += 1
            reading._order = self._count
            insort(self._queue, reading)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            self.changed.notify_all()
        return reading

    def hurry(self, reading: Reading, priority: int) -> None:
        """Give a reading that still waits another priority; it goes behind those that have it."""
        with self.changed:
            if reading.state == QUEUED and reading.priority != priority:
                self._queue.remove(reading)
                reading.priority = priority
                self._count += 1
                reading._order = self._count
                insort(self._queue, reading)
                self.changed.notify_all()

    def cancel(self, reading: Reading) -> bool:
        """Take a reading out of the queue; False when it is under way or over."""
        with self.changed:
            if reading.state != QUEUED:
                return False
            self._queue.remove(reading)
            reading.state = CANCELLED
            self.changed.notify_all()
            return True

    def stop(self, reading: Reading) -> None:
        """Call a reading off, whether it waits or is under way; one that is over stays so."""
        with self.changed:
            if not self.cancel(reading):
                reading.stopping = True

    def wait(self, reading: Reading) -> None:
        """Wait until `reading` is over. Raises what its `read` raised, and UserError when the storage
        completes nothing for `timeout_s`.
        """
        with self.changed:
            began = time.monotonic()
            while reading.state in (QUEUED, UNDER_WAY):
                left = self.timeout_s - (time.monotonic() - max(began, self._moved))
                if left <= 0:
                    raise UserError(
                        f"the storage gave nothing for {self.timeout_s:g} s while {reading.key} was waited "
                        "for; check the device that holds the model.",
                        field="storage",
                        given=str(reading.key),
                    )
                self.changed.wait(left)
            if reading.error is not None:
                raise reading.error

    @property
    def waiting(self) -> int:
        """Readings in the queue."""
        with self.changed:
            return len(self._queue)

    def close(self) -> bool:
        """End the thread; what waits is cancelled. False when a read under way does not end in time: the
        thread ends with it, and what it reads into must live as long.
        """
        with self.changed:
            self._closed = True
            for reading in self._queue:
                reading.state = CANCELLED
            self._queue.clear()
            self.changed.notify_all()
            thread = self._thread
        if thread is None or thread is threading.current_thread():
            return True
        thread.join(min(CLOSE_S, self.timeout_s))
        return not thread.is_alive()

    def _next(self) -> Reading | None:
        """The most urgent reading that is ready, taken out of the queue."""
        for reading in tuple(self._queue):
            try:
                ready = reading.ready is None or reading.ready()
            except BaseException as error:  # our fault, but who waits must know
                self._queue.remove(reading)
                reading.error, reading.state = error, FAILED
                self.changed.notify_all()
                continue
            if ready:
                self._queue.remove(reading)
                reading.state = UNDER_WAY
                return reading
        return None

    def _run(self) -> None:
        while True:
            with self.changed:
                while (reading := None if self._closed else self._next()) is None:
                    if self._closed:
                        return
                    self.changed.wait()
                self._moved = began = time.monotonic()
            error: BaseException | None = None
            over = DONE
            try:
                reading.read()
            except ReadingStopped:
                over = CANCELLED
            except BaseException as raised:
                error, over = raised, FAILED
            with self.changed:
                self._moved = time.monotonic()
                self.busy_s += self._moved - began
                reading.error = error
                reading.state = over
                self.changed.notify_all()
