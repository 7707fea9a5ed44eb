"""The safetensors format, read with bounds and written for mapping.

A file is an 8-byte little-endian length, that many bytes of JSON (name -> dtype, shape, data_offsets;
`__metadata__` holds texts), then the tensors' bytes without gaps. Every promise of the header is checked
against the file before any byte of data is touched, and nothing is allocated by what a header claims.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from haversack.core.errors import DamagedFileError, UserError

HEADER_MOST = 32 * 2**20
"""Longest header accepted, in bytes: about 250,000 tensors."""
DIMENSIONS_MOST = 32
NAME_MOST = 1024
ALIGNMENT = 4096

DTYPES: dict[str, int] = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
}


@dataclass(frozen=True)
class HeaderEntry:
    """One tensor of a file: `offset` counts from the start of the file, `nbytes` its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """A checked header: `entries` in order of their data, `data_start` the offset of the first data byte."""

    entries: tuple[HeaderEntry, ...]
    metadata: dict[str, str]
    data_start: int


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file.

    Raises DamagedFileError (one sentence) for anything that does not hold: length, encoding, JSON, duplicate
    names, unknown dtypes, shapes that do not give the promised bytes, gaps, overlaps, a file too short or too
    long.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            if len(prefix) < 8:
                raise DamagedFileError(
                    path, f"it ends after {len(prefix)} of the 8 bytes of its header's length"
                )
            length = int.from_bytes(prefix, "little")
            if length > HEADER_MOST:
                raise DamagedFileError(
                    path, f"its header claims {length} bytes, more than the {HEADER_MOST} any model needs"
                )
            if length > size - 8:
                raise DamagedFileError(
                    path, f"its header claims {length} bytes and the file has {size - 8} left"
                )
            text = file.read(length)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.", field="path", given=str(path)) from error
    try:
        return parse_header(text, size - 8 - length)
    except ValueError as error:
        raise DamagedFileError(path, str(error)) from error


def parse_header(text: bytes, data_nbytes: int) -> Header:
    """Check a header's JSON against the bytes of data that follow it. Raises ValueError with the finding."""
    record = _json_object(text)
    start = 8 + len(text)
    metadata = record.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its __metadata__ is not a table of texts")
    entries = [_entry(name, value, start) for name, value in record.items()]
    entries.sort(key=lambda entry: (entry.offset, entry.nbytes))
    at, before = start, "the header"
    for entry in entries:
        if entry.offset != at:
            what = "overlaps" if entry.offset < at else "leaves a gap after"
            raise ValueError(f"the tensor {_short(entry.name)} {what} {before}")
        at, before = at + entry.nbytes, _short(entry.name)
    promised = at - start
    if promised > data_nbytes:
        raise ValueError(f"it holds {data_nbytes} bytes of tensors and its header promises {promised}")
    if promised < data_nbytes:
        raise ValueError(f"{data_nbytes - promised} bytes follow its last tensor")
    return Header(tuple(entries), metadata, start)


def header_bytes(
    entries: Iterable[tuple[str, str, Sequence[int], int]],
    metadata: Mapping[str, str] | None = None,
    least: int = 0,
) -> bytes:
    """Length and header of a file whose tensors (name, dtype, shape, nbytes) follow one another in this
    order.

    Padded with spaces to a multiple of 4096 and at least `least` bytes, so that the data starts on a page.
    """
    record: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, dtype, shape, nbytes in entries:
        record[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + nbytes]}
        at += nbytes
    text = json.dumps(record, separators=(",", ":"), ensure_ascii=False).encode()
    if len(text) + 8 > HEADER_MOST:
        raise UserError(
            f"{len(record)} tensors are more than one safetensors file may hold.", field="tensors"
        )
    whole = max(-(-(8 + len(text)) // ALIGNMENT) * ALIGNMENT, least)
    return (whole - 8).to_bytes(8, "little") + text.ljust(whole - 8)


def map_file(path: Path, size: int | None = None) -> memoryview:
    """The whole file as a read-only mapped view. Raises UserError when it cannot be opened, DamagedFileError
    when it no longer has `size` bytes."""
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno()).st_size
            if size is not None and found != size:
                raise DamagedFileError(path, f"it has {found} bytes instead of {size}")
            if found == 0:
                return memoryview(b"")
            return memoryview(mmap.mmap(file.fileno(), found, access=mmap.ACCESS_READ))
    except OSError as error:
        raise UserError(
            f"{path} cannot be mapped: {error.strerror}.", field="path", given=str(path)
        ) from error


def _json_object(text: bytes) -> dict[str, Any]:
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"its header is not UTF-8 at byte {error.start}") from error
    try:
        record = json.loads(decoded, object_pairs_hook=unique_names, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("its header is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"its header is not JSON ({error.msg} at character {error.pos})") from error
    if not isinstance(record, dict):
        raise ValueError("its header is not a table of tensors")
    return record


def _entry(name: str, value: Any, start: int) -> HeaderEntry:
    shown = _short(name)
    if not 1 <= len(name) <= NAME_MOST:
        raise ValueError(f"the tensor name {shown} has {len(name)} characters")
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the tensor {shown} does not state exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"the tensor {shown} has the unknown type {_short(str(dtype))}")
    if not isinstance(shape, list) or len(shape) > DIMENSIONS_MOST or not all(map(_is_count, shape)):
        raise ValueError(f"the tensor {shown} has the impossible shape {_short(str(shape))}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise ValueError(f"the tensor {shown} has the impossible offsets {_short(str(offsets))}")
    begin, end = offsets
    if end < begin:
        raise ValueError(f"the tensor {shown} ends before it begins")
    needed = math.prod(shape) * DTYPES[dtype]
    if needed != end - begin:
        said = _short(str(shape))
        raise ValueError(
            f"the tensor {shown} of shape {said} and type {dtype} takes {needed} bytes, not {end - begin}"
        )
    return HeaderEntry(name, dtype, tuple(shape), start + begin, end - begin)


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object_pairs_hook for json.loads that refuses an object with a name twice (ValueError)."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the name {_short(name)} occurs twice")
        found[name] = value
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"its header holds {text}, which is not JSON")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _short(text: str) -> str:
    shown = text if text.isprintable() else ascii(text)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
