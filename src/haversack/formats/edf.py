"""EDF and EDF+ (European Data Format, Kemp 1992): 16-bit recordings in records of equal duration.

The header is fixed text, read under limits before any sample. Signals of the highest rate are read;
annotations and signals of lower rates are passed over, and named in the facts. Interrupted recordings (EDF+D)
are refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from haversack.core.errors import DamagedFileError, UserError
from haversack.formats._signals import F64, LARGEST, MOST_CHANNELS, RATES, Signals

_FIELDS = (16, 80, 8, 8, 8, 8, 8, 80, 8, 32)
_NOTES = ("EDF Annotations", "BDF Annotations")


def is_edf(beginning: bytes) -> bool:
    """True for the first 8 bytes of an EDF file."""
    return beginning[:8] == b"0       "


def read_edf(path: str | os.PathLike[str]) -> Signals:
    """Read a recording. Raises UserError where it cannot be read or is interrupted, DamagedFileError where it
    contradicts itself or its size."""
    source = Path(path)
    try:
        size = source.stat().st_size
        if size > LARGEST:
            raise UserError(f"{source} has more than {LARGEST >> 20} MiB.", field="file", given=str(source))
        data = source.read_bytes()
    except OSError as error:
        raise UserError(
            f"{source} cannot be read: {error.strerror}.", field="file", given=str(source)
        ) from error
    if len(data) < 256 or not is_edf(data):
        raise DamagedFileError(source, "it does not begin as an EDF file", field="file")
    head = data[:256].decode("latin-1")
    count = _whole(source, head[252:256], "count of signals", 1, MOST_CHANNELS)
    records = _whole(source, head[236:244], "count of records", -1, 1 << 30)
    duration = _real(source, head[244:252], "duration of a record")
    if head[192:197] == "EDF+D":
        raise UserError(
            f"{source} is interrupted (EDF+D), which is not read; cut it into whole recordings.",
            field="file",
            given="EDF+D",
        )
    start = 256 * (count + 1)
    if len(data) < start or duration <= 0:
        raise DamagedFileError(source, "its header ends early, or its records last no time", field="file")
    columns, at = [], 256
    for width in _FIELDS:
        text = data[at : at + width * count].decode("latin-1")
        columns.append([text[width * one : width * (one + 1)].strip() for one in range(count)])
        at += width * count
    counts = [_whole(source, text, "samples of a record", 1, 1 << 24) for text in columns[8]]
    frame = 2 * sum(counts)
    whole = (len(data) - start) // frame
    if records == -1:
        records = whole
    if records < 1 or whole < records:
        raise DamagedFileError(source, f"{records} records are promised and {whole} are there", field="file")
    samples = np.frombuffer(data, "<i2", records * sum(counts), start).reshape(records, -1)
    kept = [one for one in range(count) if columns[0][one] not in _NOTES]
    if not kept:
        raise UserError(f"{source} holds no signal, only annotations.", field="file", given=str(source))
    most = max(counts[one] for one in kept)
    rate = most / duration
    if not RATES[0] <= rate <= RATES[1]:
        raise DamagedFileError(source, f"it has {rate:g} samples a second", field="file")
    found: list[F64] = []
    bounds = []
    chosen = [one for one in kept if counts[one] == most]
    for one in chosen:
        low, high = (_real(source, columns[field][one], "physical range") for field in (3, 4))
        least, greatest = (_real(source, columns[field][one], "digital range") for field in (5, 6))
        if greatest <= least or high == low:
            raise DamagedFileError(source, f"the range of {columns[0][one]} is empty", field="file")
        place = sum(counts[:one])
        digital = samples[:, place : place + most].astype(np.float64).ravel()
        gain = (high - low) / (greatest - least)
        found.append((digital - least) * gain + low)
        bounds.append((min(low, high), max(low, high)))
    facts = {"passed over": ", ".join(columns[0][one] for one in kept if one not in chosen)}
    return Signals(
        np.stack(found, axis=1),
        rate,
        tuple(columns[0][one] for one in chosen),
        tuple(columns[2][one] for one in chosen),
        tuple(bounds),
        {key: value for key, value in facts.items() if value},
    )


def _whole(path: Path, text: str, what: str, least: int, most: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise DamagedFileError(path, f"its {what} is {text.strip()[:20]!r}", field="file") from None
    if not least <= value <= most:
        raise DamagedFileError(path, f"its {what} is {value}", field="file")
    return value


def _real(path: Path, text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise DamagedFileError(path, f"its {what} is {text.strip()[:20]!r}", field="file") from None
    if not np.isfinite(value):
        raise DamagedFileError(path, f"its {what} is {text.strip()[:20]!r}", field="file")
    return value
