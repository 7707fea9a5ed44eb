"""Steps 6 to 10 of FeatureDB: the bounds of P, QRS and T on one beat, by a quadratic spline wavelet.

All positions are samples of the beat at 2000 a second. `Rules` holds what the two profiles do differently:
the published one keeps an index that wraps around and a fall-back that mistakes P for the end of the QRS; the
fixed one clamps the first and mends the second."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from haversack.sense._ecg_signal import RATE, resampled, scipy_signal

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
FINE = 2000
SCALES = 9
UP = FINE // RATE


@dataclass(frozen=True)
class Rules:
    """Thresholds as shares of the wavelet's extremum, and what is mended. Times in seconds."""

    wrap: bool = True
    t_onset_from_p: bool = True
    qrs_on: float = 0.5
    qrs_off: float = 0.5
    p_on: float = 0.4
    p_off: float = 0.4
    t_on: float = 0.6
    t_off: float = 0.4


@dataclass
class Bounds:
    """Fiducial points of a beat in samples at 2000 a second; None where there is no such wave."""

    r: int
    p_on: int | None = None
    p: int | None = None
    p_off: int | None = None
    q: int | None = None
    qrs_on: int | None = None
    qrs_off: int | None = None
    s: int | None = None
    t_on: int | None = None
    t: int | None = None
    t_off: int | None = None
    fallbacks: list[str] = field(default_factory=list)


def spline_wavelet(beat: F64, scales: int = SCALES) -> F64:
    """The stationary wavelet [scales, n]: smoothing by [1, 3, 3, 1] / 8 and differences [2, -2], with 2^k - 1
    zeros between taps at scale k, each moved back by 2^k. Zero of a constant but at the ends."""
    smooth, out = np.asarray(beat, np.float64), np.empty((scales, len(beat)))
    for scale in range(scales):
        step = 1 << scale
        out[scale] = _dilated(smooth, (2.0, -2.0), step)
        smooth = _dilated(smooth, (0.125, 0.375, 0.375, 0.125), step)
    return out


def _dilated(x: F64, taps: tuple[float, ...], step: int) -> F64:
    """Full convolution with `taps` that are `step` apart, moved back by `step`, cut to the length of x."""
    n = len(x)
    wide = np.zeros(n + (len(taps) - 1) * step)
    for at, tap in enumerate(taps):
        wide[at * step : at * step + n] += tap * x
    return wide[step : step + n]


def rate_and_degree(length: int) -> tuple[int, int]:
    """(beats a minute, degree): the wavelet's scales move with the length of the beat."""
    rate = round(60 / (length / FINE))
    return rate, int(math.log2((FINE / 250) / (rate / 60)))


def seeds(beat: F64, r: int) -> tuple[int, int]:
    """Q and S at 500 samples a second: the last minimum of the slope before R, the first deep minimum
    behind."""
    find = scipy_signal().find_peaks
    slope = np.diff(beat[:r])
    low, _ = find(-slope)
    q = int(low[-1]) if len(low) else r - round(0.020 * RATE)
    right = beat[r:]
    deep, _ = find(-right, height=0.05 * float(right.max() - right.min()))
    s = int(deep[0]) + r if len(deep) else r + round(0.020 * RATE)
    return q, s


def best_crossing(w: F64, beat: F64, height: float) -> int | None:
    """Of the sign changes between neighbouring maxima of |w|, the one where the beat is farthest from its
    mean; `height` in shares of w's root mean square."""
    size = np.abs(w)
    if len(w) < 3:
        return None
    at, _ = scipy_signal().find_peaks(size, height=height * float(np.sqrt(np.mean(w**2))))
    peaks = [int(one) for one in at if size[one] > 0.025 * float(w.max())]
    if w[0] > 0:
        peaks = [0, *peaks]
    level, best, score = float(beat.mean()), None, -1.0
    for left, right in itertools.pairwise(peaks):
        if w[left] * w[right] >= 0:
            continue
        inside = w[left : right + 1]
        crossing = left + int(np.flatnonzero(np.sign(inside[:-1]) != np.sign(inside[1:]))[0])
        found = abs(float(beat[crossing]) - level)
        if found > score:
            best, score = crossing, found
    return best


def last_before(w: F64, start: int, end: int, share: float) -> int | None:
    """Going back from the last maximum of w in start..end: the last index below `share` of it."""
    part = w[start : end + 1]
    if len(part) < 3:
        return None
    peaks, _ = scipy_signal().find_peaks(part)
    peaks = [one for one in peaks if part[one] > 0]
    if not peaks:
        return None
    m = int(peaks[-1])
    below = np.flatnonzero(part[:m] < share * part[m])
    return start + int(below[-1]) if len(below) else None


