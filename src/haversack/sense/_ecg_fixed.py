"""The fixed profile: what the published one gets wrong put right, its bounds calibrated on marked records.

The QRS is where the wavelet's size at a fine scale stands out, not between two extrema of a coarse one, which
took P waves and slow T waves for parts of it. Baseline by a zero-phase high-pass at 0.5 Hz instead of a 14 ms
one; peaks that are T waves dropped; R aligned on the steepest wave; a template of the beats that are alike
(median, correlation above 0.9) instead of the mean of all; P dropped where it is not told from noise or the
rhythm is irregular; one offset a bound."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from haversack.sense._ecg_beat import FINE, UP, Bounds, best_crossing, seeds, spline_wavelet
from haversack.sense._ecg_signal import (
    RATE,
    band,
    band_sections,
    boxcar,
    gradient_peaks,
    resampled,
    scipy_signal,
    zero_phase,
)

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
BEFORE, AFTER, BEFORE_LEAST = 0.45, 0.75, 0.30
ALIKE = 0.9
GUARD_S, GUARD_SLOPE = 0.36, 0.5
P_REACH_MS, P_EDGE_MS, T_EDGE_MS, T_GAP_MS = 360, 100, 150, 20
WEAK = 0.3
"""The share of the median steepness below which a peak is no beat."""


@dataclass(frozen=True)
class Rules:
    """Scales (of spline_wavelet at 2000 a second) and shares of the extremum, and the milliseconds that are
    added to each bound. Calibrated on LUDB's odd records, lead II: bench/featuredb_ecg/calibration.py says
    how."""

    qrs_scale: int = 4
    qrs_on: float = 0.25
    qrs_off: float = 0.08
    p_scale: int = 6
    p_edge: int = 5
    p_on: float = 0.3
    t_scale: int = 7
    t_edge: int = 6
    t_off: float = 0.4
    qrs_on_ms: float = -9.38
    qrs_off_ms: float = 9.38
    p_on_ms: float = 7.0
    t_off_ms: float = 4.0


RULES = Rules()
QUIET_MS, SMOOTH_MS = 24.0, 8.0
"""A QRS ends where the wavelet stays low for so long; the width of the mean that its size is taken over."""


def cleaned(x: F64) -> F64:
    """0.5 to 40 Hz, zero phase, at 500 samples a second."""
    return np.asarray(
        scipy_signal().sosfiltfilt(band_sections(0.5, 40.0, RATE, 2), x, padlen=min(len(x) - 1, 1500))
    )


@functools.cache
def _edges() -> tuple[F64, F64]:
    return band(5.0, 30.0, RATE, 2)


def fixed_peaks(x: F64) -> I64:
    """R peaks of a cleaned signal: the gradient detector's, less T waves and specks, each moved to the
    largest deflection between 5 and 30 Hz within 100 ms."""
    found = gradient_peaks(zero_phase(x, *band(3.0, 40.0, RATE)))
    sharp = zero_phase(x, *_edges())
    slope = np.abs(np.gradient(sharp))
    reach = round(0.08 * RATE)
    steep = [float(slope[max(0, at - reach) : at + reach].max()) for at in found]
    kept: list[tuple[int, float]] = []
    for at, height in zip(found.tolist(), steep, strict=True):
        if kept and at - kept[-1][0] < GUARD_S * RATE:
            if height < GUARD_SLOPE * kept[-1][1]:
                continue
            if kept[-1][1] < GUARD_SLOPE * height:
                kept[-1] = (at, height)
                continue
        kept.append((at, height))
    if not kept:
        return np.empty(0, np.int64)
    usual = float(np.median([height for _, height in kept]))
    near = round(0.1 * RATE)
    moved = [
        max(0, at - near) + int(np.argmax(np.abs(sharp[max(0, at - near) : at + near + 1])))
        for at, height in kept
        if height > WEAK * usual
    ]
    return np.asarray(sorted(set(moved)), np.int64)


@dataclass(frozen=True)
class Template:
    """A beat at 500 samples a second, its R at `r`; `alike` of `whole` beats went into it. `rows`: the beats,
    cut out; `places`: their R peaks in the signal; `noise`: the median difference of alike beats from it."""

    beat: F64
    r: int
    period: int
    alike: int
    whole: int
    rows: F64
    places: I64
    correlations: F64
    noise: float


def template(x: F64, peaks: I64) -> Template:
    """The median of the whole beats that are like one another; of two and more peaks."""
    period = int(np.median(np.diff(peaks)))
    left = max(round(BEFORE * period), round(BEFORE_LEAST * RATE))
    right = round(AFTER * period)
    places = np.asarray([at for at in peaks if at - left >= 0 and at + right <= len(x)], np.int64)
    if len(places) == 0:
        places = peaks[:1]
        x = np.pad(x, (left, right), mode="edge")
        rows = np.stack([x[at : at + left + right] for at in places])
    else:
        rows = np.stack([x[at - left : at + right] for at in places])
    middle = np.median(rows, axis=0)
    alike = np.ones(len(rows), bool)
    like = np.ones(len(rows))
    for _ in range(2):
        like = correlations(rows, middle)
        alike = like > ALIKE
        if alike.sum() < 2:
            alike = like >= np.sort(like)[-min(2, len(like))]
        middle = np.median(rows[alike], axis=0)
    noise = float(np.median(np.abs(rows[alike] - middle)))
    return Template(middle, left, period, int(alike.sum()), len(rows), rows, places, like, noise)


def correlations(rows: F64, middle: F64) -> F64:
    """Pearson's r of each row with `middle`; 0 for a flat one."""
    a = rows - rows.mean(1, keepdims=True)
    b = middle - middle.mean()
    size = np.sqrt((a**2).sum(1) * float(b @ b))
    return np.asarray(np.divide(a @ b, size, out=np.zeros(len(rows)), where=size > 0))


