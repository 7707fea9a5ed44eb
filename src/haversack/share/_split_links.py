"""Links for a split network's trials: waves, walks, traces of the public experiments; and frames in virtual
time, so that hours of a link take seconds.

Rates are kB/s, that is bytes a millisecond.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from haversack.core.errors import DamagedFileError, UserError
from haversack.core.link import Link, Segment
from haversack.share.slimmable import Controller, Mode, Times

SLOW, FAST = 20.0, 2000.0
ROUND_TRIP_MS = 2.0
LARGEST = 64 << 20


def segment(seconds: float, kbs: float, rtt_ms: float = ROUND_TRIP_MS) -> Segment:
    """A stretch of a link at `kbs` kB/s."""
    return Segment(seconds, kbs * 8e-3, rtt_ms)


def square(period_s: float = 10.0, slow: float = SLOW, fast: float = FAST) -> list[Segment]:
    """Half a period fast, half slow, over and over."""
    return [segment(period_s / 2, fast), segment(period_s / 2, slow)]


def walk(
    seconds: float, seed: int, slow: float = SLOW, fast: float = FAST, each_s: float = 0.25
) -> list[Segment]:
    """A walk of the rate's logarithm between `slow` and `fast`, as radio links walk when people move: each
    quarter of a second a drawn step and a pull towards a middle that itself jumps now and then."""
    draw = np.random.default_rng([seed, 17])
    low, high = math.log(slow), math.log(fast)
    place = middle = draw.uniform(low, high)
    found = []
    for _ in range(math.ceil(seconds / each_s)):
        if draw.random() < each_s / 8:
            middle = draw.uniform(low, high)
        place += 0.1 * (middle - place) + draw.normal(0, 0.12)
        place = min(max(place, low), high)
        found.append(segment(each_s, math.exp(place)))
    return found


@dataclass(frozen=True)
class TracedFrame:
    """One line of a public trace: what the controller chose, and what came of it. Times in ms; `nbytes` is
    the traces' `kbs`, which holds bytes of payload; `bandwidth` their `bw`, bytes a millisecond, as the
    controller reckoned after the frame."""

    mode: Mode
    deadline: float
    e2e: float
    encode: float
    transfer: float
    nbytes: float
    bandwidth: float
    quality: float

    @property
    def rate(self) -> float:
        """Bytes a millisecond."""
        return self.nbytes / self.transfer


def read_traces(path: Path) -> list[TracedFrame]:
    """The frames of a file of JSON lines with the fields bw, e2e, mode, map, encoder_time, kbs, deadline and
    transfer_time. Raises UserError where it cannot be read, DamagedFileError for a line that is no frame."""
    try:
        if path.stat().st_size > LARGEST:
            raise DamagedFileError(path, "it is longer than 64 MiB")
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}.", field="trace", given=str(path)
        ) from error
    except UnicodeDecodeError as error:
        raise DamagedFileError(path, "it is not UTF-8") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.append(_traced(json.loads(line)))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DamagedFileError(path, f"line {number} is no frame ({error!r:.80})") from error
    if not found:
        raise DamagedFileError(path, "it holds no frame")
    return found


def _traced(row: Mapping[str, Any]) -> TracedFrame:
    number = int(row["mode"])
    names = ("deadline", "e2e", "encoder_time", "transfer_time", "kbs", "bw", "map")
    values = [float(row[name]) for name in names]
    if not all(math.isfinite(value) and value >= 0 for value in values) or not 11 <= number <= 44:
        raise ValueError("a number is not possible")
    if values[3] == 0:
        raise ValueError("nothing is sent in no time")
    return TracedFrame((number // 10, number % 10), *values)


def link_of(frames: Sequence[TracedFrame], rtt_ms: float = 0.0) -> list[Segment]:
    """The link that a trace's frames saw: each frame's rate for as long as the frame took."""
    return [segment(max(one.e2e, 1.0) / 1000, max(one.rate, 1e-3), rtt_ms) for one in frames]


@dataclass(frozen=True)
class Outcome:
    """Frames in virtual time: the share in time, the mean quality with late frames as 0, how often each
    mode."""

    hits: float
    quality: float
    modes: Mapping[Mode, int]
    frames: int


def play(
    controller: Controller,
    trace: Sequence[Segment],
    quality: Mapping[Mode, float],
    nbytes: Mapping[Mode, int],
    encode_ms: Callable[[int], float],
    deadline_ms: float,
    *,
    decode_ms: float = 0.0,
    seconds: float = 120.0,
    period_ms: float = 0.0,
    answer_bytes: int = 0,
    seed: int = 0,
) -> Outcome:
    """Frames one after the other over `trace`; the next begins when the last was answered, but not before
    `period_ms` after the last one began. An answer takes half a round trip and its `answer_bytes`."""
    up, down = Link(trace, seed), Link(trace, seed + 1)
    now, hits, total, frames = 0.0, 0, 0.0, 0
    modes: dict[Mode, int] = {}
    while now < seconds:
        mode = controller.choose(deadline_ms)
        encode = encode_ms(mode[0])
        sent = up.transfer(nbytes[mode], now + encode / 1000).arrived_at
        back = down.transfer(answer_bytes, sent + decode_ms / 1000).arrived_at
        took = 1000 * (back - now)
        controller.observe(Times(mode, nbytes[mode], encode, decode_ms, took))
        frames += 1
        modes[mode] = modes.get(mode, 0) + 1
        if took <= deadline_ms:
            hits += 1
            total += quality[mode]
        now = max(back, now + period_ms / 1000)
    return Outcome(hits / frames, total / frames, modes, frames)


@dataclass
class Oracle:
    """Knows the link: the best mode that will be in time, else the quickest. Only `play` can have one."""

    trace: Sequence[Segment]
    quality: Mapping[Mode, float]
    nbytes: Mapping[Mode, int]
    encode_ms: Callable[[int], float]
    decode_ms: float = 0.0
    period_ms: float = 0.0
    answer_bytes: int = 0
    name: str = "oracle"

    def __post_init__(self) -> None:
        self.now = 0.0

    def _took(self, mode: Mode) -> float:
        up, down = Link(self.trace), Link(self.trace)
        sent = up.transfer(self.nbytes[mode], self.now + self.encode_ms(mode[0]) / 1000).arrived_at
        back = down.transfer(self.answer_bytes, sent + self.decode_ms / 1000).arrived_at
        return 1000 * (back - self.now)

    def choose(self, deadline_ms: float) -> Mode:
        for mode in sorted(self.quality, key=lambda mode: -self.quality[mode]):
            if self.encode_ms(mode[0]) + self.decode_ms < deadline_ms and self._took(mode) <= deadline_ms:
                return mode
        return min(self.quality, key=self._took)

    def observe(self, times: Times) -> None:
        self.now += max(times.total, self.period_ms) / 1000
