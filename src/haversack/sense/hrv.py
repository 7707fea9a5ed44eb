"""Variability of heart beats: of their intervals in time, frequency and order, and of their shape.

Papers: Task Force of the ESC and NASPE, "Heart rate variability: standards of measurement" (1996); the shape
after FeatureDB (arXiv 2502.17499).
What is here: SDNN, RMSSD, pNN50; power of the Lomb-Scargle periodogram in VLF 0.003-0.04, LF 0.04-0.15 and HF
0.15-0.4 Hz; Poincare SD1 and SD2, sample entropy, detrended fluctuation, Higuchi's fractal dimension. Shape:
each beat is 50 points at equal arc length, neighbours are compared by dynamic time warping, and the spread of
the costs over the beats is summed in 0.3 to 0.55 cycles a beat.
What we changed: a figure that the recording is too short for is None, with a reason, instead of a number.
Cost: a few milliseconds for some hundred beats; entropy and warping are quadratic.
Limits: intervals are taken as they come, beats that are not normal included."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.sense._ecg_signal import scipy_signal

SYSTEM = 3

F64 = NDArray[np.float64]
BANDS = {"vlf": (0.003, 0.04), "lf": (0.04, 0.15), "hf": (0.15, 0.4)}
BAND_BEATS, ENTROPY_BEATS, FRACTAL_BEATS, SHAPE_BEATS = 60, 30, 64, 16
POINTS = 50


def time_domain(rr_ms: F64) -> dict[str, float]:
    """SDNN and RMSSD in ms, pNN50 in percent, of intervals in ms (two at least)."""
    steps = np.diff(rr_ms)
    return {
        "mean_rr_ms": float(rr_ms.mean()),
        "sdnn_ms": float(rr_ms.std(ddof=1)),
        "rmssd_ms": float(np.sqrt(np.mean(steps**2))),
        "pnn50_percent": float(100 * np.mean(np.abs(steps) > 50)),
    }


def frequency_domain(rr_ms: F64) -> dict[str, float]:
    """Power in ms^2 of each band, by the periodogram of unevenly spaced intervals, and LF / HF."""
    times = np.cumsum(rr_ms) / 1000
    values = rr_ms - rr_ms.mean()
    grid = np.linspace(0.003, 0.4, 400)
    power = scipy_signal().lombscargle(times, values, 2 * np.pi * grid)
    density = power * 2 * (times[-1] - times[0]) / len(values)
    step = grid[1] - grid[0]
    found = {
        f"{name}_ms2": float(density[(grid >= low) & (grid < high)].sum() * step)
        for name, (low, high) in BANDS.items()
    }
    found["lf_hf"] = found["lf_ms2"] / found["hf_ms2"] if found["hf_ms2"] > 0 else math.inf
    return found


def poincare(rr_ms: F64) -> dict[str, float]:
    """SD1 (across) and SD2 (along the diagonal) of each interval against the one before, in ms."""
    before, after = rr_ms[:-1], rr_ms[1:]
    return {
        "sd1_ms": float(np.std((after - before) / math.sqrt(2))),
        "sd2_ms": float(np.std((after + before) / math.sqrt(2))),
    }


def sample_entropy(x: F64, length: int = 2, tolerance: float = 0.2) -> float | None:
    """Minus the log of the share of like pairs of `length` that stay alike one step on; None without any."""
    limit = tolerance * float(x.std())

    def pairs(size: int) -> int:
        rows = np.lib.stride_tricks.sliding_window_view(x, size)[: len(x) - length]
        away = np.abs(rows[:, None] - rows[None]).max(-1)
        return int((away <= limit).sum() - len(rows))

    short, long = pairs(length), pairs(length + 1)
    return -math.log(long / short) if short and long else None


def fluctuation(x: F64, sizes: tuple[int, ...] = (4, 6, 8, 11, 16)) -> float:
    """The exponent of detrended fluctuation over boxes of 4 to 16 beats (alpha 1); 0.5 for noise."""
    walk = np.cumsum(x - x.mean())
    found = []
    for size in sizes:
        boxes = walk[: len(walk) // size * size].reshape(-1, size)
        at = np.arange(size) - (size - 1) / 2
        slope = boxes @ at / (at @ at)
        left = boxes - boxes.mean(1, keepdims=True) - slope[:, None] * at
        found.append(math.sqrt(float(np.mean(left**2))) or 1e-12)
    return float(np.polyfit(np.log(sizes), np.log(found), 1)[0])


def higuchi(x: F64, most: int = 8) -> float:
    """Higuchi's fractal dimension, 1 for a line, 2 for noise."""
    n, lengths = len(x), []
    for step in range(1, most + 1):
        each = []
        for start in range(step):
            part = x[start::step]
            if len(part) > 1:
                each.append(np.abs(np.diff(part)).sum() * (n - 1) / ((len(part) - 1) * step * step))
        lengths.append(float(np.mean(each)) or 1e-12)
    return float(np.polyfit(np.log(1 / np.arange(1, most + 1)), np.log(lengths), 1)[0])


