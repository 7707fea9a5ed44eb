"""Which lead of which file: WFDB, EDF and CSV behind one function, and the picture of a reading."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from haversack.core.errors import UserError, unknown_name
from haversack.formats._signals import Signals
from haversack.formats.edf import is_edf, read_edf
from haversack.formats.signal_csv import read_signal_csv
from haversack.formats.wfdb import is_wfdb, read_wfdb
from haversack.sense._svg import Panel, picture, span

if TYPE_CHECKING:
    from haversack.sense.ecg import Reading

PREFERRED = ("ii", "mlii", "ecg", "i")
SHOWN_S = 10.0


def read_signals(path: Path, rate: float | None = None) -> Signals:
    """Read a recording of any kind. Raises UserError and DamagedFileError as the readers do, and UserError
    for a rate that contradicts the file's."""
    if is_wfdb(path):
        found = read_wfdb(path)
    else:
        try:
            with path.open("rb") as file:
                beginning = file.read(8)
        except OSError as error:
            raise UserError(
                f"{path} cannot be read: {error.strerror}.", field="file", given=str(path)
            ) from error
        if not is_edf(beginning):
            return read_signal_csv(path, rate)
        found = read_edf(path)
    if rate is not None and abs(rate - found.rate) > 1e-6 * found.rate:
        raise UserError(
            f"--fs {rate:g} contradicts {path}, which was taken at {found.rate:g} samples a second; leave it "
            "out.",
            field="fs",
            given=rate,
            nearest=found.rate,
        )
    return found


def choose_lead(found: Signals, lead: str | None) -> int:
    """The column of a lead by its name, or of lead II, or of the first. Raises UserError for an unknown
    one."""
    names = [name.lower().removeprefix("ecg ").strip() for name in found.names]
    if lead is None:
        return next((names.index(name) for name in PREFERRED if name in names), 0)
    if lead.lower() in names:
        return names.index(lead.lower())
    if lead.isdigit() and 1 <= int(lead) <= len(names):
        return int(lead) - 1
    raise unknown_name("lead", lead, found.names, field="lead")


def draw(reading: Reading, title: str) -> bytes:
    """The lead with its R peaks and waves, and the average beat with its bounds."""
    from haversack.sense._ecg_beat import FINE
    from haversack.sense._ecg_signal import RATE
    from haversack.sense.ecg import NOTICE

    shown = reading.signal[: int(SHOWN_S * RATE)]
    times = np.arange(len(shown)) / RATE
    lead = Panel(
        title, height=230, x_label="s", y_label=reading.unit, x_range=(0.0, SHOWN_S), y_range=span(shown)
    )
    bounds = reading.bounds
    waves = (
        ("P", bounds.p_on, bounds.p_off, "three", reading.value("p_ms")),
        ("QRS", bounds.qrs_on, bounds.qrs_off, "one", reading.value("qrs_ms")),
        ("T", bounds.t_on, bounds.t_off, "four", reading.value("qt_ms")),
    )
    for peak in reading.peaks[reading.peaks < len(shown)]:
        for name, on, off, colour, value in waves:
            if on is not None and off is not None and value is not None:
                first, last = ((at - bounds.r) / FINE + peak / RATE for at in (on, off))
                if last > 0 and first < SHOWN_S:
                    lead.band(max(first, 0.0), min(last, SHOWN_S), colour, name)
    lead.line(times, shown, "ink", "lead")
    for peak in reading.peaks[reading.peaks < len(shown)]:
        lead.mark(peak / RATE, float(shown[peak]), "R", "two")
    ms = (np.arange(len(reading.beat)) - reading.r) * 1000 / RATE
    beat = Panel(
        "average beat", height=250, x_label="ms from R", x_range=(ms[0], ms[-1]), y_range=span(reading.beat)
    )
    for name, on, off, colour, value in waves:
        if on is not None and off is not None and value is not None:
            beat.band((on - bounds.r) * 1000 / FINE, (off - bounds.r) * 1000 / FINE, colour, name)
    beat.line(ms, reading.beat, "ink")
    for name, at, colour in (("P", bounds.p, "three"), ("R", bounds.r, "one"), ("T", bounds.t, "four")):
        if at is not None and (name != "P" or reading.value("p_ms") is not None):
            place = min(at * RATE // FINE, len(reading.beat) - 1)
            beat.mark((at - bounds.r) * 1000 / FINE, float(reading.beat[place]), name, colour)
    said = []
    for name, label in (
        ("pr_ms", "PR"),
        ("qrs_ms", "QRS"),
        ("qt_ms", "QT"),
        ("qtc_ms", "QTc"),
        ("rate_bpm", "rate"),
    ):
        value = reading.value(name)
        said.append(f"{label} {'-' if value is None else f'{value:.0f} {reading.figures[name].unit}'}")
    return picture([lead, beat], note=f"{', '.join(said)}. Profile {reading.profile}. {NOTICE}")
