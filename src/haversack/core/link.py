"""A network link that behaves the same in every run: bandwidth, round trip and loss over time, deterministic
under a seed.

`Link.transfer` computes when a message arrives, in simulated time; `Link.send` makes real asyncio code wait
that long. Messages queue behind one another. Of each message's packets (1,448 bytes of payload) some are
lost; they are sent again one round trip later, until all arrived, so loss costs bandwidth and time, as with a
reliable protocol with selective acknowledgement. Congestion control is not modelled.
"""

from __future__ import annotations

import asyncio
import csv
import math
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from haversack.core.errors import DamagedFileError, UserError, unknown_name

PACKET = 1448
_MOST_TRACE = 16 * 2**20


@dataclass(frozen=True)
class Segment:
    """`seconds` of a trace with `mbit_s` (0: an outage), round trip `rtt_ms` and `loss` (the share of packets
    lost)."""

    seconds: float
    mbit_s: float
    rtt_ms: float
    loss: float = 0.0

    def __post_init__(self) -> None:
        for name in ("seconds", "mbit_s", "rtt_ms", "loss"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0 or (name == "seconds" and value == 0):
                raise UserError(f"{name}={value} is not possible for a link.", field=name, given=value)
        if self.loss >= 0.9:
            raise UserError(
                f"loss={self.loss} is a share of packets and must be below 0.9.",
                field="loss",
                given=self.loss,
                nearest=0.89,
            )


LINKS: dict[str, Segment] = {
    "wifi": Segment(1, 80.0, 8.0, 0.001),
    "ethernet": Segment(1, 940.0, 1.0, 0.0),
    "5g": Segment(1, 150.0, 25.0, 0.002),
    "lte": Segment(1, 20.0, 50.0, 0.005),
    "3g": Segment(1, 2.0, 120.0, 0.01),
    "edge": Segment(1, 0.12, 600.0, 0.02),
    "satellite": Segment(1, 10.0, 620.0, 0.01),
    "lora": Segment(1, 0.005, 1500.0, 0.05),
}
"""Typical figures of kinds of links, uplink; a trace of your own says more."""


@dataclass(frozen=True)
class Delivery:
    """A message that arrived: when its first byte left and its last byte arrived (seconds), the bytes on the
    wire with everything sent again, and how many packets were lost on the way."""

    left_at: float
    arrived_at: float
    wire_bytes: int
    lost_packets: int


class Link:
    """One direction of a link that follows `trace`, over and over. Not shared among threads.

    `scale` (for `send`) makes real waiting shorter: 0.1 runs ten times as fast as the link would. Raises
    UserError for a trace in which nothing ever passes.
    """

    def __init__(self, trace: Sequence[Segment], seed: int = 0, scale: float = 1.0) -> None:
        if not any(segment.mbit_s > 0 for segment in trace):
            raise UserError(
                "a link needs a segment in which something passes (mbit_s above 0).", field="link"
            )
        if not scale >= 0:
            raise UserError(f"scale={scale} is not a factor of time.", field="scale", given=scale)
        self.trace = tuple(trace)
        self.scale = scale
        self.wire_bytes = 0
        self.lost_packets = 0
        self._random = random.Random(seed)
        self._ends = []
        at = 0.0
        for segment in self.trace:
            at += segment.seconds
            self._ends.append(at)
        self._free_at = 0.0
        self._began: float | None = None

    def transfer(self, count: int, at: float) -> Delivery:
        """Send a message of `count` bytes at simulated time `at` (seconds, not before earlier messages were
        asked for)."""
        if count < 0 or not at >= 0:
            raise ValueError("count and time are not negative")
        left_at = begin = max(at, self._free_at)
        waiting, wire, lost_ever = count, 0, 0
        while True:
            wire += waiting
            end = self._pass(waiting, begin)
            self._free_at = end
            packets = -(-waiting // PACKET)
            lost = self._lose(packets, self._at(begin).loss)
            rtt_s = self._at(end).rtt_ms * 1e-3
            if not lost:
                break
            lost_ever += lost
            waiting = min(waiting, lost * PACKET)
            begin = max(self._free_at, end + rtt_s)
        self.wire_bytes += wire
        self.lost_packets += lost_ever
        return Delivery(left_at, end + rtt_s / 2, wire, lost_ever)

    async def send(self, count: int) -> Delivery:
        """Wait as long as a message of `count` bytes takes now; the link's time begins with the first
        call."""
        now = time.monotonic()
        if self._began is None:
            self._began = now
        at = (now - self._began) / self.scale if self.scale else self._free_at
        delivery = self.transfer(count, at)
        if self.scale:
            await asyncio.sleep(max(0.0, self._began + delivery.arrived_at * self.scale - time.monotonic()))
        return delivery

    def _place(self, at: float) -> tuple[int, float]:
        """The segment at time `at` and the seconds left of it."""
        within = math.fmod(at, self._ends[-1])
        for index, end in enumerate(self._ends):
            if within < end:
                return index, end - within
        return 0, self.trace[0].seconds

    def _at(self, at: float) -> Segment:
        return self.trace[self._place(at)[0]]

    def _pass(self, count: int, begin: float) -> float:
        """When `count` bytes that begin at `begin` have all passed."""
        at, bits = begin, count * 8.0
        index, left = self._place(at)
        whole = sum(segment.seconds * segment.mbit_s * 1e6 for segment in self.trace)
        while bits > 0:
            if (
                index == 0 and left == self.trace[0].seconds and bits > whole
            ):  # skip whole rounds of the trace
                rounds = math.ceil(bits / whole) - 1
                at, bits = at + rounds * self._ends[-1], bits - rounds * whole
            rate = self.trace[index].mbit_s * 1e6
            if rate * left >= bits:
                return at + bits / rate
            at, bits = at + left, bits - rate * left
            index = (index + 1) % len(self.trace)
            left = self.trace[index].seconds
        return at

    def _lose(self, packets: int, loss: float) -> int:
        """How many of `packets` are lost, each alone with chance `loss`; takes time in proportion to the
        losses."""
        if loss < 1e-12:
            return 0
        lost, at = 0, 0
        while True:
            at += 1 + int(math.log(1.0 - self._random.random()) / math.log1p(-loss))
            if at > packets:
                return lost
            lost += 1


def link(name_or_path: str | os.PathLike[str], seed: int = 0, scale: float = 1.0) -> Link:
    """The link of a name in LINKS or of a CSV trace with the columns seconds, mbit_s, rtt_ms and (if any)
    loss.

    Raises UserError for an unknown name (with the nearest) or an absent file, DamagedFileError for a trace
    that does not hold.
    """
    text = os.fspath(name_or_path)
    if text in LINKS:
        return Link([LINKS[text]], seed, scale)
    if os.sep in text or text.endswith(".csv"):
        return Link(_read_trace(Path(text)), seed, scale)
    raise unknown_name("link", text, LINKS)


def _read_trace(path: Path) -> list[Segment]:
    try:
        if path.stat().st_size > _MOST_TRACE:
            raise DamagedFileError(path, "a trace is smaller than 16 MiB")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DamagedFileError(path, "it is not UTF-8") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.", field="link", given=str(path)) from error
    segments = []
    for number, row in enumerate(csv.DictReader(text.splitlines()), start=2):
        try:
            segments.append(
                Segment(
                    float(row["seconds"]),
                    float(row["mbit_s"]),
                    float(row["rtt_ms"]),
                    float(row.get("loss") or 0.0),
                )
            )
        except (KeyError, TypeError, ValueError, UserError) as error:
            raise DamagedFileError(path, f"line {number} is no segment of a link ({error})") from error
    if not any(segment.mbit_s > 0 for segment in segments):
        raise DamagedFileError(path, "it has no segment in which something passes")
    return segments