def arc_points(beat: F64, count: int = POINTS) -> F64:
    """`count` values of a beat at equal shares of the way that its amplitude goes."""
    way = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(beat)))])
    return np.interp(np.linspace(0, way[-1], count), way, beat)


def warped_cost(one: F64, other: F64, reach: int = 3) -> float:
    """Cost of the best monotone match of two rows of equal length, at most `reach` points apart."""
    n = len(one)
    before = np.full(n + 1, np.inf)
    before[0] = 0.0
    for at in range(1, n + 1):
        now = np.full(n + 1, np.inf)
        for other_at in range(max(1, at - reach), min(n, at + reach) + 1):
            step = min(before[other_at], now[other_at - 1], before[other_at - 1])
            now[other_at] = abs(one[at - 1] - other[other_at - 1]) + step
        before = now
    return float(before[n])


def shape_variability(beats: list[F64]) -> float:
    """Sum of the squared power of neighbours' costs in 0.3 to 0.55 cycles a beat."""
    points = [arc_points(beat) for beat in beats]
    costs = np.array([warped_cost(one, other) for one, other in itertools.pairwise(points)])
    grid = np.linspace(0.3, 0.55, 64)
    power = scipy_signal().lombscargle(
        np.arange(len(costs), dtype=np.float64), costs - costs.mean(), 2 * np.pi * grid
    )
    return float(np.sum(power**2))


def variability(rr_ms: F64, beats: list[F64]) -> tuple[dict[str, Any], dict[str, str]]:
    """All figures, None where there are too few beats, and the reasons by name."""
    out: dict[str, Any] = {}
    reasons: dict[str, str] = {}

    def take(names: tuple[str, ...], fewest: int, made: Any, count: int = len(rr_ms)) -> None:
        if count < fewest:
            out.update(dict.fromkeys(names))
            reasons.update(dict.fromkeys(names, f"needs {fewest} beats in a row, there are {count}"))
        else:
            out.update(made())

    take(("mean_rr_ms", "sdnn_ms", "rmssd_ms", "pnn50_percent"), 2, lambda: time_domain(rr_ms))
    take(("vlf_ms2", "lf_ms2", "hf_ms2", "lf_hf"), BAND_BEATS, lambda: frequency_domain(rr_ms))
    take(("sd1_ms", "sd2_ms"), 3, lambda: poincare(rr_ms))
    take(("sample_entropy",), ENTROPY_BEATS, lambda: {"sample_entropy": sample_entropy(rr_ms)})
    fractal = lambda: {"dfa_alpha1": fluctuation(rr_ms), "higuchi": higuchi(rr_ms)}  # noqa: E731
    take(("dfa_alpha1", "higuchi"), FRACTAL_BEATS, fractal)
    take(
        ("shape_variability",),
        SHAPE_BEATS,
        lambda: {"shape_variability": shape_variability(beats)},
        len(beats),
    )
    return out, reasons
