"""PR, QRS and QT beside cardiologists' marks: LUDB's even records, lead II; QTDB where it is at hand."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Unavailable
from haversack.bench.featuredb_ecg._bench import (
    QUANTITIES,
    Compared,
    bench,
    compared,
    figures,
    ludb,
    part,
    read,
)
from haversack.bench.featuredb_ecg._marked import Marked, waves
from haversack.bench.peers import neurokit
from haversack.core.errors import UserError
from haversack.formats.wfdb import read_marks, read_wfdb
from haversack.sense.ecg import read_ecg

LIMITS = {"pr": (0.6, 25.0), "qrs": (None, 15.0), "qt": (0.45, 35.0)}
QTDB_SECONDS = 60.0


@functools.cache
def even(profile: str, quantity: str, lead: str = "ii") -> Compared:
    """A profile on the even records."""
    marked = part(odd=False, lead=lead)
    return compared([read(profile, lead, one.number) for one in marked], marked, quantity)


@functools.cache
def peer() -> tuple[dict[str, float], ...]:
    """NeuroKit2 on the even records, lead II."""
    return tuple(neurokit.measure(one.samples, one.rate) for one in part(odd=False))


def ratio_rows(quantity: str) -> list[Row]:
    """A quantity's rows on the even records."""
    ratio, limit = LIMITS[quantity]
    name = quantity.upper()
    rows = [
        Row(
            f"{quantity}-mae",
            f"{name}, fixed profile: mean absolute error on LUDB's even records at most {limit:g} ms",
            "ms",
            "quality",
            Bar("<=", limit),
            judged="ours",
            published="MAE equal to that between two physicians",
            quick=quantity == "qrs",
        ),
        Row(
            f"{quantity}-bias",
            f"{name}, fixed profile: the mean error is at most 5 ms either way",
            "ms",
            "quality",
            Bar("in", (-5.0, 5.0)),
            judged="ours",
        ),
    ]
    if ratio is not None:
        rows.append(
            Row(
                f"{quantity}-over-published",
                f"{name}: the fixed profile's error over the published one's",
                "ms",
                "quality",
                Bar("<=", ratio),
            )
        )
        rows.append(
            Row(
                f"{quantity}-correlation",
                f"{name}, fixed profile: Pearson's r with the marks",
                "r",
                "quality",
                Bar(">=", 0.75),
                judged="ours",
                published="0.836 to 0.960 with physicians (PR, QT, QTc)",
            )
        )
        rows.append(
            Row(
                f"{quantity}-over-leads",
                f"{name}: the fixed profile's error over the gap between marks of the leads I and II",
                "ms",
                "quality",
                Bar("<=", 2.0),
            )
        )
    return rows


@bench.measure(
    *[row for quantity in QUANTITIES for row in ratio_rows(quantity)],
    Row("rr-median", "RR, fixed profile: median error (the published one's beside it)", "ms", "quality"),
    seconds=60,
    quick_seconds=25,
)
def marks(run: Run) -> Outcomes:
    found: dict[str, Outcome] = {}
    for quantity in QUANTITIES:
        ours, theirs = even("fixed", quantity), even("published", quantity)
        note = f"{ours.words}; published: {theirs.words}"
        if run.quick and quantity != "qrs":
            continue
        found[f"{quantity}-mae"] = Outcome.single(
            ours.mae, theirs.mae, name="fixed", against="published", note=note
        )
        if run.quick:
            continue
        found[f"{quantity}-bias"] = Outcome.single(ours.bias, name="fixed")
        if LIMITS[quantity][0] is None:
            continue
        found[f"{quantity}-over-published"] = Outcome.single(
            ours.mae, theirs.mae, name="fixed", against="published", note=note
        )
        found[f"{quantity}-correlation"] = Outcome.single(
            *(ours.correlation, theirs.correlation), name="fixed", against="published", note=ours.outliers
        )
        found[f"{quantity}-over-leads"] = Outcome.single(
            ours.mae, gap(quantity), name="fixed", against="marks of I and II"
        )
    if not run.quick:
        errors = [
            float(
                np.median(
                    np.abs(
                        compared(
                            [read(name, "ii", one.number) for one in part(False)], part(False), "rr"
                        ).error
                    )
                )
            )
            for name in ("fixed", "published")
        ]
        found["rr-median"] = Outcome.single(errors[0], errors[1], name="fixed", against="published")
    return found


