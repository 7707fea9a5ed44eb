"""The bench object that the files of this folder add their rows to, and what they share."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.bench._harness import Bench
from haversack.bench._rows import Unavailable
from haversack.bench.featuredb_ecg._marked import Marked, records
from haversack.core._datasets import local_path
from haversack.core.errors import UserError
from haversack.sense.ecg import read_ecg

FILES = (
    "bench/featuredb_ecg/*.py",
    "bench/peers/neurokit.py",
    "sense/ecg.py",
    "sense/_ecg_*.py",
    "sense/hrv.py",
    "formats/wfdb.py",
    "formats/_signals.py",
)
F64 = NDArray[np.float64]
QUANTITIES = ("pr", "qrs", "qt")
FAR_MS = 50.0

bench = Bench("featuredb-ecg", number=3, watches=FILES)


@dataclass(frozen=True)
class Compared:
    """A quantity of a profile beside the marks: `error` in ms of the records where both have it, of `marked`
    ones. `values` and `truth` are aligned with it."""

    values: F64
    truth: F64
    marked: int

    @property
    def error(self) -> F64:
        return self.values - self.truth

    @property
    def mae(self) -> float:
        return float(np.abs(self.error).mean())

    @property
    def bias(self) -> float:
        return float(self.error.mean())

    @property
    def correlation(self) -> float:
        return float(np.corrcoef(self.values, self.truth)[0, 1])

    @property
    def outliers(self) -> str:
        """How many records are far off, and the correlation without them."""
        near = np.abs(self.error) <= FAR_MS
        left = float(np.corrcoef(self.values[near], self.truth[near])[0, 1])
        return (
            f"{int((~near).sum())} records are off by more than {FAR_MS:g} ms; without them r is {left:.2f}"
        )

    @property
    def words(self) -> str:
        """What a note says of it."""
        return (
            f"bias {self.bias:+.1f} ms, median error {float(np.median(np.abs(self.error))):.1f} ms, r "
            f"{self.correlation:.2f}, {len(self.values)} of {self.marked} marked records"
        )


@functools.cache
def ludb(lead: str = "ii") -> tuple[Marked, ...]:
    """LUDB's records at hand, by number. Raises Unavailable where there are none."""
    path = local_path("ludb")
    if path is None:
        raise Unavailable(
            "LUDB is not at hand; let HAVERSACK_DATA name a folder with ecg/ludb-1-100.tar.xz (docs/data.md)"
        )
    return records(path, lead)


def part(odd: bool, lead: str = "ii") -> tuple[Marked, ...]:
    """Of records 1 to 100 the odd ones (calibration) or the even ones (test)."""
    return tuple(one for one in ludb(lead) if one.number <= 100 and one.number % 2 == odd)


@functools.cache
def read(profile: str, lead: str, number: int) -> dict[str, float]:
    """PR, QRS, QT from the QRS's onset, QTc (Bazett, true RR) and RR in ms as a profile measures them; nan
    where it gives none."""
    one = next(one for one in ludb(lead) if one.number == number)
    try:
        found = read_ecg(one.samples, one.rate, profile=profile)
    except UserError:
        return dict.fromkeys((*QUANTITIES, "rr", "qtc"), float("nan"))
    return figures(found)


def figures(found: Any) -> dict[str, float]:
    """A reading's figures as the bench compares them: QT from the QRS's onset in both profiles."""

    def value(name: str) -> float:
        number = found.value(name)
        return float("nan") if number is None else float(number)

    qt = value("qt_ms")
    rr = float(np.median(np.diff(found.peaks))) * 1000 / 500
    if found.profile == "published":
        qt += value("qrs_ms")
    return {"pr": value("pr_ms"), "qrs": value("qrs_ms"), "qt": qt, "rr": rr, "qtc": qt / np.sqrt(rr / 1000)}


def compared(taken: list[dict[str, float]], marked: tuple[Marked, ...], quantity: str) -> Compared:
    """A quantity of all records beside its marks."""
    truth = np.array([getattr(one, quantity) for one in marked])
    values = np.array([one[quantity] for one in taken])
    both = np.isfinite(truth) & np.isfinite(values)
    return Compared(values[both], truth[both], int(np.isfinite(truth).sum()))
