"""A detector cut by a slimmable encoder: width and bits of what is sent are chosen frame by frame.

Paper: Slimmable Encoders for Flexible Split DNNs in Bandwidth and Resource Constrained IoT Systems (arXiv
2306.12691, 2023; abstract and public files of its device code; the text was not read).
What is here: the choice of the mode (k members, b bits) under a deadline, as pure functions of times and
rates: `published`, as the authors' device code has it, and `Adaptive`, which is ours. The encoder's maths are
models/vision/slimmable.py, its training slimmable_torch.py beside it, the two halves over HTTP _split_*.py.
The published rule: rate = bytes / transfer time, an exponential mean with weight 0.4 on the new sample,
200 kB/s at first; of the modes with 60 ms * (10 k + b) / 10 + bytes / rate < 0.8 deadline the one of the
highest quality, else (1, 1). Its `mode / 10` counts 66 ms for (1, 1) and 64 ms a member for four bits, which
fits one board only.
What we changed, [inferred]: encode times are measured online, by k, with twice their spread, and held
against those of other k, since members are alike; decoding is charged; sending is reckoned longer by 5 % and
the deviation of the last rates, a quarter at most; the rate is the lowest of that mean, moved by a quarter of
its last fall, of the 20th percentile of the last five rates and of the last one; a mode of higher quality is
taken up only with 5 % more. Of the last five frames those of 1 KiB and more say the rate, the others only
where there are none: a device that a slow link held at the smallest mode finds back in five frames.
Cost: dozens of microseconds a frame. Limits: one frame in flight; qualities are those of the pack's table.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from haversack.core.errors import UserError
from haversack.core.method import Method, parameter

Mode = tuple[int, int]
START_RATE = 200.0
"""Bytes a millisecond (kB/s) before anything was measured."""
NEW_SHARE = 0.4
MARGIN = 0.8
LEAST_SAMPLE = 1024
EVEN = 1.05
UNEVEN = 1.1
"""Times as much as in proportion to fewer, more members may be reckoned with."""


def published_cost(mode: Mode, nbytes: float, rate: float) -> float:
    """Milliseconds as the public controller reckons them.

    >>> published_cost((1, 4), 27648, 200.0)
    222.24
    """
    return 60.0 * (10 * mode[0] + mode[1]) / 10 + nbytes / max(rate, 1e-9)


def published(
    rate: float, deadline_ms: float, quality: Mapping[Mode, float], nbytes: Mapping[Mode, float]
) -> Mode:
    """The public controller's choice: the highest quality that fits into 0.8 of the deadline, else (1, 1)."""
    limit = MARGIN * deadline_ms
    fitting = [mode for mode in quality if published_cost(mode, nbytes[mode], rate) < limit]
    return max(fitting, key=lambda mode: quality[mode], default=(1, 1))


@dataclass(frozen=True)
class Times:
    """What one frame took, in milliseconds; `total` from the picture to the answer."""

    mode: Mode
    nbytes: int
    encode: float
    decode: float
    total: float

    @property
    def transfer(self) -> float:
        """What is neither encoding nor decoding."""
        return max(self.total - self.encode - self.decode, 1e-3)


class Controller(Protocol):
    """Chooses the mode of the next frame from what the frames before it took."""

    name: str

    def choose(self, deadline_ms: float) -> Mode: ...

    def observe(self, times: Times) -> None: ...


@dataclass
class Published:
    """The public controller with its state."""

    quality: Mapping[Mode, float]
    nbytes: Mapping[Mode, float]
    rate: float = START_RATE
    name: str = "published"

    def choose(self, deadline_ms: float) -> Mode:
        return published(self.rate, deadline_ms, self.quality, self.nbytes)

    def observe(self, times: Times) -> None:
        self.rate = (1 - NEW_SHARE) * self.rate + NEW_SHARE * times.nbytes / times.transfer


@dataclass
class Fixed:
    """One mode, whatever the link."""

    mode: Mode
    name: str = "fixed"

    def choose(self, deadline_ms: float) -> Mode:
        return self.mode

    def observe(self, times: Times) -> None:
        """It learns nothing."""


