"""Traces of radio channels: read from `t_s, rate_bps, rtt_s, loss`, or made by formula under a seed.

A synthetic trace follows a first-order Gauss-Markov process x in steps of half a second: the rate is the
kind's own times exp(x), and the round trip grows where the rate falls. `fading` is a channel of two such
processes, the real and imaginary part of a Rayleigh gain, whose rate is B log2(1 + SNR); below a floor
nothing passes at all. Constants are [inferred]: magnitudes of what measurements of such networks report, no
trace of one.
"""

from __future__ import annotations

import csv
import itertools
import math
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from haversack.core.errors import DamagedFileError, UserError, unknown_name
from haversack.core.link import Segment

STEP_S = 0.5
KEPT = 0.9
"""What one step leaves of the process."""
FLOOR_BPS = 5e3
"""A fading channel slower than this is out."""
COLUMNS = ("t_s", "rate_bps", "rtt_s", "loss")
LARGEST = 16 << 20


@dataclass(frozen=True)
class Kind:
    """A kind of channel: rate, round trip, loss, and how much the logarithm of the rate spreads."""

    rate_bps: float
    rtt_s: float
    loss: float
    spread: float


KINDS = {
    "5g": Kind(50e6, 0.02, 0.001, 0.3),
    "4g": Kind(10e6, 0.06, 0.003, 0.4),
    "weak": Kind(0.2e6, 0.2, 0.01, 0.5),
}
FADING = Kind(4e6, 0.08, 0.005, 1.0)
BANDWIDTH_HZ, MEAN_SNR = 1e6, 15.0
"""Of the fading channel."""


def synthetic(kind: str, seconds: float, seed: int) -> list[Segment]:
    """A trace of `seconds` of a kind of KINDS, or `fading`; the same for the same seed."""
    names = (*KINDS, "fading")
    if kind not in names:
        raise unknown_name("trace", kind, names)
    numbers = random.Random(f"{kind} {seed}")
    return _fading(seconds, numbers) if kind == "fading" else _varied(KINDS[kind], seconds, numbers)


def mixed(seconds: float, seed: int, kinds: Sequence[str] = ("5g", "weak", "4g", "fading")) -> list[Segment]:
    """Stretches of `seconds` of several kinds, one after the other."""
    return [segment for at, kind in enumerate(kinds) for segment in synthetic(kind, seconds, seed + at)]


def read_trace(path: str | os.PathLike[str]) -> list[Segment]:
    """A CSV trace with the columns t_s, rate_bps, rtt_s and (if any) loss: each row holds from its time to
    the next one's, the last as long as the one before it (a single one: a second). A rate of 0 is an outage.

    Raises UserError for a file that cannot be read, DamagedFileError for one that is no such trace.
    """
    file = Path(path)
    try:
        if file.stat().st_size > LARGEST:
            raise DamagedFileError(file, "a trace is smaller than 16 MiB")
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DamagedFileError(file, "it is not UTF-8") from error
    except OSError as error:
        raise UserError(
            f"{file} cannot be read: {error.strerror}.", field="trace", given=str(file)
        ) from error
    rows: list[tuple[float, ...]] = []
    for number, row in enumerate(csv.DictReader(lines, skipinitialspace=True), start=2):
        try:
            rows.append(tuple(float(row.get(name) or (0 if name == "loss" else "")) for name in COLUMNS))
        except (TypeError, ValueError) as error:
            raise DamagedFileError(file, f"line {number} has no {', '.join(COLUMNS)} ({error})") from error
    if not rows:
        raise DamagedFileError(file, "it has no rows")
    times = [row[0] for row in rows]
    spans = [later - earlier for earlier, later in itertools.pairwise(times)]
    spans.append(spans[-1] if spans else 1.0)
    segments = []
    for number, (held, span) in enumerate(zip(rows, spans, strict=True), start=2):
        try:
            segments.append(Segment(span, held[1] / 1e6, held[2] * 1e3, held[3]))
        except UserError as error:
            raise DamagedFileError(file, f"line {number} is no segment of a channel ({error})") from error
    if not any(segment.mbit_s > 0 for segment in segments):
        raise DamagedFileError(file, "its rate is 0 all along, so nothing ever passes")
    return segments


def write_trace(path: str | os.PathLike[str], trace: Sequence[Segment]) -> None:
    """The counterpart of `read_trace`."""
    at, lines = 0.0, [",".join(COLUMNS)]
    for segment in trace:
        lines.append(f"{at:g},{segment.mbit_s * 1e6:g},{segment.rtt_ms / 1e3:g},{segment.loss:g}")
        at += segment.seconds
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _varied(kind: Kind, seconds: float, numbers: random.Random) -> list[Segment]:
    found, x = [], numbers.gauss(0, kind.spread)
    for _ in range(max(1, round(seconds / STEP_S))):
        rate = kind.rate_bps * math.exp(x - kind.spread**2 / 2)
        rtt = kind.rtt_s * (1 + 0.5 * max(0.0, -x))
        found.append(Segment(STEP_S, rate / 1e6, rtt * 1e3, kind.loss))
        x = KEPT * x + math.sqrt(1 - KEPT**2) * numbers.gauss(0, kind.spread)
    return found


def _fading(seconds: float, numbers: random.Random) -> list[Segment]:
    found = []
    gain = [numbers.gauss(0, math.sqrt(0.5)) for _ in range(2)]
    for _ in range(max(1, round(seconds / STEP_S))):
        snr = MEAN_SNR * sum(part * part for part in gain)
        rate = BANDWIDTH_HZ * math.log2(1 + snr)
        rtt = FADING.rtt_s * (1 + min(4.0, FADING.rate_bps / max(rate, FLOOR_BPS)) / 4)
        found.append(Segment(STEP_S, 0.0 if rate < FLOOR_BPS else rate / 1e6, rtt * 1e3, FADING.loss))
        gain = [KEPT * part + math.sqrt((1 - KEPT**2) / 2) * numbers.gauss(0, 1) for part in gain]
    return found
