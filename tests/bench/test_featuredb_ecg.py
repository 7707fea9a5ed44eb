"""The bench of FeatureDB ECG: marks become intervals, even records alone are judged, absent data is a
reason."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import numpy as np
import pytest

from haversack.bench import Run, Unavailable, find_bench
from haversack.bench.featuredb_ecg import _bench, accuracy, alarms
from haversack.bench.featuredb_ecg._marked import waves
from haversack.bench.featuredb_ecg.synthetic import synthetic
from haversack.formats._signals import Mark

CODES = {"(": 39, ")": 40, "p": 24, "t": 27, "N": 1}


def marks_file(marks: list[Mark]) -> bytes:
    """A file of marks as WFDB and QTDB have it."""
    out, before = b"", 0
    for mark in marks:
        step, before = mark.sample - before, mark.sample
        if step > 1023:
            out += struct.pack("<HHH", 59 << 10, step >> 16, step & 0xFFFF)
            step = 0
        out += struct.pack("<H", CODES[mark.symbol] << 10 | step)
    return out + b"\0\0"


def beat(at: int, *, t_onset: bool = True) -> list[Mark]:
    found = [
        ("(", -80),
        ("p", -60),
        (")", -40),
        ("(", 0),
        ("N", 20),
        (")", 45),
        ("(", 110),
        ("t", 150),
        (")", 190),
    ]
    return [Mark(at + step, symbol) for symbol, step in found if t_onset or (symbol, step) != ("(", 110)]


def test_marks_become_medians() -> None:
    marks = [*beat(1000), *beat(1500, t_onset=False), *beat(2000)]
    pr, qrs, qt, rr, peaks = waves(marks, 500.0)
    assert (pr, qrs, qt, rr, peaks) == (160, 90, 380, 1000, (1020, 1520, 2020))
    assert np.isnan(waves([Mark(3, "N")], 500.0)[0])


def test_rows_and_kinds() -> None:
    bench = find_bench("3")
    assert bench is find_bench("featuredb-ecg")
    ids = {row.id for row in bench.rows}
    assert {
        "pr-mae",
        "qt-over-published",
        "auc-pr",
        "auc-qtc",
        "record-ms",
        "stream-over-batch",
        "qtdb-qt",
    } <= ids
    assert {row.kind for row in bench.rows if row.quick} == {row.kind for row in bench.rows}


def test_absent_records_are_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HAVERSACK_DATA", str(tmp_path))
    monkeypatch.setenv("HAVERSACK_CACHE", str(tmp_path / "cache"))
    _bench.ludb.cache_clear()
    run = Run(False, 1, time.monotonic() + 600)
    with pytest.raises(Unavailable, match="LUDB is not at hand"):
        accuracy.even("fixed", "qt")
    with pytest.raises(Unavailable, match="QTDB is not at hand"):
        accuracy.qtdb(run)


def test_a_record_of_qtdb_is_read(tmp_path: Path) -> None:
    """250 Hz, format 212, marks of the first cardiologist around a few beats, T without an onset."""
    x = synthetic(160, 380, 60, snr_db=40, seed=1, seconds=40)[::2]
    whole = np.rint(x * 200).astype(np.int64)
    low, high = whole[::2] & 0xFFF, whole[1::2] & 0xFFF
    body = np.stack([low & 0xFF, low >> 8 | (high >> 8) << 4, high & 0xFF], 1).astype(np.uint8)
    (tmp_path / "sel1.dat").write_bytes(body.tobytes())
    (tmp_path / "sel1.hea").write_text(f"sel1 1 250 {len(whole)}\nsel1.dat 212 200 12 0 0 0 0 ECG1\n")
    marks = [mark for at in (2500, 2800, 3100) for mark in beat(at, t_onset=False)]
    (tmp_path / "sel1.q1c").write_bytes(marks_file(marks))
    (found,) = accuracy.qtdb_records(tmp_path)
    assert found.qt == 760 and found.rate == 250
    assert len(found.samples) == marks[-1].sample - marks[0].sample + 1000


def test_the_area_under_the_curve() -> None:
    labels = np.array([True, True, False, False])
    assert alarms.area(np.array([4.0, 3, 2, 1]), labels) == 1
    assert alarms.area(np.array([1.0, 1, 1, 1]), labels) == 0.5
    assert alarms.area(np.array([1.0, -np.inf, 2, 0]), labels) == 0.25