def first_behind(w: F64, start: int, end: int, share: float) -> int | None:
    """Going on from the first maximum of w in start..end: the first index below `share` of it."""
    part = w[start : end + 1]
    if len(part) < 3:
        return None
    peaks, _ = scipy_signal().find_peaks(part)
    peaks = [one for one in peaks if part[one] > 0]
    if not peaks:
        return None
    m = int(peaks[0])
    below = np.flatnonzero(part[m:] < share * part[m])
    return start + m + int(below[0]) if len(below) else None


def delineate(beat: F64, r: int, rules: Rules = Rules()) -> Bounds:
    """Bounds of a beat at 500 samples a second whose R is at index r; positions at 2000 a second."""
    fine = resampled(beat, len(beat) * UP)
    rate, degree = rate_and_degree(len(fine))
    w = spline_wavelet(fine)

    def scale(index: int) -> F64:
        if rules.wrap:
            return w[index % SCALES if index < 0 else min(index, SCALES - 1)]
        return w[min(max(index, 0), SCALES - 1)]

    def long(seconds: float) -> float:
        return round(seconds * 60 / rate, 3)

    found = Bounds(r * UP)
    q, s = seeds(beat, r)
    found.q, found.s = q * UP, s * UP
    top, end = found.r, len(fine) - 1
    reach, near = 2 * int(long(0.3) * FINE), int(0.065 * FINE)
    # T and P peaks.
    stop = min(top + reach, end)
    at = best_crossing(scale(3 + degree)[top + near : stop], fine[top + near : stop], 0.25)
    found.t = None if at is None else top + near + at
    start = max(top - reach, 0)
    for share in (2.0, 1.5, 1.0):
        start = max(top - int(share * int(long(0.3) * FINE)), 0)
        if start > 0:
            break
    at = best_crossing(scale(2 + degree)[start : top - near], fine[start : top - near], 0.02)
    found.p = None if at is None else start + at
    _qrs(found, scale(2 + degree), rules, end)
    fast, slow = scale(2 + degree), scale(degree - 3)
    if found.p is not None:
        span = int(long(0.3) * FINE)
        found.p_on = last_before(fast, max(found.p - span, 0), found.p, rules.p_on)
        bound = found.qrs_on if found.qrs_on is not None else top
        found.p_off = first_behind(-slow, found.p, min(max(found.p + span, bound), end), rules.p_off)
        _p_fallbacks(found)
    if found.t is not None:
        span = int(long(0.6) * FINE)
        found.t_on = last_before(fast, max(found.t - span, 0), found.t, rules.t_on)
        found.t_off = first_behind(-fast, found.t, min(found.t + int(long(0.3) * FINE), end), rules.t_off)
        _t_fallbacks(found, len(fine), rules)
    return found


def _qrs(found: Bounds, w: F64, rules: Rules, end: int) -> None:
    top = found.r
    start = found.p if found.p is not None else max(top - int(0.1 * FINE), 0)
    part = -w[start : top + 1]
    peaks, _ = scipy_signal().find_peaks(part)
    if len(peaks):
        m = int(peaks[-1])
        below = np.flatnonzero(part[:m] < rules.qrs_on * abs(part[m]))
        if len(below):
            found.qrs_on = start + int(below[-1])
    if found.qrs_on is None:
        found.qrs_on = found.q
        found.fallbacks.append("qrs_on")
    stop = found.t if found.t is not None else min(top + int(0.1 * FINE), end)
    part = w[top : stop + 1]
    peaks, _ = scipy_signal().find_peaks(part)
    if len(peaks):
        m = int(peaks[0])
        below = np.flatnonzero(part[m:] < rules.qrs_off * part[m])
        if len(below):
            found.qrs_off = top + m + int(below[0])
    if found.qrs_off is None:
        found.qrs_off = found.s
        found.fallbacks.append("qrs_off")


def _p_fallbacks(found: Bounds) -> None:
    assert found.p is not None and found.qrs_on is not None
    if found.p_on is None:
        found.p_on = max(found.p - int(0.15 * FINE), 0)
        found.fallbacks.append("p_on")
    if found.p_off is None:
        found.p_off = found.p + int(0.15 * FINE)
        found.fallbacks.append("p_off")
    if found.qrs_on - found.p_off < 0.04 * FINE:
        found.p_off = int(found.p + 0.4 * (found.qrs_on - found.p))


def _t_fallbacks(found: Bounds, length: int, rules: Rules) -> None:
    assert found.t is not None and found.qrs_off is not None
    if found.t_on is None:
        found.t_on = found.t - int(0.2 * FINE)
        found.fallbacks.append("t_on")
    if found.t_off is None:
        found.t_off = min(found.t + int(0.2 * FINE), int(0.9 * length))
        found.fallbacks.append("t_off")
    if found.t_on - found.qrs_off < 0.04 * FINE:
        origin = found.p if rules.t_onset_from_p and found.p is not None else found.qrs_off
        found.t_on = int(origin + 0.3 * (found.t - found.qrs_off))
