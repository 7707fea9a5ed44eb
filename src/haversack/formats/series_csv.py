"""Tables of series: a time column of equal steps, then one number a channel (ETT, electricity, weather and
alike).

The first row may name the columns; cells are parted by commas, semicolons or tabs, and beside the latter two
a number may have a decimal comma. Times are ISO dates, with or without hours, or plain numbers. Gaps
(missing rows, empty cells, nan) are refused, or filled where the caller asks for it; rows out of order,
doubled times and steps that fit no common step are always refused."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import DamagedFileError, UserError, not_allowed
from haversack.formats._cells import plain_cell

F64 = NDArray[np.float64]
IMPUTE = ("none", "linear", "previous")
LARGEST = 1 << 30
MOST_GAP = 1000
"""Missing rows in a row that may be filled; more is another series."""
_BLANK = {"", "na", "nan", "null", "none", "?"}


@dataclass(frozen=True)
class Series:
    """`values` [rows, channels], `channels` by name, `times` as text of the first and the last row, `step` in
    seconds (None where the first column counts). `filled`: numbers that were not in the file."""

    values: F64
    channels: tuple[str, ...]
    first: float
    step: float
    dated: bool
    filled: int = 0
    warnings: tuple[str, ...] = field(default=())

    def time_of(self, row: int) -> str:
        """The time of a row, counted from 0, also behind the last one."""
        at = self.first + row * self.step
        if not self.dated:
            return f"{at:.15g}"
        return (datetime(1970, 1, 1) + timedelta(seconds=round(at, 6))).isoformat(sep=" ")


def read_series(
    path: str | os.PathLike[str],
    *,
    impute: str = "none",
    channels: Sequence[str] | None = None,
    text: str | None = None,
) -> Series:
    """Read a table, or `text` that `path` only names. `channels` picks columns by name.

    Raises UserError for a file that cannot be read or holds no series, for gaps unless `impute` (linear,
    previous) says how they are filled, for times that are not in order or not in equal steps, and for an
    unknown column; DamagedFileError for what is no text or has rows of unequal length.
    """
    if impute not in IMPUTE:
        raise not_allowed("impute", impute, IMPUTE)
    source = Path(path)
    rows = _rows(source, table_text(source) if text is None else text)
    names, rows, start = _header(source, rows)
    if len(rows) < 2:
        raise UserError(f"{source} holds {len(rows)} rows; a series needs two.", field="table")
    times, dated = _times(source, [row[0] for row in rows], start)
    values = _numbers(source, rows, names, start)
    values, step, missing = _even(source, times, values, start)
    if channels is not None:
        picked = []
        for name in channels:
            if name not in names:
                from haversack.core.errors import unknown_name

                raise unknown_name("channel", name, names, field="channels")
            picked.append(names.index(name))
        values, names = values[:, picked], [names[at] for at in picked]
    holes = ~np.isfinite(values)
    if holes.any():
        if impute == "none":
            row, column = np.argwhere(holes)[0]
            what = f"{missing} rows are missing" if missing else "a cell is empty or not a number"
            raise UserError(
                f"{source} has gaps: {int(holes.sum())} numbers, the first in channel {names[column]} at row "
                f"{row + 1} of the series ({what}); fill them with --impute linear or --impute previous.",
                field="impute",
                given="none",
                nearest="linear",
            )
        values = _filled(values, impute, names, source)
    constant = [names[at] for at in range(len(names)) if np.ptp(values[:, at]) == 0]
    warnings = [f"the channel {name} never changes" for name in constant]
    return Series(values, tuple(names), times[0], step, dated, int(holes.sum()), tuple(warnings))


def write_series(path: Path, series: Series, ahead: F64) -> bytes:
    """The text of a table of forecasts [horizon, channels] that follow `series`, as bytes."""
    rows = len(series.values)
    lines = [",".join(["time", *(_quoted(name) for name in series.channels)])]
    for at, row in enumerate(ahead):
        lines.append(",".join([series.time_of(rows + at), *(f"{value:.9g}" for value in row)]))
    return ("\n".join(lines) + "\n").encode()


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"' if any(sign in name for sign in ',"\n') else name


def table_text(path: Path) -> str:
    """The text of a table. Raises UserError for a file that cannot be read, DamagedFileError for no text."""
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(
                f"{path} has {path.stat().st_size >> 20} MiB; at most {LARGEST >> 20} are read.",
                field="table",
            )
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}.", field="table", given=str(path)
        ) from error
    except UnicodeDecodeError as error:
        raise DamagedFileError(path, "it is no UTF-8 text", field="table") from error


def _rows(path: Path, text: str) -> list[list[str]]:
    if "\0" in text:
        raise DamagedFileError(path, "it is no text", field="table")
    first = text.partition("\n")[0]
    mark = max(";\t,", key=first.count)
    try:
        read = csv.reader(text.splitlines(), delimiter=mark)
        rows = [[plain_cell(cell, mark) for cell in row] for row in read if row]
    except csv.Error as error:
        raise DamagedFileError(path, f"it is no table ({error})", field="table") from error
    if not rows:
        raise UserError(f"{path} is empty.", field="table", given=str(path))
    if len(rows[0]) < 2:
        raise UserError(
            f"{path} has one column; a series has a time column and at least one of numbers.", field="table"
        )
    for number, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            raise DamagedFileError(
                path, f"row {number} has {len(row)} cells and the first {len(rows[0])}", field="table"
            )
    return rows


def _header(path: Path, rows: list[list[str]]) -> tuple[list[str], list[list[str]], int]:
    if all(_number(cell) is not None or cell.lower() in _BLANK for cell in rows[0][1:]):
        return [str(at) for at in range(1, len(rows[0]))], rows, 1
    names = rows[0][1:]
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise UserError(f"{path} names the column {doubled} twice.", field="table", given=doubled)
    return names, rows[1:], 2


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _times(path: Path, cells: list[str], start: int) -> tuple[list[float], bool]:
    numbers = [_number(cell) for cell in cells]
    if all(number is not None and math.isfinite(number) for number in numbers):
        return [number for number in numbers if number is not None], False
    found = []
    epoch = datetime(1970, 1, 1)
    for at, cell in enumerate(cells):
        try:
            moment = datetime.fromisoformat(cell.replace("/", "-"))
        except ValueError:
            raise UserError(
                f"{path}, line {at + start}: {cell[:40]!r} is no time; write 2024-01-31 12:00:00, or numbers "
                "of equal steps, in the first column.",
                field="table",
                given=cell[:40],
            ) from None
        if moment.tzinfo is not None:
            moment = moment.astimezone(UTC).replace(tzinfo=None)
        found.append((moment - epoch).total_seconds())
    return found, True


def _numbers(path: Path, rows: list[list[str]], names: list[str], start: int) -> F64:
    values = np.empty((len(rows), len(names)))
    for at, row in enumerate(rows):
        for column, cell in enumerate(row[1:]):
            number = math.nan if cell.lower() in _BLANK else _number(cell)
            if number is None:
                raise UserError(
                    f"{path}, line {at + start}: {cell[:40]!r} in the column {names[column]} is no number.",
                    field="table",
                    given=cell[:40],
                )
            values[at, column] = number if math.isfinite(number) else math.nan
    return values


def _even(path: Path, times: list[float], values: F64, start: int) -> tuple[F64, float, int]:
    """Rows at equal steps (missing ones as nan), the step, how many were missing."""
    gaps = np.diff(np.asarray(times))
    if (gaps <= 0).any():
        at = int(np.argmax(gaps <= 0)) + 1
        what = "has the time of the row before" if gaps[at - 1] == 0 else "is earlier than the row before"
        raise UserError(
            f"{path}, line {at + start}: it {what}; sort the table by time, each time once.",
            field="table",
            given=at + start,
        )
    step = float(np.median(gaps))
    counts = gaps / step
    whole = np.rint(counts)
    if (np.abs(counts - whole) > 1e-3).any() or (whole < 1).any():
        wrong: Any = (np.abs(counts - whole) > 1e-3) | (whole < 1)
        at = int(np.argmax(wrong)) + 1
        raise UserError(
            f"{path}, line {at + start}: it comes {gaps[at - 1]:g} after the row before, where the step is "
            f"{step:g}; bring the series to equal steps.",
            field="table",
            given=float(gaps[at - 1]),
            nearest=step,
        )
    if whole.max() > MOST_GAP:
        at = int(np.argmax(whole)) + 1
        raise UserError(
            f"{path}, line {at + start}: {int(whole.max()) - 1} rows are missing before it, at most "
            f"{MOST_GAP - 1} are filled; cut the table there.",
            field="table",
            given=int(whole.max()) - 1,
        )
    places = np.concatenate([[0], np.cumsum(whole)]).astype(np.int64)
    out = np.full((int(places[-1]) + 1, values.shape[1]), np.nan)
    out[places] = values
    return out, step, len(out) - len(values)


def _filled(values: F64, impute: str, names: list[str], path: Path) -> F64:
    out = values.copy()
    rows = np.arange(len(out))
    for column in range(out.shape[1]):
        known = np.isfinite(values[:, column])
        if known.sum() < 2:
            raise UserError(
                f"{path}: the column {names[column]} holds {int(known.sum())} numbers; leave it out "
                "(--channels).",
                field="channels",
                given=names[column],
            )
        if impute == "linear":
            out[:, column] = np.interp(rows, rows[known], values[known, column])
        else:
            last = np.maximum.accumulate(np.where(known, rows, -1))
            out[:, column] = values[np.where(last < 0, rows[known][0], last), column]
    return out
