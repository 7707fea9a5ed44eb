"""Steps 1 to 5 of FeatureDB on one lead: rate, baseline, scale, R peaks, the average beat.

Pure functions on arrays [n] at a rate; what the public algorithm does, its slips included. The gradient
detector is the one that it calls, of NeuroKit (Makowski et al., 2021)."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import MissingExtraError

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
RATE = 500
"""Samples a second of everything but the delineation."""


@functools.cache
def scipy_signal() -> Any:
    """scipy.signal. Raises MissingExtraError where it is not installed."""
    try:
        import scipy.signal
    except ImportError:
        raise MissingExtraError("reading an ECG", "scipy", "signals") from None
    return scipy.signal


def resampled(x: F64, count: int) -> F64:
    """`count` points on the straight lines between the points of x, end points kept."""
    if count == len(x):
        return np.asarray(x, np.float64).copy()
    return np.interp(np.linspace(0, 1, count), np.linspace(0, 1, len(x)), x)


def less_moving_mean(x: F64, reach: int = 3) -> F64:
    """x[i] minus the mean of x[i - reach .. i + reach]; the window shrinks at both ends."""
    sums = np.concatenate([[0.0], np.cumsum(x)])
    at = np.arange(len(x))
    low, high = np.maximum(at - reach, 0), np.minimum(at + reach + 1, len(x))
    return np.asarray(x - (sums[high] - sums[low]) / (high - low))


def histogram_scaled(x: F64, bins: int = 100) -> F64:
    """x over the width between the bins where 1 % and 99 % of the values lie below."""
    counts, edges = np.histogram(x, bins)
    share = np.cumsum(counts) / len(x)
    low = edges[:-1][share > 0.01][0]
    high = edges[:-1][share < 0.99][-1]
    return np.asarray(x / ((high - low) or 1.0))


@functools.cache
def band(low: float, high: float, rate: float, order: int = 4) -> tuple[F64, F64]:
    """Numerator and denominator of a Butterworth band-pass."""
    b, a = scipy_signal().butter(order, [low, high], "bandpass", fs=rate)
    return b, a


@functools.cache
def band_sections(low: float, high: float, rate: float, order: int = 4) -> F64:
    """The same as sections of second order, which stay exact at low edges."""
    return np.asarray(scipy_signal().butter(order, [low, high], "bandpass", fs=rate, output="sos"))


def zero_phase(x: F64, b: F64, a: F64) -> F64:
    """Forwards and backwards through a filter; a short signal is padded as far as it goes."""
    padding = min(3 * max(len(a), len(b)), len(x) - 1)
    return np.asarray(scipy_signal().filtfilt(b, a, x, padlen=padding))


@functools.cache
def notch(hertz: float, quality: float, rate: float) -> tuple[F64, F64]:
    """A filter that takes one frequency out."""
    b, a = scipy_signal().iirnotch(hertz, quality, rate)
    return b, a


def boxcar(x: F64, size: int) -> F64:
    """The mean of `size` samples around each, end values repeated."""
    before = size // 2
    wide = np.concatenate([np.full(before, x[0]), x, np.full(size - before, x[-1])])
    sums = np.concatenate([[0.0], np.cumsum(wide)])
    return np.asarray((sums[size:] - sums[:-size])[: len(x)] / size)


def gradient_peaks(x: F64, rate: float = RATE) -> I64:
    """R peaks: where the smoothed steepness stays above 1.5 times its running mean, the most prominent
    maximum, none within 0.3 s of the one before."""
    steep = boxcar(np.abs(np.gradient(x)), round(0.1 * rate))
    above = steep > 1.5 * boxcar(steep, round(0.75 * rate))
    begins = np.flatnonzero(~above[:-1] & above[1:])
    ends = np.flatnonzero(above[:-1] & ~above[1:])
    if len(begins) == 0:
        return np.empty(0, np.int64)
    ends = ends[ends > begins[0]]
    pairs = list(zip(begins, ends, strict=False))
    if not pairs:
        return np.empty(0, np.int64)
    shortest = 0.4 * float(np.mean([end - begin for begin, end in pairs]))
    found: list[int] = []
    for begin, end in pairs:
        if end - begin < shortest:
            continue
        peaks, facts = scipy_signal().find_peaks(x[begin:end], prominence=(None, None))
        if len(peaks):
            peak = int(begin + peaks[int(np.argmax(facts["prominences"]))])
            if peak - (found[-1] if found else 0) > round(0.3 * rate):
                found.append(peak)
    return np.asarray(found, np.int64)


def published_peaks(x: F64) -> I64:
    """R peaks of a signal at 500 samples a second as the public detector finds them."""
    x = zero_phase(x, *notch(50.0, 50.0, RATE))
    for low, high in ((0.5, 45.0), (3.0, 40.0)):
        x = zero_phase(x, *band(low, high, RATE))
    return gradient_peaks(x)


def average_beat(x: F64, peaks: I64, before: float = 0.35, after: float = 0.80) -> tuple[F64, int, int]:
    """(beat, index of R in it, median RR) in samples: the mean of all beats but the first and the last."""
    clean = zero_phase(x, *band(0.75, 35.0, RATE))
    period = int(np.median(np.diff(peaks)))
    left, right = round(before * period), round(after * period)
    beats = np.zeros((max(len(peaks) - 2, 1), left + right))
    for row, peak in enumerate(peaks[1:-1] if len(peaks) > 2 else peaks[:1]):
        low, high = max(0, peak - left), min(len(clean), peak + right)
        beats[row, low - (peak - left) : high - (peak - left)] = clean[low:high]
    return beats.mean(0), left, period
