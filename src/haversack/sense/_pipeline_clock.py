"""The times of a sense's units, held against its nominal rate: order, gaps, rate, skew between senses.

A unit's place in the window follows from its time, so a lost one leaves its place empty and those behind it
keep theirs."""

from __future__ import annotations

import itertools
import math
from collections import deque

import numpy as np

from haversack.core.errors import UserError
from haversack.models.streams._record import Sense

JITTER = 0.5
"""Of a period: how far a unit may be off its place."""
WRONG_RATE = 0.2
"""How far the median period may be off the nominal one."""
MOST_LOST = 0.25
"""Of a window's units: where more are missing there is no answer."""
SKEW_S = 0.1
"""Between the first units of two senses."""
SOUND_JITTER_S = 0.01
LATE = ("refuse", "drop")


class FrameClock:
    """Places of frames: `place(t)` is the number of the frame that was taken at second t, None for one that
    is dropped. `slack`: where times are of arrival, a frame that is up to so many periods off is the next."""

    def __init__(self, sense: Sense, late: str, slack: int = 0) -> None:
        self.sense, self.late, self.slack = sense, late, slack
        self.first: float | None = None
        self.last = -1
        self.dropped = 0
        self.lost = 0
        self._last_t = -math.inf
        self._periods: deque[float] = deque(maxlen=9)

    def place(self, t: float) -> int | None:
        """Raises UserError for a time that is none, for one before the last where late frames are refused,
        for another rate, and where too many are missing."""
        _check_time(self.sense, t)
        if t <= self._last_t:
            self._refuse_late(t)
            return None
        period = 1 / self.sense.rate
        if self.first is None:
            self.first = t
        else:
            self._periods.append(t - self._last_t)
            self._check_rate(period)
        self._last_t = t
        place = round((t - self.first) / period)
        if abs(place - self.last - 1) <= self.slack:
            place = self.last + 1
        if place <= self.last:  # two within one period: the later one is one too many
            self.dropped += 1
            return None
        self.lost += place - self.last - 1 if place < self.sense.length else 0
        if self.lost > MOST_LOST * self.sense.length:
            raise too_many_missing(self.sense, self.lost)
        self.last = place
        return place

    def _refuse_late(self, t: float) -> None:
        if self.late == "refuse":
            raise UserError(
                f"a unit of {self.sense.name} came out of order: its time {t:.4f} s is not after the last "
                "one's "
                f"{self._last_t:.4f} s; send units in order, or let late ones be dropped (late='drop').",
                field="t",
                given=t,
                nearest=self._last_t,
            )
        self.dropped += 1

    def _check_rate(self, period: float) -> None:
        if len(self._periods) < 8:
            return
        middle = float(np.median(self._periods))
        if abs(middle / period - 1) > WRONG_RATE:
            raise wrong_rate(self.sense, 1 / middle)


class SampleClock:
    """Places of samples: `place(t, n)` says at which sample n more begin, None for what is dropped."""

    def __init__(self, sense: Sense, late: str) -> None:
        self.sense, self.late = sense, late
        self.first: float | None = None
        self.next = 0
        self.dropped = 0
        self.lost = 0
        self._blocks: list[tuple[float, int]] = []

    def place(self, t: float, count: int) -> int | None:
        """Raises UserError as FrameClock does."""
        _check_time(self.sense, t)
        if self.first is None:
            self.first = t
        rate = self.sense.rate
        off = (t - self.first) - self.next / rate
        self._blocks.append((t, count))
        self._check_rate(rate)
        if off < -max(SOUND_JITTER_S, JITTER * count / rate):
            if self.late == "refuse":
                raise UserError(
                    f"samples of {self.sense.name} came out of order: their time {t:.4f} s is "
                    f"{-1000 * off:.0f} ms before the end of the last; send them in order, or let late "
                    "ones be "
                    "dropped (late='drop').",
                    field="t",
                    given=t,
                    nearest=self.first + self.next / rate,
                )
            self.dropped += count
            return None
        start = self.next
        if off > SOUND_JITTER_S:
            start += round(off * rate)
            self.lost += max(0, min(start, self.sense.length) - self.next)
            if self.lost > MOST_LOST * self.sense.length:
                raise too_many_missing(self.sense, self.lost)
        self.next = start + count
        return start

    def _check_rate(self, rate: float) -> None:
        """Blocks of n samples are n / rate seconds apart."""
        if len(self._blocks) < 5:
            return
        recent = self._blocks[-5:]
        rates = [before[1] / max(after[0] - before[0], 1e-9) for before, after in itertools.pairwise(recent)]
        if abs(float(np.median(rates)) / rate - 1) > WRONG_RATE:
            raise wrong_rate(self.sense, float(np.median(rates)))


def _check_time(sense: Sense, t: float) -> None:
    if not math.isfinite(t):
        raise UserError(
            f"a unit of {sense.name} has the time {t!r}, which is none; give seconds.",
            field="t",
            given=str(t),
        )


def wrong_rate(sense: Sense, found: float) -> UserError:
    """The error for units that come too fast or too slowly."""
    what = "frames" if sense.kind == "frames" else "samples"
    return UserError(
        f"{sense.name} sends about {found:.4g} {what} a second and the model was trained on "
        f"{sense.rate:g}; set "
        f"the sensor to {sense.rate:g} or convert its output.",
        field="rate",
        given=round(found, 3),
        nearest=sense.rate,
    )


def too_many_missing(sense: Sense, lost: int) -> UserError:
    """The error for a window with holes."""
    return UserError(
        f"{lost} of {sense.length} {'frames' if sense.kind == 'frames' else 'samples'} of {sense.name} are "
        f"missing, more than {MOST_LOST:.0%} of the window; look at the sensor's connection.",
        field="units",
        given=lost,
        nearest=int(MOST_LOST * sense.length),
    )


def check_skew(slow: Sense, fast: Sense, slow_t: float, fast_t: float, most: float = SKEW_S) -> float:
    """Seconds between the first units of two senses. Raises UserError where they are too far apart."""
    skew = slow_t - fast_t
    if abs(skew) > most:
        raise UserError(
            f"the clocks of {slow.name} and {fast.name} are {1000 * abs(skew):.0f} ms apart at the first "
            "units "
            f"(allowed {1000 * most:.0f} ms); start both together, or give the difference as "
            f"skew_s={skew:.3f}.",
            field="skew_s",
            given=round(skew, 4),
            nearest=round(skew, 4),
        )
    return skew
