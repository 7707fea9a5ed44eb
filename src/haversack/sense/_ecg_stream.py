"""An ECG as it comes: a ring of ten seconds, a reading about every beat."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError
from haversack.sense._ecg_checks import LEAST_RATE
from haversack.sense._ecg_signal import RATE
from haversack.sense.ecg import Reading, read_ecg

F64 = NDArray[np.float64]


class EcgStream:
    """An ECG as it comes: `push` samples, get a fresh Reading about every beat, of the last ten seconds.

    The state is one ring of `seconds` of samples (f32), at most 64 KiB. A reading equals `read_ecg` of the
    same samples. Samples that come late (before `at`) are dropped and counted, missing ones are counted and
    begin the window anew."""

    def __init__(self, rate: float, *, seconds: float = 10.0, **options: Any) -> None:
        if not LEAST_RATE <= rate <= 65536 / 4 / seconds:
            raise UserError(
                f"fs={rate:g} is not supported in a stream of {seconds:g} s (allowed {LEAST_RATE:g} to "
                f"{65536 / 4 / seconds:g}).",
                field="fs",
                given=rate,
                nearest=min(max(rate, LEAST_RATE), 65536 / 4 / seconds),
            )
        self.rate, self.options = rate, options
        self._ring = np.zeros(math.floor(rate * seconds), np.float32)
        self._held = 0
        self._fresh = 0
        self._every = rate  # samples between readings: one beat, once it is known
        self.seen = 0
        self.late = 0
        self.lost = 0
        self.reason = "no samples yet"

    @property
    def nbytes(self) -> int:
        """Bytes of the state."""
        return self._ring.nbytes

    def push(self, samples: Any, at: int | None = None) -> Reading | None:
        """Take samples [n], the first being number `at` of the stream (default: the next). Returns a reading
        when a beat's worth has come and one can be made; else None, `reason` says why."""
        x = np.asarray(samples, np.float32).ravel()
        if at is not None and at < self.seen:
            drop = min(self.seen - at, len(x))
            self.late += drop
            x = x[drop:]
        elif at is not None and at > self.seen:
            self.lost += at - self.seen
            self.seen, self._held = at, 0
        self.seen += len(x)
        keep = x[-len(self._ring) :]
        room = len(self._ring) - self._held
        if len(keep) > room:
            shift = len(keep) - room
            self._ring[: self._held - shift] = self._ring[shift : self._held]
            self._held -= shift
        self._ring[self._held : self._held + len(keep)] = keep
        self._held += len(keep)
        self._fresh += len(x)
        if self._fresh < self._every:
            self.reason = "less than a beat is new"
            return None
        self._fresh = 0
        return self.reading()

    def window(self) -> F64:
        """The samples that the next reading is of."""
        return self._ring[: self._held].astype(np.float64)

    def reading(self) -> Reading | None:
        """A reading of what is held now; None where none can be made, `reason` says why."""
        try:
            found = read_ecg(self.window(), self.rate, **self.options)
        except UserError as error:
            self.reason, self._every = str(error), self.rate
            return None
        self.reason = ""
        self._every = max(0.3 * self.rate, float(np.median(np.diff(found.peaks))) * self.rate / RATE)
        return found
