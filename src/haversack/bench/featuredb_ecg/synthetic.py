"""ECGs made of Gaussian waves, whose PR and QT are known exactly: error at 20 dB, response to each
interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row
from haversack.bench.featuredb_ecg._bench import bench
from haversack.core.errors import UserError
from haversack.sense.ecg import read_ecg

F64 = NDArray[np.float64]
RATE = 500
EDGE = 2.5
"""A wave begins and ends so many of its widths from its middle."""
P_MS, QRS_MS, T_MS = 100.0, 90.0, 180.0


def synthetic(
    pr_ms: float,
    qt_ms: float,
    rate_bpm: float,
    *,
    snr_db: float,
    seed: int,
    seconds: float = 10.0,
    t_mv: float = 0.3,
) -> F64:
    """An ECG [n] in mV at 500 samples a second: P, Q, R, S and T as Gaussians whose edges lie at 2.5 widths,
    noise at `snr_db` below the power of the whole."""
    random = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) * 1000 / RATE
    out = np.zeros(len(time))
    period = 60_000 / rate_bpm

    def wave(begin: float, end: float, height: float) -> None:
        middle, width = (begin + end) / 2, (end - begin) / (2 * EDGE)
        near = np.abs(time - middle) < 6 * width
        out[near] += height * np.exp(-0.5 * ((time[near] - middle) / width) ** 2)

    onset = 100.0 - period
    while onset < time[-1] + period:
        wave(onset - pr_ms, onset - pr_ms + P_MS, 0.15)
        third = QRS_MS / 3
        wave(onset, onset + third, -0.1)
        wave(onset + 0.5 * third, onset + 2.5 * third, 1.0)
        wave(onset + 2 * third, onset + 3 * third, -0.2)
        wave(onset + qt_ms - T_MS, onset + qt_ms, t_mv)
        onset += period
    power = float(np.mean(out**2))
    return np.asarray(out + random.standard_normal(len(out)) * np.sqrt(power / 10 ** (snr_db / 10)))


def measured(cases: Sequence[tuple[float, float, float]], snr_db: float, seed: int) -> F64:
    """[cases, (PR, QT)] by the fixed profile; nan where it gives none."""
    out = []
    for at, (pr, qt, rate) in enumerate(cases):
        try:
            found = read_ecg(synthetic(pr, qt, rate, snr_db=snr_db, seed=seed + at), RATE)
            out.append([found.value(name) or np.nan for name in ("pr_ms", "qt_ms")])
        except UserError:
            out.append([np.nan, np.nan])
    return np.array(out, np.float64)


def sweep() -> list[tuple[float, float, float]]:
    """(PR, QT, rate) over the ranges of the specification, each beat's waves apart from the next one's."""
    cases = [
        (float(pr), float(qt), float(rate))
        for pr in (100, 140, 180, 220, 260, 300)
        for qt in (300, 360, 420, 480, 520)
        for rate in (45, 60, 75, 90, 120)
        if pr + qt + 40 < 60_000 / rate
    ]
    return cases[::2]


@bench.measure(
    Row(
        "synthetic-pr",
        "PR of Gaussian ECGs at 20 dB: mean absolute error",
        "ms",
        "quality",
        Bar("<=", 8.0),
        judged="ours",
    ),
    Row(
        "synthetic-qt",
        "QT of Gaussian ECGs at 20 dB: mean absolute error",
        "ms",
        "quality",
        Bar("<=", 8.0),
        judged="ours",
    ),
    Row(
        "slope-pr",
        "measured PR over true PR: the slope of the line",
        "ms / ms",
        "quality",
        Bar("in", (0.95, 1.05)),
        judged="ours",
    ),
    Row(
        "slope-qt",
        "measured QT over true QT: the slope of the line",
        "ms / ms",
        "quality",
        Bar("in", (0.95, 1.05)),
        judged="ours",
    ),
    seconds=40,
)
def sweeps(run: Run) -> Outcomes:
    cases = sweep()
    truth = np.array(cases)[:, :2]
    found = measured(cases, 20.0, run.seed)
    others = {snr: measured(cases[::4], snr, run.seed) for snr in (10.0, 30.0)}
    out = {}
    for at, name in enumerate(("pr", "qt")):
        known = np.isfinite(found[:, at])
        missed = found[known, at] - truth[known, at]
        notes = [f"bias {missed.mean():+.1f} ms, {int(known.sum())} of {len(cases)} ECGs"]
        for snr, one in others.items():
            notes.append(f"at {snr:g} dB {np.nanmean(np.abs(one[:, at] - truth[::4, at])):.1f} ms")
        out[f"synthetic-{name}"] = Outcome.single(float(np.abs(missed).mean()), note="; ".join(notes))
        out[f"slope-{name}"] = Outcome.single(float(np.polyfit(truth[known, at], found[known, at], 1)[0]))
    return out
