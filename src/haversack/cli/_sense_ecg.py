"""What `haversack sense ecg` does between its options and its record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from haversack.core._files import write_atomically
from haversack.core.memory import peak_mib
from haversack.core.progress import progress

CHUNK_S = 0.25
"""Samples come in pieces of a quarter of a second where a file is played as a stream."""


def run_ecg(
    path: Path,
    *,
    rate: float | None,
    lead: str | None,
    units: str | None,
    profile: str,
    qtc: str,
    sex: str,
    stream: bool,
    plot: Path | None,
) -> dict[str, Any]:
    """Measure a recording, whole or played as a stream; the record of `--json`."""
    from haversack.sense import EcgStream, read_ecg
    from haversack.sense._ecg_features import electrical_axis
    from haversack.sense._ecg_files import choose_lead, draw, read_signals

    found = read_signals(path, rate)
    at = choose_lead(found, lead)
    unit = found.units[at] if units is None else units
    if units is None and unit not in ("mV", "uV", "V"):
        unit = ""
    options: dict[str, Any] = {"profile": profile, "qtc": qtc, "sex": sex}
    samples = found.samples[:, at]
    updates: list[dict[str, Any]] = []
    with progress(f"reading {path.name}") as bar:
        if stream:
            window = EcgStream(found.rate, units=unit, **options)
            size = max(1, round(CHUNK_S * found.rate))
            reading = None
            for start in range(0, len(samples), size):
                fresh = window.push(samples[start : start + size])
                bar.advance()
                if fresh is not None:
                    updates.append(_update(min(start + size, len(samples)) / found.rate, fresh))
            reading = window.reading()
            if reading is None:
                from haversack.core.errors import UserError

                raise UserError(window.reason, field="file", given=str(path))
        else:
            reading = read_ecg(samples, found.rate, units=unit, bounds=found.bounds[at], **options)
    axis = None
    names = [name.lower() for name in found.names]
    if not stream and "i" in names and "iii" in names and profile == "fixed":
        axis = _axis(found, names, options, electrical_axis)
    written = None
    if plot is not None:
        data = draw(reading, f"{path.name}, lead {found.names[at]}")
        write_atomically(plot, data)
        written = {"path": plot, "nbytes": len(data)}
    return {
        "file": path,
        "lead": found.names[at],
        "rate": found.rate,
        "seconds": round(len(samples) / found.rate, 3),
        "qtc_formula": qtc,
        **reading.record(),
        "axis": axis,
        "updates": updates if stream else None,
        "plot": written,
        "ram_mib": {"measured": round(peak_mib(), 2)},
    }


def _update(seconds: float, reading: Any) -> dict[str, Any]:
    names = ("pr_ms", "qrs_ms", "qt_ms", "qtc_ms", "rate_bpm")
    return {"seconds": round(seconds, 3), **{name: reading.value(name) for name in names}}


def _axis(found: Any, names: list[str], options: dict[str, Any], angle: Any) -> dict[str, Any] | None:
    """The axis from the net QRS of the leads I and III; None where one of them cannot be read."""
    from haversack.core.errors import UserError
    from haversack.sense.ecg import read_ecg

    net = []
    for name in ("i", "iii"):
        at = names.index(name)
        try:
            one = read_ecg(found.samples[:, at], found.rate, bounds=found.bounds[at], **options)
        except UserError:
            return None
        on, off = (one.bounds.qrs_on or 0) // 4, (one.bounds.qrs_off or 0) // 4
        part = one.beat[on : off + 1] - one.beat[on]
        net.append(float(part.max() + part.min()) if len(part) else 0.0)
    degrees, word = angle(net[0], net[1])
    return {"degrees": degrees, "word": word}
