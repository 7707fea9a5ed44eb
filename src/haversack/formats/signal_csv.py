"""Signals as text: one number a line, or columns with a header, with or without a column of time.

The rate is given by the caller, or follows from a first column named time, t, seconds or ms (equal steps).
Beside semicolons, tabs and blanks a number may have a decimal comma.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from haversack.core.errors import DamagedFileError, UserError
from haversack.formats._cells import plain_cell
from haversack.formats._signals import F64, LARGEST, MOST_CHANNELS, RATES, Signals

_TIME = re.compile(r"(time|t|sec|seconds|s|ms|time_ms|time_s)(\W.*)?", re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?(\d|\.\d|nan|inf)", re.IGNORECASE)


def read_signal_csv(path: str | os.PathLike[str], rate: float | None = None) -> Signals:
    """Read columns of numbers. Empty cells and nan become nan.

    Raises UserError without a rate, for a rate that contradicts the times, and for cells that are no numbers;
    DamagedFileError for what is no text or has rows of unequal length.
    """
    source = Path(path)
    try:
        if source.stat().st_size > LARGEST:
            raise UserError(f"{source} has more than {LARGEST >> 20} MiB.", field="file", given=str(source))
        text = source.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(
            f"{source} cannot be read: {error.strerror}.", field="file", given=str(source)
        ) from error
    except UnicodeDecodeError as error:
        raise DamagedFileError(source, "it is no text, WFDB record or EDF file", field="file") from error
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines or "\0" in text:
        raise DamagedFileError(source, "it holds no numbers", field="file")
    mark = max(";\t,", key=lines[0].count)
    if mark not in lines[0]:
        mark = " " if " " in lines[0] else ","
    names: tuple[str, ...] | None = None
    cells = _cells(lines[0], mark)
    if not all(_NUMBER.match(cell) or not cell for cell in cells):
        names, lines = tuple(cells), lines[1:]
    if len(lines) == 1 and len(_cells(lines[0], mark)) > MOST_CHANNELS:
        lines = _cells(lines[0], mark)  # one long row of numbers
        mark = ","
    table = _table(source, lines, mark, 1 if names is None else 2)
    if names is not None and len(names) != table.shape[1]:
        raise DamagedFileError(
            source, f"{len(names)} names stand over {table.shape[1]} columns", field="file"
        )
    if names is not None and _TIME.fullmatch(names[0]) and table.shape[1] > 1:
        rate = _rate_of_times(source, table[:, 0], names[0], rate)
        table, names = table[:, 1:], names[1:]
    if rate is None:
        raise UserError(
            f"the rate of {source} is not known; add --fs with its samples a second.", field="fs", given=None
        )
    if not RATES[0] <= rate <= RATES[1]:
        raise UserError(
            f"fs={rate:g} is not supported (allowed {RATES[0]:g} to {RATES[1]:g}).",
            field="fs",
            given=rate,
            nearest=min(max(rate, RATES[0]), RATES[1]),
        )
    count = table.shape[1]
    labels = names or tuple(str(at) for at in range(1, count + 1))
    units = tuple(_unit(label) for label in labels)
    return Signals(table, float(rate), labels, units, (None,) * count)


def _cells(line: str, mark: str) -> list[str]:
    cells = line.split() if mark == " " else line.split(mark)
    return [plain_cell(cell.strip().strip('"'), mark) for cell in cells]


def _unit(label: str) -> str:
    found = re.search(r"[\[(_ ](mV|uV|V|µV)[\])]?$", label)
    return found[1].replace("µ", "u") if found else ""


def _table(path: Path, lines: list[str], mark: str, start: int) -> F64:
    rows = [_cells(line, mark) for line in lines]
    width = len(rows[0]) if rows else 0
    if width > MOST_CHANNELS:
        raise DamagedFileError(path, f"it has {width} columns", field="file")
    out = np.empty((len(rows), width))
    for at, row in enumerate(rows):
        if len(row) != width:
            raise DamagedFileError(
                path, f"line {at + start} has {len(row)} cells, the first {width}", field="file"
            )
        for column, cell in enumerate(row):
            try:
                out[at, column] = float(cell) if cell else np.nan
            except ValueError:
                raise UserError(
                    f"{path}, line {at + start}: {cell[:40]!r} is no number.", field="file", given=cell[:40]
                ) from None
    if out.size == 0:
        raise DamagedFileError(path, "it holds no numbers", field="file")
    return out


def _rate_of_times(path: Path, times: F64, name: str, rate: float | None) -> float:
    steps = np.diff(times)
    if len(steps) == 0 or not np.isfinite(steps).all() or (steps <= 0).any():
        raise UserError(f"the times of {path} do not run forward; sort or mend them.", field="file")
    step = float(np.median(steps))
    if np.abs(steps - step).max() > 0.5 * step:
        at = int(np.argmax(np.abs(steps - step)))
        raise UserError(
            f"the times of {path} have a gap after row {at + 1} ({steps[at]:g} where the step is {step:g}); "
            "give "
            "one piece.",
            field="file",
            given=float(steps[at]),
            nearest=step,
        )
    found = (1000.0 if "ms" in name.lower() else 1.0) / float(np.mean(steps))
    if rate is not None and abs(rate - found) > 0.02 * found:
        raise UserError(
            f"--fs {rate:g} contradicts the times of {path}, which say {found:g} samples a second.",
            field="fs",
            given=rate,
            nearest=round(found, 3),
        )
    return rate if rate is not None else found
