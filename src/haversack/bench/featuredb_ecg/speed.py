"""Time and working memory of a record, and a stream beside the whole."""

from __future__ import annotations

import time
import tracemalloc
from functools import partial

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import MIN_PAIRS, Bar, Outcome, Outcomes, Row, Unavailable
from haversack.bench.featuredb_ecg._bench import bench, part
from haversack.bench.featuredb_ecg.synthetic import synthetic
from haversack.core._datasets import local_path
from haversack.core.errors import UserError
from haversack.formats.wfdb import BEATS, read_marks, read_wfdb
from haversack.sense import EcgStream, read_ecg
from haversack.sense._ecg_fixed import cleaned, fixed_peaks
from haversack.sense._ecg_signal import RATE, resampled

FIELDS = ("pr_ms", "qrs_ms", "qt_ms", "rr_ms")


@bench.measure(
    Row(
        "record-ms",
        "10 s of one lead, the fixed profile",
        "ms",
        "time",
        Bar("<=", 100.0),
        judged="ours",
        quick=True,
    ),
    Row(
        "record-bytes",
        "greatest memory that 10 s of one lead take while they are measured",
        "MiB",
        "memory",
        Bar("<=", 1.0),
        judged="ours",
        quick=True,
    ),
    Row("stream-bytes", "state of a stream", "KiB", "memory", Bar("<=", 64.0), judged="ours", quick=True),
    seconds=20,
    quick_seconds=10,
)
def costs(run: Run) -> Outcomes:
    signal = synthetic(160, 400, 70, snr_db=25, seed=run.seed)

    def timed(profile: str) -> float:
        start = time.perf_counter()
        read_ecg(signal, 500.0, profile=profile)
        return (time.perf_counter() - start) * 1000

    timed("fixed"), timed("published")
    taken = run.interleave({name: partial(timed, name) for name in ("fixed", "published")}, MIN_PAIRS)
    tracemalloc.start()
    read_ecg(signal, 500.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "record-ms": Outcome.of(taken, ours="fixed", baseline="published"),
        "record-bytes": Outcome.single(
            peak / 2**20, note="as Python's allocators count it, the result included"
        ),
        "stream-bytes": Outcome.single(EcgStream(500.0).nbytes / 1024),
    }


@bench.measure(
    Row(
        "stream-over-batch",
        "a stream's reading beside that of the same ten seconds as a whole: the greatest difference",
        "ms",
        "quality",
        Bar("<=", 2.0),
        judged="ours",
    ),
    seconds=60,
)
def streams(run: Run) -> Outcomes:
    worst, compared = 0.0, 0
    for one in part(odd=False)[:20]:
        stream = EcgStream(one.rate)
        for start in range(0, len(one.samples), 125):
            fresh = stream.push(one.samples[start : start + 125])
            if fresh is None or start < 3000:
                continue
            end = start + 125
            try:
                whole = read_ecg(one.samples[max(0, end - 5000) : end], one.rate)
            except UserError:
                continue
            for name in FIELDS:
                ours, theirs = fresh.value(name), whole.value(name)
                if (ours is None) != (theirs is None):
                    worst = float("inf")
                elif ours is not None and theirs is not None:
                    worst = max(worst, abs(ours - theirs))
            compared += 1
    return {"stream-over-batch": Outcome.single(worst, note=f"{compared} readings of 20 records")}


@bench.measure(
    Row(
        "mitbih-100",
        "beats found in the 30 minutes of MIT-BIH 100 within 75 ms of a mark, as a share of the marks",
        "share",
        "quality",
        Bar(">=", 0.99),
        judged="ours",
    ),
    seconds=20,
)
def half_an_hour(run: Run) -> Outcomes:
    path = local_path("100.hea")
    if path is None or local_path("100.dat") is None or local_path("100.atr") is None:
        raise Unavailable(
            "MIT-BIH record 100 is not at hand; let HAVERSACK_DATA name a folder with ecg/100.*"
        )
    signals = read_wfdb(path)
    marks = np.array([mark.sample for mark in read_marks(path.with_suffix(".atr")) if mark.symbol in BEATS])
    lead = signals.samples[:, 0]
    peaks = fixed_peaks(cleaned(resampled(lead, int(len(lead) / signals.rate * RATE)))) * signals.rate / RATE
    near = np.array([np.abs(peaks - mark).min() for mark in marks]) <= 0.075 * signals.rate
    return {
        "mitbih-100": Outcome.single(
            float(near.mean()),
            note=f"{len(marks)} marks, {len(peaks)} peaks, "
            f"{60 * len(peaks) * signals.rate / len(lead):.1f} beats a minute",
        )
    }
