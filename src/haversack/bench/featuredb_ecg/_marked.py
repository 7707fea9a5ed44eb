"""Records with marks of every wave (LUDB, QTDB): the median PR, QRS and QT that cardiologists gave."""

from __future__ import annotations

import itertools
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from haversack.bench._cache import cache_folder
from haversack.core._files import fingerprint, partial_path, put_in_place
from haversack.core.errors import DamagedFileError
from haversack.formats._signals import Mark
from haversack.formats.wfdb import read_marks, read_wfdb

F64 = NDArray[np.float64]
LEADS = ("i", "ii", "iii", "avr", "avl", "avf", "v1", "v2", "v3", "v4", "v5", "v6")


@dataclass(frozen=True)
class Marked:
    """One lead of a record: `samples` [n] in mV, the medians of its marked beats in ms (nan without), RR in
    ms, the R marks."""

    number: int
    samples: F64
    rate: float
    bounds: tuple[float, float] | None
    pr: float
    qrs: float
    qt: float
    rr: float
    peaks: tuple[int, ...]

    @property
    def qtc(self) -> float:
        """QT by Bazett."""
        return self.qt / float(np.sqrt(self.rr / 1000))


def waves(marks: Sequence[Mark], rate: float) -> tuple[float, float, float, float, tuple[int, ...]]:
    """(PR, QRS, QT, RR in ms, R samples): medians over beats; P and T are those next to a beat's QRS."""
    found = []
    for at, mark in enumerate(marks):
        if mark.symbol in "pNt":
            on = marks[at - 1].sample if at and marks[at - 1].symbol == "(" else None
            off = marks[at + 1].sample if at + 1 < len(marks) and marks[at + 1].symbol == ")" else None
            found.append((mark.symbol, on, mark.sample, off))
    pr, qrs, qt, peaks = [], [], [], []
    for at, (symbol, on, peak, off) in enumerate(found):
        if symbol != "N" or on is None or off is None:
            continue
        peaks.append(peak)
        qrs.append(off - on)
        before = found[at - 1] if at else None
        if before is not None and before[0] == "p" and before[1] is not None:
            pr.append(on - before[1])
        behind = found[at + 1] if at + 1 < len(found) else None
        if behind is not None and behind[0] == "t" and behind[3] is not None:
            qt.append(behind[3] - on)
    steps = [after - before for before, after in itertools.pairwise(peaks)]
    medians = [
        float(np.median(each)) * 1000 / rate if each else float("nan") for each in (pr, qrs, qt, steps)
    ]
    return medians[0], medians[1], medians[2], medians[3], tuple(peaks)


def records(path: Path, lead: str) -> tuple[Marked, ...]:
    """All records of LUDB in a folder, a tar or a zip archive, one lead of each, by number."""
    folder = path if path.is_dir() else unpacked(path)
    found = []
    for header in folder.rglob("*.hea"):
        if not header.stem.isdigit() or not header.with_suffix(f".{lead}").is_file():
            continue
        signals = read_wfdb(header)
        at = [name.lower() for name in signals.names].index(lead)
        marked = waves(read_marks(header.with_suffix(f".{lead}")), signals.rate)
        found.append(
            Marked(int(header.stem), signals.samples[:, at], signals.rate, signals.bounds[at], *marked)
        )
    return tuple(sorted(found, key=lambda one: one.number))


def unpacked(path: Path) -> Path:
    """The archive's WFDB files as a folder in the cache; files alone, each by its bare name."""
    state = path.stat()
    goal = cache_folder() / "ludb" / fingerprint(f"{path} {state.st_size} {state.st_mtime_ns}")
    if goal.is_dir():
        return goal
    goal.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(goal)
    partial.mkdir()
    endings = (".hea", ".dat", *(f".{lead}" for lead in LEADS))
    for name, data in _members(path):
        bare = Path(name).name
        if bare.endswith(endings) and bare.split(".")[0].isdigit():
            (partial / bare).write_bytes(data)
    put_in_place(partial, goal)
    return goal


def _members(path: Path) -> Iterable[tuple[str, bytes]]:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    yield name, archive.read(name)
            return
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isfile() else None
                if file is not None:
                    yield member.name, file.read()
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise DamagedFileError(path, f"it is no whole archive ({error})", field="data") from error
