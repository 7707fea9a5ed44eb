"""A pack of kind `signal` or `mcu` as one small file, for models of a few hundred numbers.

`HVSP`, two bytes of version, two of kind, a MessagePack record (length before it, u16 each), the arrays one
after the other, a CRC-32 over all before it. Little endian. An array is f32, f16, or int8 with one scale.
docs/format.md has the bytes."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from haversack.core._files import write_atomically
from haversack.core.errors import DamagedFileError, UserError
from haversack.core.pack import Finding

MAGIC = b"HVSP"
VERSION = 1
KINDS = ("signal", "mcu")
LARGEST = 1 << 20
TYPES = {"f4": 4, "f2": 2, "i1": 1}
HEAD = struct.Struct("<4sBBH")
F64 = NDArray[np.float64]


@dataclass(frozen=True)
class SmallPack:
    """`model` names who reads it, `record` is its plain data, `arrays` its numbers by name."""

    kind: str
    model: str
    record: Mapping[str, Any]
    arrays: Mapping[str, F64]

    def encode(self, stored: str = "f2") -> bytes:
        """The file's bytes, arrays `stored` as f4, f2 or i1. Raises UserError for numbers beyond the type."""
        if stored not in TYPES or self.kind not in KINDS:
            raise ValueError(f"there are no {self.kind} packs of {stored}")
        entries, body = [], []
        for name, array in self.arrays.items():
            values = np.asarray(array, np.float64)
            scale = 1.0
            if stored == "i1":
                scale = float(np.abs(values).max(initial=0.0)) / 127 or 1.0
                values = np.rint(values / scale)
            with np.errstate(over="ignore"):
                data = values.astype(f"<{stored}")
            if not np.isfinite(data.astype(np.float64)).all():
                raise UserError(
                    f"{name} holds numbers that {stored} cannot; store the pack in f4.", field="stored"
                )
            entry = [name, list(values.shape)]
            entries.append([*entry, float(np.float32(scale))] if stored == "i1" else entry)
            body.append(data.tobytes())
        record = msgspec.msgpack.encode([self.model, stored, dict(self.record), entries])
        out = HEAD.pack(MAGIC, VERSION, KINDS.index(self.kind), len(record)) + record + b"".join(body)
        if len(out) + 4 > LARGEST:
            raise UserError(f"a pack of one file holds at most {LARGEST >> 20} MiB.", field="output")
        return out + struct.pack("<I", zlib.crc32(out))

    def write(self, path: str | os.PathLike[str], stored: str = "f2") -> int:
        """Write the file, whole or not at all; returns its bytes. Raises UserError where something else than
        such a pack has the name already."""
        goal = Path(path)
        data = self.encode(stored)
        if goal.is_dir() or (goal.exists() and not is_small_pack(goal)):
            raise UserError(
                f"{goal} exists and is no pack of one file; choose another -o.",
                field="output",
                given=str(goal),
            )
        write_atomically(goal, data)
        return len(data)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> SmallPack:
        """Read and check a file. Raises UserError when there is none, DamagedFileError for what does not
        hold."""
        source = Path(path)
        try:
            if source.stat().st_size > LARGEST:
                raise DamagedFileError(
                    source, f"a pack of one file has at most {LARGEST} bytes", field="pack"
                )
            data = source.read_bytes()
        except OSError as error:
            raise UserError(
                f"{source} cannot be read: {error.strerror}.", field="pack", given=str(source)
            ) from error
        try:
            return cls.decode(data)
        except ValueError as error:
            raise DamagedFileError(source, str(error), field="pack") from error

    @classmethod
    def decode(cls, data: bytes) -> SmallPack:
        """What `encode` wrote. Raises ValueError with the finding."""
        if len(data) < HEAD.size + 4 or data[:4] != MAGIC:
            raise ValueError("it does not begin as a pack of one file")
        if zlib.crc32(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
            raise ValueError("its checksum does not match: it was altered or truncated")
        _, version, kind, length = HEAD.unpack_from(data)
        if version != VERSION or kind >= len(KINDS):
            raise ValueError(f"it is of version {version}, kind {kind}, which this program does not read")
        at = HEAD.size + length
        try:
            raw = msgspec.msgpack.decode(
                data[HEAD.size : at], type=tuple[str, str, dict[str, Any], list[Any]]
            )
        except (msgspec.MsgspecError, RecursionError) as error:
            raise ValueError(f"its record cannot be read ({error})") from error
        model, stored, record, entries = raw
        if stored not in TYPES:
            raise ValueError(f"its numbers are {stored[:20]!r}, which is no type")
        arrays: dict[str, F64] = {}
        for entry in entries:
            name, shape, scale = _entry(entry, stored)
            count = int(np.prod(shape, dtype=np.int64)) if shape else 1
            end = at + count * TYPES[stored]
            if name in arrays or end > len(data) - 4:
                raise ValueError(f"the array {name[:40]} is doubled or does not lie in the file")
            values = np.frombuffer(data[at:end], f"<{stored}").astype(np.float64) * scale
            if not np.isfinite(values).all():
                raise ValueError(f"the array {name[:40]} holds what is no number")
            arrays[name] = values.reshape(shape)
            at = end
        if at != len(data) - 4:
            raise ValueError(f"{len(data) - 4 - at} bytes belong to nothing")
        return cls(KINDS[kind], model, record, arrays)


def is_small_pack(path: str | os.PathLike[str]) -> bool:
    """True when `path` is a file that begins as a pack of one file; says nothing about its health."""
    try:
        with Path(path).open("rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def small_pack_findings(path: str | os.PathLike[str]) -> list[Finding]:
    """What is wrong with a pack of one file; empty when it is whole."""
    try:
        SmallPack.read(path)
    except DamagedFileError as error:
        return [Finding(Path(path).name, error.what)]
    return []


def _entry(entry: Any, stored: str) -> tuple[str, tuple[int, ...], float]:
    fine = isinstance(entry, list) and len(entry) == (3 if stored == "i1" else 2)
    if not fine or not isinstance(entry[0], str) or not isinstance(entry[1], list) or len(entry[1]) > 4:
        raise ValueError("an entry of its arrays is no name with a shape")
    if not all(type(size) is int and 0 <= size <= LARGEST for size in entry[1]):
        raise ValueError(f"the shape of {entry[0][:40]} is impossible")
    scale = entry[2] if stored == "i1" else 1.0
    if not isinstance(scale, float):
        raise ValueError(f"the scale of {entry[0][:40]} is no number")
    return entry[0], tuple(entry[1]), scale
