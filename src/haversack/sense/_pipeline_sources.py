"""Where a sense's units come from: a recording played by the clock, or a stream of raw bytes.

Raw bytes need no driver of ours: what a camera or a microphone writes to a pipe or a named pipe, frames u8
row by row, samples s16 little endian. A thread reads them and stamps each unit when its last byte is
there."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError
from haversack.models.streams._record import Sense
from haversack.sense._pipeline_clock import FrameClock, wrong_rate

BLOCK_S = 0.01
"""Samples are read in blocks of so long."""
STALL_S = 0.25
"""A stream that is silent for so long beyond a unit's time has stopped."""
SLACK = 3
"""Periods that a frame may be early or late on its way through a pipe."""
BURST_S = 0.2
"""A sound card may hand over so much at once."""
Wait = Callable[[float], bool]
"""Waits until a moment of the clock or until something has come; True when the moment is there."""


class Replay:
    """A window of a recording; units become visible at their times after `begin`."""

    live = False

    def __init__(self, sense: Sense, data: NDArray[Any], missing: frozenset[int] = frozenset()) -> None:
        self.sense, self.data, self.missing = sense, data, missing
        self.warnings: list[str] = []
        self._t0 = 0.0

    def begin(self, t0: float) -> None:
        """The window begins at second `t0` of the clock."""
        self._t0 = t0

    def take(self, start: int, end: int, wait: Wait) -> tuple[NDArray[Any] | None, float] | None:
        """Units `start` to `end` (one frame; samples) and when they were there; (None, time) for a missing
        frame; None where the sense has stopped. `wait` may be left early, then again."""
        at = self._t0 + end / self.sense.rate
        while not wait(at):
            pass
        if start >= len(self.data):
            return None
        if self.sense.kind == "frames":
            return (None if start in self.missing else self.data[start]), at
        return self.data[start:end], at

    def close(self) -> None:
        """Nothing is open."""


class Stream:
    """A stream of raw bytes. Units that came before a window's begin are dropped."""

    live = True

    def __init__(self, path: str, sense: Sense, wake: Callable[[], None]) -> None:
        self.sense, self.path = sense, Path(path)
        self.warnings: list[str] = []
        self._wake = wake
        self._units: deque[tuple[float, NDArray[Any]]] = deque()
        self._lock = threading.Lock()
        self.ended = False
        self.problem = ""
        self._closed = False
        self._frames: dict[int, tuple[NDArray[Any], float]] = {}
        self._sound = np.zeros(sense.length, np.float32)
        self._heard, self._heard_at = 0, 0.0
        self._t0 = 0.0
        self._clock = FrameClock(sense, "drop", SLACK)
        threading.Thread(target=self._read, name=f"haversack-{sense.name}", daemon=True).start()

    def _read(self) -> None:
        frames = self.sense.kind == "frames"
        count = int(np.prod(self.sense.shape)) if frames else round(self.sense.rate * BLOCK_S)
        size = count if frames else 2 * count
        try:
            with self.path.open("rb", buffering=0) as file:
                while not self._closed:
                    data = _exactly(file.fileno(), size)
                    if data is None:
                        break
                    if frames:
                        unit: NDArray[Any] = np.frombuffer(data, np.uint8).reshape(self.sense.shape)
                    else:
                        unit = np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768)
                    with self._lock:
                        self._units.append((time.monotonic(), unit))
                        while len(self._units) > 4 * max(1, self.sense.length // (1 if frames else count)):
                            self._units.popleft()
                    self._wake()
        except OSError as error:
            self.problem = f"{self.path}: {error.strerror}"
        self.ended = True
        self._wake()

    def begin(self, t0: float) -> None:
        """Units that come from `t0` on belong to the window."""
        self._t0 = t0
        self._clock = FrameClock(self.sense, "drop", SLACK)
        self._frames.clear()
        self._sound[:] = 0
        self._heard, self._heard_at = 0, t0

    def _sort(self) -> None:
        """Give every unit that has come its place."""
        while True:
            with self._lock:
                if not self._units:
                    return
                t, unit = self._units.popleft()
            if t < self._t0:
                continue
            if self.sense.kind == "frames":
                place = self._clock.place(t)
                if place is not None and place < self.sense.length:
                    self._frames[place] = unit, t
            elif self._heard < self.sense.length:
                end = min(self._heard + len(unit), self.sense.length)
                self._sound[self._heard : end] = unit[: end - self._heard]
                self._heard, self._heard_at = end, t

    def _check_speed(self, now: float) -> None:
        """Samples come in bursts, so their rate is only held against the time since the window's begin."""
        rate, passed = self.sense.rate, now - self._t0
        ahead = self._heard / rate - passed
        if self._heard >= self.sense.length / 2 and ahead > BURST_S + 0.25 * passed:
            raise wrong_rate(self.sense, self._heard / max(passed, 1e-3))

    def take(self, start: int, end: int, wait: Wait) -> tuple[NDArray[Any] | None, float] | None:
        """As Replay.take; a stream that is silent too long has stopped."""
        due = self._t0 + end / self.sense.rate
        while True:
            self._sort()
            if self.sense.kind == "frames":
                if start in self._frames:
                    return self._frames.pop(start)
                if self._clock.last > start:
                    return None, time.monotonic()
            elif self._heard >= end:
                self._check_speed(self._heard_at)
                return self._sound[start:end].copy(), self._heard_at
            now = time.monotonic()
            if (self.ended and not self._units) or now > due + STALL_S + 5 / self.sense.rate:
                slow = self.sense.kind == "samples" and now - self._heard_at < STALL_S / 2
                if slow and not self.ended and self._heard:  # it still sends, only too few
                    raise wrong_rate(self.sense, self._heard / (now - self._t0))
                return None
            wait(now + 0.05)

    def close(self) -> None:
        """Let the reading thread end."""
        self._closed = True


def _exactly(descriptor: int, size: int) -> bytes | None:
    """`size` bytes; None at the end of the stream."""
    parts: list[bytes] = []
    while size:
        part = os.read(descriptor, size)
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def check_stream(path: Path) -> Path:
    """A path that can be read as a stream. Raises UserError where there is none."""
    if not path.exists() or path.is_dir():
        raise UserError(
            f"there is no stream {path}; make a named pipe (mkfifo {path.name}) that the sensor's program "
            "writes to.",
            field="stream",
            given=str(path),
        )
    return path