def qrs_bounds(size: F64, r: int, rules: Rules) -> tuple[int, int]:
    """(onset, end) of the QRS around R, where the wavelet's `size` stays under a share of its greatest for 24
    ms; at most 130 ms before and 160 ms behind R."""
    low, high = max(0, r - _samples(130)), min(len(size) - 1, r + _samples(160))
    near = slice(max(0, r - _samples(60)), r + _samples(60) + 1)
    top = float(size[near].max())
    middle = near.start + int(np.argmax(size[near]))
    run = _samples(QUIET_MS)
    before = _first_run(size[low : middle + 1][::-1] < rules.qrs_on * top, run)
    behind = _first_run(size[middle : high + 1] < rules.qrs_off * top, run)
    return (
        low if before is None else middle - before,
        high if behind is None else middle + behind,
    )


def _first_run(quiet: NDArray[np.bool_], run: int) -> int | None:
    """Where the first `run` true values in a row begin."""
    sums = np.concatenate([[0], np.cumsum(quiet)])
    whole = np.flatnonzero(sums[run:] - sums[:-run] == run) if len(quiet) >= run else np.empty(0, np.int64)
    return int(whole[0]) if len(whole) else None


def edge(w: F64, start: int, end: int, share: float, *, outward: int) -> int | None:
    """From the steepest point of w in start..end outwards (-1: back, 1: on), the first index under `share` of
    it; the end of the stretch where there is none."""
    part = w[max(start, 0) : min(end, len(w))]
    if len(part) < 10:
        return None
    m = int(np.argmax(np.abs(part)))
    steep = part * np.sign(part[m])
    low = (
        np.flatnonzero(steep[m:] < share * steep[m])
        if outward > 0
        else np.flatnonzero(steep[:m] < share * steep[m])
    )
    if len(low) == 0:
        return max(start, 0) + (len(part) - 1 if outward > 0 else 0)
    return max(start, 0) + (m + int(low[0]) if outward > 0 else int(low[-1]))


def fixed_bounds(beat: F64, r: int, period: int, rules: Rules = RULES) -> Bounds:
    """Bounds of a beat at 500 samples a second, R at `r`, the next one `period` samples on; positions at
    2000."""
    fine = resampled(beat, len(beat) * UP)
    w = spline_wavelet(
        fine, 1 + max(rules.qrs_scale, rules.p_scale, rules.p_edge, rules.t_scale, rules.t_edge)
    )
    end, long = len(fine) - 1, period * UP
    found = Bounds(r * UP)
    on, off = qrs_bounds(boxcar(np.abs(w[rules.qrs_scale]), _samples(SMOOTH_MS)), found.r, rules)
    start, stop = (
        off + _samples(60),
        min(end, found.r + int(0.62 * long) + _samples(20), found.r + _samples(550)),
    )
    at = best_crossing(w[rules.t_scale][start:stop], fine[start:stop], 0.25) if stop - start >= 40 else None
    if at is not None:
        found.t = start + at
        low, high = max(found.t - _samples(200), off), min(found.t + _samples(T_EDGE_MS), end)
        found.t_on = edge(w[rules.t_edge], low, found.t, rules.t_off, outward=-1)
        found.t_off = edge(w[rules.t_edge], found.t, high, rules.t_off, outward=1)
    # P lies behind the T wave of the beat before.
    free = 0 if found.t_off is None else found.t_off + _samples(T_GAP_MS) - long
    start, stop = max(0, free, on - int(min(_samples(P_REACH_MS), 0.6 * long))), on - _samples(8)
    at = best_crossing(w[rules.p_scale][start:stop], fine[start:stop], 0.02) if stop - start >= 40 else None
    if at is not None:
        found.p = start + at
        low, high = max(found.p - _samples(P_EDGE_MS), free), min(found.p + _samples(P_EDGE_MS), on)
        found.p_on = edge(w[rules.p_edge], low, found.p, rules.p_on, outward=-1)
        found.p_off = edge(w[rules.p_edge], found.p, high, rules.p_on, outward=1)
    found.qrs_on, found.qrs_off = on, off
    found.q, found.s = (at * UP for at in seeds(beat, r))
    return _moved(found, rules, end)


def _moved(found: Bounds, rules: Rules, end: int) -> Bounds:
    for name in ("qrs_on", "qrs_off", "p_on", "t_off"):
        at = getattr(found, name)
        if at is not None:
            setattr(found, name, min(max(at + round(getattr(rules, f"{name}_ms") * FINE / 1000), 0), end))
    return found


def _samples(ms: float) -> int:
    return round(ms * FINE / 1000)


def p_is_there(beat: F64, found: Bounds, noise: float) -> bool:
    """Whether P stands out: its height above both its feet is more than twice the noise and 2 % of the
    QRS."""
    if found.p is None or found.p_on is None or found.p_off is None:
        return False
    on, top, off = found.p_on // UP, found.p // UP, min(found.p_off // UP, len(beat) - 1)
    height = abs(float(beat[top]) - 0.5 * float(beat[on] + beat[off]))
    span = beat[max(found.r // UP - 30, 0) : found.r // UP + 30]
    return height > max(2 * noise, 0.02 * float(np.ptp(span)))