def gap(quantity: str) -> float:
    """Mean absolute difference between the marks of lead I and lead II of the even records."""
    one, two = ({each.number: getattr(each, quantity) for each in part(False, lead)} for lead in ("i", "ii"))
    away = np.array([one[number] - two[number] for number in one if number in two])
    return float(np.abs(away[np.isfinite(away)]).mean())


@bench.measure(
    *[
        Row(
            f"neurokit-{quantity}",
            f"{quantity.upper()}: the fixed profile's error over NeuroKit2's, on LUDB's even records",
            "ms",
            "quality",
        )
        for quantity in QUANTITIES
    ],
    seconds=60,
)
def against_neurokit(run: Run) -> Outcomes:
    found = {}
    for quantity in QUANTITIES:
        ours, other = even("fixed", quantity), compared(list(peer()), part(odd=False), quantity)
        version = neurokit.neurokit().__version__
        found[f"neurokit-{quantity}"] = Outcome.single(
            ours.mae,
            other.mae,
            name="fixed",
            against=f"NeuroKit2 {version}, dwt",
            note=f"{ours.words}; NeuroKit2: {other.words}",
        )
    return found


@bench.measure(
    *[
        Row(
            f"lead-i-{quantity}",
            f"{quantity.upper()} on lead I, which nothing was calibrated on: fixed over published",
            "ms",
            "quality",
        )
        for quantity in QUANTITIES
    ],
    seconds=40,
)
def lead_1(run: Run) -> Outcomes:
    found = {}
    for quantity in QUANTITIES:
        ours, theirs = even("fixed", quantity, "i"), even("published", quantity, "i")
        found[f"lead-i-{quantity}"] = Outcome.single(
            ours.mae, theirs.mae, name="fixed", against="published", note=ours.words
        )
    return found


@bench.measure(
    Row(
        "qtdb-qt",
        "QT on QTDB, which nothing was calibrated on: the error over that on LUDB",
        "ms",
        "quality",
        Bar("<=", 1.3),
    ),
    seconds=60,
)
def qtdb(run: Run) -> Outcomes:
    folder = Path(os.environ.get("HAVERSACK_DATA", ""), "ecg", "qtdb")
    marked = qtdb_records(folder)
    if not marked:
        raise Unavailable(
            "QTDB is not at hand; put its records (NAME.hea, .dat, .q1c) into ecg/qtdb in a folder and let "
            "HAVERSACK_DATA name the folder"
        )
    taken = []
    for one in marked:
        try:
            taken.append(figures(read_ecg(one.samples, one.rate)))
        except UserError:
            taken.append(dict.fromkeys(QUANTITIES, float("nan")))
    found, here = compared(taken, marked, "qt"), even("fixed", "qt")
    return {"qtdb-qt": Outcome.single(found.mae, here.mae, name="QTDB", against="LUDB", note=found.words)}


def qtdb_records(folder: Path) -> tuple[Marked, ...]:
    """The first lead of every record with marks of its first cardiologist, around the marked beats."""
    found = []
    for number, header in enumerate(sorted(folder.glob("*.hea")) if folder.is_dir() else ()):
        marks_file = header.with_suffix(".q1c")
        if not marks_file.is_file():
            continue
        signals, marks = read_wfdb(header), read_marks(marks_file)
        if not marks:
            continue
        rate = signals.rate
        start = max(0, marks[0].sample - int(2 * rate))
        end = min(len(signals.samples), marks[-1].sample + int(2 * rate), start + int(QTDB_SECONDS * rate))
        samples = np.nan_to_num(signals.samples[start:end, 0])
        found.append(Marked(number, samples, rate, None, *waves(marks, rate)))
    return tuple(found)


__all__ = ["even", "ludb", "qtdb_records"]
