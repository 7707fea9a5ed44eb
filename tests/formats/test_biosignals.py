"""WFDB, EDF and CSV signals: as the libraries of their makers read them, and refusals."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haversack.core.errors import DamagedFileError, UserError
from haversack.formats.edf import read_edf
from haversack.formats.signal_csv import read_signal_csv
from haversack.formats.wfdb import BEATS, read_marks, read_wfdb


def record(folder: Path, form: str, samples: np.ndarray, gain: str = "200/mV") -> Path:
    """A WFDB record of whole numbers [n, channels], written here."""
    flat = samples.ravel().astype(np.int64)
    if form == "212":
        flat = np.concatenate([flat, np.zeros(len(flat) % 2, np.int64)])
        low, high = flat[::2] & 0xFFF, flat[1::2] & 0xFFF
        body = np.stack([low & 0xFF, low >> 8 | (high >> 8) << 4, high & 0xFF], 1).astype(np.uint8).tobytes()
    elif form == "24":
        body = b"".join(int(value).to_bytes(3, "little", signed=True) for value in flat)
    else:
        body = flat.astype({"16": "<i2", "32": "<i4", "61": ">i2"}[form]).tobytes()
    (folder / "r.dat").write_bytes(body)
    lines = [f"r {samples.shape[1]} 250 {len(samples)}"]
    lines += [f"r.dat {form} {gain} 12 0 0 0 0 lead{at}" for at in range(samples.shape[1])]
    (folder / "r.hea").write_text("\n".join(lines) + "\n# <age>: 51\n")
    return folder / "r.hea"


@pytest.mark.parametrize("form", ["16", "212", "24", "32", "61"])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_every_format_comes_back(form: str, channels: int, tmp_path: Path) -> None:
    most = 2047 if form == "212" else 30_000
    whole = np.random.default_rng(0).integers(-most, most, (101, channels))
    found = read_wfdb(record(tmp_path, form, whole))
    assert np.array_equal(found.samples, whole / 200)
    assert found.rate == 250 and found.units == ("mV",) * channels and found.facts == {"age": "51"}


@pytest.mark.parametrize("form", ["16", "212", "24"])
def test_as_the_wfdb_package_reads_it(form: str, tmp_path: Path) -> None:
    wfdb = pytest.importorskip("wfdb")
    whole = np.random.default_rng(1).integers(-2000, 2000, (60, 2))
    path = record(tmp_path, form, whole, "123.5(7)/mV")
    assert np.allclose(wfdb.rdrecord(str(path.with_suffix(""))).p_signal, read_wfdb(path).samples, atol=1e-12)


def test_record_100_has_2273_beats(data: Callable[[str], Path]) -> None:
    found = read_wfdb(data("ecg/100.hea"))
    assert found.samples.shape == (650_000, 2) and found.rate == 360 and found.names == ("MLII", "V5")
    assert found.samples[0, 0] == pytest.approx((995 - 1024) / 200)
    beats = [mark for mark in read_marks(data("ecg/100.atr")) if mark.symbol in BEATS]
    assert len(beats) == 2273
    assert 60 * len(beats) / (650_000 / 360) == pytest.approx(75.5, abs=0.1)


def damaged(tmp_path: Path, change: Callable[[str], str]) -> Path:
    path = record(tmp_path, "16", np.zeros((50, 2), np.int64))
    path.write_text(change(path.read_text()))
    return path


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("r 2 250 50", "r 2 250 5000", "5000 samples"),
        ("r 2 250 50", "r 9 250 50", "describes 2"),
        ("r 2 250 50", "r 2 0 50", "0 samples a second"),
        ("r 2 250 50", "r x", "no count of signals"),
        ("r.dat 16", "../r.dat 16", "none beside it"),
        ("r.dat 16", "r.dat 310", "format 310, which is not read"),
        ("r 2 250 50", "r/3 2 250 50", "several segments"),
        ("r.dat", "s.dat", "cannot be read"),
    ],
)
def test_damaged_records_are_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = damaged(tmp_path, lambda text: text.replace(old, new))
    with pytest.raises(UserError, match=said):
        read_wfdb(path)


@given(st.binary(max_size=80))
def test_marks_of_any_bytes_are_read_or_refused(data: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "r.atr")
        path.write_bytes(data)
        try:
            found = read_marks(path)
        except UserError:
            return
        assert all(mark.sample >= 0 for mark in found)


def edf(path: Path, digital: np.ndarray, *, records: int = 4, per: int = 50, extra: str = "") -> Path:
    """An EDF file of one or more signals [n, channels], written here by the letter of the format."""
    count = digital.shape[1]

    def cells(width: int, values: list[str]) -> bytes:
        return b"".join(value.ljust(width).encode() for value in values)

    head = "0".ljust(8) + "X".ljust(80) + "Y".ljust(80) + "01.01.2501.01.25" + str(256 * (count + 1)).ljust(8)
    head += extra.ljust(44) + str(records).ljust(8) + "0.2".ljust(8) + str(count).ljust(4)
    body = head.encode()
    body += cells(16, [f"ECG {name}" for name in ("I", "II", "V1")[:count]]) + cells(80, [""] * count)
    body += cells(8, ["uV"] * count) + cells(8, ["-3276.8"] * count) + cells(8, ["3276.7"] * count)
    body += cells(8, ["-32768"] * count) + cells(8, ["32767"] * count) + cells(80, [""] * count)
    body += cells(8, [str(per)] * count) + cells(32, [""] * count)
    for at in range(records):
        body += digital[at * per : (at + 1) * per].T.astype("<i2").tobytes()
    path.write_bytes(body)
    return path


def test_edf_comes_back_and_as_pyedflib_reads_it(tmp_path: Path) -> None:
    pyedflib = pytest.importorskip("pyedflib")
    whole = np.random.default_rng(0).integers(-30_000, 30_000, (200, 2))
    path = edf(tmp_path / "a.edf", whole)
    found = read_edf(path)
    assert found.rate == 250 and found.names == ("ECG I", "ECG II") and found.units == ("uV", "uV")
    assert np.allclose(found.samples, whole / 10)
    with pyedflib.EdfReader(str(path)) as theirs:
        assert np.allclose(theirs.readSignal(1), found.samples[:, 1])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data[:300], "ends early"),
        (lambda data: data[:-100], "4 records are promised and 3"),
        (lambda data: data.replace(b"-32768", b"32767 "), "range of ECG I is empty"),
        (lambda data: data[:252] + b"zwei" + data[256:], "count of signals is 'zwei'"),
        (lambda data: data[:192] + b"EDF+D" + data[197:], "interrupted"),
        (lambda data: b"1" + data[1:], "does not begin"),
    ],
)
def test_damaged_edf_is_refused(tmp_path: Path, change: Callable[[bytes], bytes], said: str) -> None:
    path = edf(tmp_path / "a.edf", np.zeros((200, 1), np.int64))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match=said):
        read_edf(path)


def test_numbers_in_text(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text("1.5\n-2\n\n3e-1\n")
    found = read_signal_csv(path, 250)
    assert found.samples[:, 0].tolist() == [1.5, -2, 0.3] and found.rate == 250
    path.write_text("time_ms,II (mV),V1\n" + "".join(f"{at * 4},{at},{-at}\n" for at in range(20)))
    found = read_signal_csv(path)
    assert found.rate == pytest.approx(250) and found.units == ("mV", "") and found.names[0] == "II (mV)"
    path.write_text("time;II (mV)\n" + "".join(f"{at * 0.004:.3f};-0,{at:02d}\n" for at in range(20)))
    found = read_signal_csv(path)  # a decimal comma, beside semicolons alone
    assert found.samples[7, 0] == -0.07 and found.rate == pytest.approx(250)


@pytest.mark.parametrize(
    ("text", "rate", "said"),
    [
        ("1\n2\n", None, "add --fs"),
        ("1\n2\n", 0.1, "fs=0.1"),
        ("t,a\n0,1\n1,x\n", None, "line 3: 'x' is no number"),
        ("t,a\n0,1\n1,2\n5,2\n6,2\n", None, "gap after row 2"),
        ("t,a\n0,1\n2,2\n1,2\n", None, "do not run forward"),
        ("t,a\n0,1\n1,2\n2,2\n", 500, "contradicts the times"),
    ],
)
def test_text_that_is_no_signal_is_refused(tmp_path: Path, text: str, rate: float | None, said: str) -> None:
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(UserError, match=said):
        read_signal_csv(tmp_path / "s.csv", rate)


def test_bytes_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_bytes(struct.pack("<4d", 1, 2, 3, 4) + b"\xff\xfe")
    with pytest.raises(DamagedFileError):
        read_signal_csv(tmp_path / "s.csv", 250)
