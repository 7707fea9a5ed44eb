"""WFDB records (PhysioNet): NAME.hea with NAME.dat in the formats 8, 16, 24, 32, 61, 80, 160 and 212, and
marks.

A header is read under limits before any sample; what it promises is held against the size of its files, which
lie beside it and nowhere else. Multi-segment records are refused."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import DamagedFileError, UserError
from haversack.formats._signals import F64, LARGEST, MOST_CHANNELS, RATES, Mark, Signals

I32 = NDArray[np.int32]
FORMATS = {
    "16": ("<i2", 2),
    "61": (">i2", 2),
    "24": ("", 3),
    "32": ("<i4", 4),
    "80": ("u1", 1),
    "160": ("<u2", 2),
}
_GAIN = re.compile(r"(?P<gain>[-+0-9.eE]+)(\((?P<base>-?\d+)\))?(/(?P<unit>\S+))?")
_FILE = re.compile(r"[A-Za-z0-9_~][A-Za-z0-9_.~+-]{0,120}")
SYMBOLS = {
    1: "N", 2: "L", 3: "R", 4: "a", 5: "V", 6: "F", 7: "J", 8: "A", 9: "S", 10: "E", 11: "j", 12: "/",
    13: "Q", 14: "~", 16: "|", 18: "s", 19: "T", 20: "*", 21: "D", 22: '"', 23: "=", 24: "p", 25: "B",
    26: "^", 27: "t", 28: "+", 29: "u", 30: "?", 31: "!", 32: "[", 33: "]", 34: "e", 35: "n", 36: "@",
    37: "x", 38: "f", 39: "(", 40: ")", 41: "r",
}  # fmt: skip
BEATS = frozenset("NLRBAaJSVrFejnE/fQ?")
"""Marks that are heart beats."""


@dataclass(frozen=True)
class _Signal:
    """A line of the header: where samples lie and how they become units."""

    file: str
    format: str
    skip: int
    gain: float
    base: int
    unit: str
    name: str
    bounds: tuple[float, float]


def is_wfdb(path: Path) -> bool:
    """True for NAME.hea, NAME.dat beside its header, and NAME without an ending."""
    return path.suffix == ".hea" or (path.suffix in ("", ".dat") and path.with_suffix(".hea").is_file())


def read_wfdb(path: str | os.PathLike[str]) -> Signals:
    """Read a record by its header, its data file or its name.

    Raises UserError where a file is missing or its format is not read, DamagedFileError for what contradicts
    itself.
    """
    given = Path(path)
    header = given if given.suffix == ".hea" else given.with_suffix(".hea")
    lines, facts = _header(header)
    count, rate, length = _first(header, lines[0])
    if len(lines) - 1 < count:
        raise DamagedFileError(header, f"it promises {count} signals and describes {len(lines) - 1}")
    described = [_signal(header, line) for line in lines[1 : 1 + count]]
    columns: list[F64] = []
    for file in dict.fromkeys(one.file for one in described):
        inside = [one for one in described if one.file == file]
        columns += _columns(header.with_name(file), inside, length)
    if len({len(column) for column in columns}) != 1:
        raise DamagedFileError(header, "its signals are of unequal length")
    return Signals(
        np.stack(columns, axis=1),
        rate,
        tuple(one.name for one in described),
        tuple(one.unit for one in described),
        tuple(one.bounds for one in described),
        facts,
    )


def _header(path: Path) -> tuple[list[str], dict[str, str]]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}; a WFDB record needs its .hea file.",
            field="file",
            given=str(path),
        ) from error
    if len(data) > 1 << 20 or b"\0" in data:
        raise DamagedFileError(path, "it is no header of a WFDB record", field="file")
    lines, facts = [], {}
    for line in data.decode("latin-1").splitlines():
        if line.startswith("#"):
            key, colon, value = line.strip("# ").partition(":")
            if colon:
                facts[key.strip("<> ").lower()] = value.strip()
        elif line.strip():
            lines.append(line.strip())
    if not lines:
        raise DamagedFileError(path, "it is empty", field="file")
    return lines, facts


def _first(path: Path, line: str) -> tuple[int, float, int]:
    """(signals, rate, samples of a signal or 0)."""
    parts = line.split()
    if "/" in parts[0]:
        raise UserError(
            f"{path} is a record of several segments, which are not read; give one segment.",
            field="file",
            given=str(path),
        )
    try:
        count = int(parts[1])
        rate = float(re.split(r"[/(]", parts[2])[0]) if len(parts) > 2 else 250.0
        length = int(parts[3]) if len(parts) > 3 else 0
    except (ValueError, IndexError) as error:
        raise DamagedFileError(path, "its first line names no count of signals and rate") from error
    if not 1 <= count <= MOST_CHANNELS or not RATES[0] <= rate <= RATES[1] or length < 0:
        raise DamagedFileError(path, f"it promises {count} signals at {rate:g} samples a second")
    return count, rate, length


def _signal(path: Path, line: str) -> _Signal:
    parts = line.split(maxsplit=8)
    if len(parts) < 2 or not _FILE.fullmatch(parts[0]):
        raise DamagedFileError(path, f"it names the data file {parts[0][:40]!r}, which is none beside it")
    form, *more = re.split(r"[x:+]", parts[1])
    if form != "212" and form not in FORMATS:
        raise UserError(
            f"{path} has samples of the WFDB format {form}, which is not read (allowed 212, "
            f"{', '.join(FORMATS)}).",
            field="file",
            given=form,
        )
    if more and "x" in parts[1]:
        raise UserError(
            f"{path} has a signal of several samples a frame, which is not read.",
            field="file",
            given=parts[1],
        )
    skip = int(more[-1]) if more and "+" in parts[1] and more[-1].isdigit() else 0
    found = _GAIN.fullmatch(parts[2]) if len(parts) > 2 else None
    try:
        gain = float(found["gain"]) if found else 0.0
        bits = int(parts[3]) if len(parts) > 3 else 0
        zero = int(parts[4]) if len(parts) > 4 else 0
    except ValueError as error:
        raise DamagedFileError(path, f"a signal's gain or zero is no number ({line[:60]})") from error
    base = int(found["base"]) if found and found["base"] else zero
    known = gain != 0
    gain = gain if known else 200.0
    bits = bits if 0 < bits <= 32 else {"212": 12, "24": 24, "32": 32, "80": 8}.get(form, 16)
    limit = 1 << (bits - 1)
    return _Signal(
        file=parts[0],
        format=form,
        skip=skip,
        gain=gain,
        base=base,
        unit=((found["unit"] if found else None) or "mV") if known else "",
        name=parts[8].strip() if len(parts) > 8 else parts[0],
        bounds=(((zero - limit) - base) / gain, ((zero + limit - 1) - base) / gain),
    )


def _columns(path: Path, signals: list[_Signal], length: int) -> list[F64]:
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} has more than {LARGEST >> 20} MiB.", field="file", given=str(path))
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.", field="file", given=str(path)) from error
    form, count = signals[0].format, len(signals)
    if any(one.format != form for one in signals):
        raise DamagedFileError(path, "its signals are of different formats")
    whole = _decode(data[signals[0].skip :], form)
    frames = len(whole) // count
    if frames < length or (length == 0 and frames == 0):
        raise DamagedFileError(
            path, f"{length} samples of {count} signals are promised and {frames} are there"
        )
    table = whole[: (length or frames) * count].reshape(-1, count)
    lost = {"212": -2048, "24": -(1 << 23), "80": -128}.get(form, -(1 << 31) if form == "32" else -(1 << 15))
    columns: list[F64] = []
    for at, one in enumerate(signals):
        values = np.asarray((table[:, at] - one.base) / one.gain, np.float64)
        values[table[:, at] == lost] = np.nan  # the format's word for no sample
        columns.append(values)
    return columns


def _decode(data: bytes, form: str) -> I32:
    if form == "212":
        triples = np.frombuffer(data[: len(data) // 3 * 3], np.uint8).reshape(-1, 3).astype(np.int32)
        low = triples[:, 0] | (triples[:, 1] & 0x0F) << 8
        high = triples[:, 2] | (triples[:, 1] & 0xF0) << 4
        both = np.stack([low, high], axis=1).ravel()
        return np.where(both > 2047, both - 4096, both).astype(np.int32)
    kind, size = FORMATS[form]
    data = data[: len(data) // size * size]
    if form == "24":
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return (wide.view("<i4").ravel() >> 8).astype(np.int32)
    values = np.frombuffer(data, kind).astype(np.int32)
    return values - {"80": 128, "160": 32768}.get(form, 0)


def read_marks(path: str | os.PathLike[str]) -> tuple[Mark, ...]:
    """The marks of an annotation file (NAME.atr, NAME.ii). Raises UserError where there is none,
    DamagedFileError for one that ends early or runs backwards."""
    source = Path(path)
    try:
        data = source.read_bytes()
    except OSError as error:
        raise UserError(
            f"{source} cannot be read: {error.strerror}.", field="file", given=str(source)
        ) from error
    words = np.frombuffer(data[: len(data) // 2 * 2], "<u2").tolist()
    found: list[Mark] = []
    sample = at = 0
    while at < len(words):
        kind, step = words[at] >> 10, words[at] & 0x3FF
        at += 1
        if kind == 0 and step == 0:
            return tuple(found)
        if kind == 59:  # a long step, high half first
            if at + 2 > len(words):
                break
            long = words[at] << 16 | words[at + 1]
            sample += long - (1 << 32) if long >= 1 << 31 else long
            at += 2
        elif kind == 63:  # words about the last mark
            at += (step + 1) // 2
        elif kind in (60, 61, 62):
            continue
        else:
            sample += step
            if sample < 0:
                raise DamagedFileError(source, "a mark lies before the first sample", field="file")
            if kind in SYMBOLS:
                found.append(Mark(sample, SYMBOLS[kind]))
    raise DamagedFileError(source, "it ends early, without its last mark", field="file")