@dataclass
class Adaptive:
    """See the file's head. `encode_ms` is what is known of each k beforehand (bench-device), may be empty;
    `margin` of the deadline is used; `safety` is by what sending is reckoned longer at most, `rise` how much
    more for a better mode."""

    quality: Mapping[Mode, float]
    nbytes: Mapping[Mode, float]
    encode_ms: dict[int, float] = field(default_factory=dict)
    rate: float = START_RATE
    margin: float = 0.98
    safety: float = 1.25
    rise: float = 0.05
    name: str = "adaptive"

    def __post_init__(self) -> None:
        self.encode_ms = dict(self.encode_ms)
        self.spread_ms: dict[int, float] = {}
        self.decode_ms = 0.0
        self._last: Mode | None = None
        self._seen: deque[tuple[int, float]] = deque(maxlen=5)
        self._before = self.rate

    def forecast(self) -> float:
        """Bytes a millisecond that the next transfer is reckoned with."""
        if not self._seen:
            return self.rate
        large = [rate for nbytes, rate in self._seen if nbytes >= LEAST_SAMPLE]
        ordered = sorted(large or [rate for _, rate in self._seen])
        careful = ordered[int(0.2 * (len(ordered) - 1))]
        moved = self.rate + min(self.rate - self._before, 0.0) / 4
        return max(min(self.rate, careful, moved, self._seen[-1][1]), 1e-6)

    def costs(self) -> dict[Mode, float]:
        """Milliseconds that a frame of each mode is reckoned with."""
        a_byte = self.longer() / self.forecast()
        encoding = {k: self.encoding(k) for k in {k for k, _ in self.quality}}
        return {
            mode: encoding[mode[0]] + a_byte * self.nbytes[mode] + self.decode_ms for mode in self.quality
        }

    def cost(self, mode: Mode) -> float:
        """Of one mode."""
        return self.costs()[mode]

    def longer(self) -> float:
        """By what sending is reckoned longer: little on an even link, up to `safety` where rates differ."""
        logs = [math.log(rate) for _, rate in self._seen]
        mean = math.fsum(logs) / max(len(logs), 1)
        spread = math.dist(logs, [mean] * len(logs)) / math.sqrt(len(logs)) if len(logs) > 1 else self.safety
        return min(EVEN + spread, self.safety)

    def encoding(self, k: int) -> float:
        """Milliseconds that k members are reckoned with: measured, with twice their spread, or in proportion
        to the nearest k that was. Never more than more members take, nor much more than fewer do in
        proportion: one bad measurement would else keep a k from ever being measured again."""
        if not self.encode_ms:
            return 0.0
        with_spread = {j: ms + 2 * self.spread_ms.get(j, 0.0) for j, ms in self.encode_ms.items()}
        bounds = [ms if j >= k else UNEVEN * ms * k / j for j, ms in with_spread.items()]
        if k not in self.encode_ms:
            near = min(self.encode_ms, key=lambda other: abs(other - k))
            bounds.append(self.encode_ms[near] * k / near)
        return min(bounds)

    def choose(self, deadline_ms: float) -> Mode:
        limit, costs, last = self.margin * deadline_ms, self.costs(), self._last
        held = -1.0 if last is None or costs[last] >= limit else self.quality[last]
        more = self.rise / self.forecast()  # for sending what is better than what is held

        def fits(mode: Mode) -> bool:
            better = self.quality[mode] > held >= 0
            return costs[mode] + (more * self.nbytes[mode] if better else 0.0) < limit

        quickest = min(costs, key=lambda mode: (costs[mode], mode))
        fitting = filter(fits, costs)
        self._last = max(fitting, key=lambda mode: (self.quality[mode], -costs[mode]), default=quickest)
        return self._last

    def observe(self, times: Times) -> None:
        k = times.mode[0]
        before = self.encode_ms.get(k, times.encode)
        self.spread_ms[k] = _mean(self.spread_ms.get(k), abs(times.encode - before))
        self.encode_ms[k] = _mean(self.encode_ms.get(k), times.encode)
        self.decode_ms = _mean(self.decode_ms or None, times.decode)
        rate = times.nbytes / times.transfer
        self._seen.append((times.nbytes, rate))
        self._before, self.rate = self.rate, (1 - NEW_SHARE) * self.rate + NEW_SHARE * rate


def _mean(before: float | None, new: float) -> float:
    return new if before is None else 0.7 * before + 0.3 * new


def deadline_of(value: float) -> float:
    """A deadline in milliseconds. Raises UserError for what is none."""
    if not 0 < value < float("inf"):
        raise UserError(
            f"deadline_ms={value} is not a time (allowed: above 0); use deadline_ms=300.",
            field="deadline_ms",
            given=value,
            nearest=300,
        )
    return value


@dataclass(frozen=True)
class Slimmable(Method):
    name = "slimmable"
    stage = "share"
    slot = "cut"
    paper = "Slimmable Encoders for Flexible Split DNNs in Bandwidth Constrained IoT (2306.12691)"
    summary = (
        "The device encodes a picture by one to four members at one to four bits; a server does the rest."
    )
    system = 13

    members: int = parameter(4, allowed=range(1, 5), help="members of the encoder")
    steps: int = parameter(500, allowed=range(1, 100_001), help="steps of encoder and decoder")
    teacher_steps: int = parameter(900, allowed=range(1, 100_001), help="steps of the teacher")
    rows: int = parameter(24, allowed=range(1, 1025), help="pictures of a step")
    copies: int = parameter(3, allowed=range(1, 17), help="modes of a step: the sandwich rule")
    gain: float = parameter(2.0, help="g_2; g_3 and g_4 are a half and a quarter of it")
    seed: int = parameter(0, allowed=range(65_536), help="what is drawn")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.gain <= 100:
            raise UserError(
                f"gain={self.gain:g} is not supported (allowed: above 0, at most 100); use gain=2.",
                field="gain",
                given=self.gain,
                nearest=2.0,
            )
