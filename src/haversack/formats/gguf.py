"""GGUF (versions 2 and 3, little endian): one file with metadata, tokenizer and tensors, read in place.

`GgufFile` is the file as a `TensorSource` under its own tensor names. The header is parsed under limits, from
the file, before anything is mapped: counts, lengths, nesting, offsets, alignment, overlaps and sizes are
checked against the file's size, and nothing is allocated by what the header claims. Arrays of metadata (a
vocabulary, its merges) are stepped over and read only when asked for.

`write_gguf_file` writes such a file tensor by tensor, atomically. Source: the format's specification in the
ggml project, docs/gguf.md.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from haversack.core._safetensors import map_file
from haversack.core.errors import DamagedFileError, UserError, nearest_name
from haversack.core.pack import TensorEntry
from haversack.formats._gguf_types import PLAIN, TYPES, BlockType
from haversack.formats._gguf_writer import TensorOut, write_gguf_file

__all__ = ["GgufArray", "GgufFile", "TensorOut", "write_gguf_file"]

MAGIC = b"GGUF"
HEADER_MOST = 256 * 2**20
KEYS_MOST, TENSORS_MOST = 2**16, 2**17
NAME_MOST, STRING_MOST, TEXT_MOST = 1024, 32 * 2**20, 32 * 2**20
"""Bytes of a name, of one text, and of all texts that are no part of an array."""
NESTING_MOST = 4
DIMENSIONS_MOST = 4
ALIGNMENT_MOST = 2**16
WINDOW = 2**20

STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_DTYPES = {
    0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "u1",
    10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class GgufArray:
    """An array of the metadata, still in the file: `count` items of type `item` in `nbytes` from `offset`."""

    item: int
    count: int
    offset: int
    nbytes: int
    path: Path | None = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> str:
        """One text of an array of texts, read from the file. Raises IndexError beyond its end, TypeError for
        an array of anything else."""
        if self.item != STRING or self.path is None:
            raise TypeError("only texts are read one by one")
        if not 0 <= index < self.count:
            raise IndexError(index)
        file = GgufFile(self.path, {"": self}, {}, 0, 3)
        return next(file.texts("", (index,)))


class GgufFile:
    """One GGUF file as a `TensorSource`; made by `GgufFile.open`. `metadata` holds scalars, texts and
    `GgufArray`s."""

    def __init__(
        self, path: Path, metadata: dict[str, Any], tensors: dict[str, TensorEntry], size: int, version: int
    ) -> None:
        self.path = path
        self.metadata = metadata
        self.tensors = tensors
        self.version = version
        self._size = size
        self._mapped: memoryview | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Read and check the header. Raises UserError when the file cannot be read, DamagedFileError (one
        sentence) for anything that does not hold."""
        file_path = Path(path)
        try:
            with file_path.open("rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                try:
                    metadata, tensors, version = _parse(_Cursor(file, size), file_path.name)
                except ValueError as error:
                    raise DamagedFileError(file_path, str(error)) from error
        except OSError as error:
            raise UserError(
                f"{file_path} cannot be read: {error.strerror}.", field="model", given=str(file_path)
            ) from error
        return cls(file_path, metadata, tensors, size, version)

    @property
    def files(self) -> tuple[Path, ...]:
        """The file itself."""
        return (self.path,)

    def bytes(self, name: str) -> memoryview:
        """The tensor's bytes as a read-only view of the mapped file. Raises UserError for an unknown name."""
        entry = self.tensors.get(name)
        if entry is None:
            nearest = nearest_name(name, self.tensors)
            hint = f"; the nearest is {nearest}" if nearest else ""
            raise UserError(
                f"{self.path} holds no tensor {name}{hint}.", field="tensor", given=name, nearest=nearest
            )
        if self._mapped is None:
            self._mapped = map_file(self.path, self._size)
        return self._mapped[entry.offset : entry.offset + entry.nbytes]

    def numbers(self, key: str) -> np.ndarray[Any, np.dtype[Any]] | None:
        """The numbers of the array `key`, None when there is none of numbers under that key."""
        array = self.metadata.get(key)
        if not isinstance(array, GgufArray) or array.item not in _DTYPES:
            return None
        return np.frombuffer(self._read(array), _DTYPES[array.item])

    def texts(self, key: str, only: Collection[int] | None = None) -> Iterator[str]:
        """The texts of the array `key` one by one, or those whose indices are in `only`; none when there is
        no array of texts under that key.

        Raises DamagedFileError for one that is not UTF-8.
        """
        array = self.metadata.get(key)
        if not isinstance(array, GgufArray) or array.item != STRING:
            return
        data = self._read(array)
        at = 0
        for index in range(array.count):
            (length,) = _LENGTH.unpack_from(data, at)
            at += 8
            if only is None or index in only:
                try:
                    yield data[at : at + length].decode("utf-8")
                except UnicodeDecodeError as error:
                    raise DamagedFileError(self.path, f"entry {index} of {key} is not UTF-8") from error
            at += length

    def _read(self, array: GgufArray) -> Any:
        try:
            with self.path.open("rb", buffering=0) as file:
                data = os.pread(file.fileno(), array.nbytes, array.offset)
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be read: {error.strerror}.", field="model", given=str(self.path)
            ) from error
        if len(data) != array.nbytes:
            raise DamagedFileError(self.path, f"it ends at byte {array.offset + len(data)}")
        return data


class _Cursor:
    """Reads the header from the file in windows; raises ValueError at its end and beyond HEADER_MOST."""

    def __init__(self, file: IO[Any], size: int) -> None:
        self.size = size
        self.path = Path(str(file.name))
        self.texts = 0
        self._file = file
        self._window, self._start, self._at = b"", 0, 0

    @property
    def at(self) -> int:
        """Bytes read so far."""
        return self._start + self._at

    @property
    def left(self) -> int:
        """Bytes of the file behind the cursor."""
        return self.size - self.at

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        self._reach(count)
        self._at += count
        return self._window[self._at - count : self._at]

    def skip(self, count: int) -> None:
        """Step over `count` bytes that the file has."""
        self._require(count)
        if self._at + count <= len(self._window):
            self._at += count
        else:
            self._start, self._at, self._window = self.at + count, 0, b""

    def number(self, code: str) -> Any:
        """The next number, in struct's spelling."""
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self, what: str, most: int) -> str:
        """The next length and text."""
        length = self.number("Q")
        if length > most:
            raise ValueError(f"{what} claims {length} bytes; at most {most} are allowed")
        self.texts += length
        if self.texts > TEXT_MOST:
            raise ValueError(f"its metadata holds more than {TEXT_MOST >> 20} MiB of text")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{what} is not UTF-8") from error

    def skip_texts(self, count: int, what: str) -> None:
        """Step over `count` lengths and texts, fast: a vocabulary has a hundred thousand."""
        unpack, done = _LENGTH.unpack_from, 0
        while done < count:
            self._reach(8)
            window, at = self._window, self._at
            last = len(window) - 8
            while done < count and at <= last:
                length = unpack(window, at)[0]
                if length > STRING_MOST:
                    raise ValueError(
                        f"a text of {what} claims {length} bytes; at most {STRING_MOST} are allowed"
                    )
                at += 8 + length
                done += 1
            beyond = max(0, at - len(window))
            self._at = min(at, len(window))
            if beyond:
                self.skip(beyond)

    def _require(self, count: int) -> None:
        if count > self.left:
            raise ValueError(f"it ends at byte {self.size}, inside its header")
        if self.at + count > HEADER_MOST:
            raise ValueError(f"its header is longer than {HEADER_MOST >> 20} MiB")

    def _reach(self, count: int) -> None:
        if self._at + count <= len(self._window):
            return
        self._require(count)
        start = self.at
        wanted = max(count, min(WINDOW, self.left))
        self._file.seek(start)
        parts = []
        while wanted > 0:
            part = self._file.read(wanted)
            if not part:
                raise ValueError("it became shorter while it was read")
            parts.append(part)
            wanted -= len(part)
        self._window, self._start, self._at = b"".join(parts), start, 0


def _parse(cursor: _Cursor, file: str) -> tuple[dict[str, Any], dict[str, TensorEntry], int]:
    """Metadata, tensors and version. Raises ValueError with the finding."""
    magic = cursor.take(4)
    if magic != MAGIC:
        raise ValueError(f"it is no GGUF file (it begins with {magic!r})")
    version = cursor.number("I")
    if version not in (2, 3):
        if version & 0xFFFF == 0:
            raise ValueError("it is a big-endian GGUF file; only little-endian ones are read")
        raise ValueError(f"it is GGUF of version {version}; versions 2 and 3 are read")
    tensor_count, key_count = cursor.number("Q"), cursor.number("Q")
    # A key takes at least 13 bytes (length, name, type, value), a tensor 33.
    if key_count > KEYS_MOST or key_count * 13 > cursor.left:
        raise ValueError(f"its header claims {key_count} keys of metadata, which it cannot hold")
    if tensor_count > TENSORS_MOST or tensor_count * 33 > cursor.left:
        raise ValueError(f"its header claims {tensor_count} tensors, which it cannot hold")
    metadata: dict[str, Any] = {}
    for _ in range(key_count):
        key = cursor.text("a key of its metadata", NAME_MOST)
        if not key:
            raise ValueError("a key of its metadata has no name")
        if key in metadata:
            raise ValueError(f"the key {_short(key)} occurs twice")
        metadata[key] = _value(cursor, cursor.number("I"), _short(key), 0)
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= ALIGNMENT_MOST or alignment & (alignment - 1):
        raise ValueError(f"general.alignment is {_short(str(alignment))}, which is no power of two of use")
    found = [_tensor(cursor, alignment) for _ in range(tensor_count)]
    data_start = -(-cursor.at // alignment) * alignment
    return metadata, _entries(found, data_start, cursor.size, file), version


def _value(cursor: _Cursor, kind: int, key: str, depth: int) -> Any:
    if kind in SCALARS:
        if kind == 7:
            flag = cursor.number("B")
            if flag > 1:
                raise ValueError(f"the flag {key} is {flag}, neither 0 nor 1")
            return bool(flag)
        return cursor.number(SCALARS[kind])
    if kind == STRING:
        return cursor.text(f"the text {key}", STRING_MOST)
    if kind == ARRAY:
        return _array(cursor, key, depth)
    raise ValueError(f"the key {key} has the unknown type {kind}")


def _array(cursor: _Cursor, key: str, depth: int) -> GgufArray:
    """Step over an array; its items are checked, not kept."""
    if depth >= NESTING_MOST:
        raise ValueError(f"the array {key} is nested more than {NESTING_MOST} deep")
    item, count = cursor.number("I"), cursor.number("Q")
    if item not in SCALARS and item not in (STRING, ARRAY):
        raise ValueError(f"the array {key} has items of the unknown type {item}")
    least = struct.calcsize("<" + SCALARS[item]) if item in SCALARS else 8 if item == STRING else 12
    if count > cursor.left // least:
        raise ValueError(f"the array {key} claims {count} items, more than the file can hold")
    start = cursor.at
    if item in SCALARS:
        cursor.skip(count * least)
    elif item == STRING:
        cursor.skip_texts(count, key)
    else:
        for _ in range(count):
            _array(cursor, key, depth + 1)
    return GgufArray(item, count, start, cursor.at - start, cursor.path)


@dataclass(frozen=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    kind: BlockType
    offset: int
    nbytes: int


def _tensor(cursor: _Cursor, alignment: int) -> _Tensor:
    name = cursor.text("a tensor's name", NAME_MOST)
    shown = _short(name)
    if not name:
        raise ValueError("a tensor has no name")
    count = cursor.number("I")
    if not 1 <= count <= DIMENSIONS_MOST:
        raise ValueError(f"the tensor {shown} has {count} dimensions; 1 to {DIMENSIONS_MOST} are allowed")
    shape = tuple(reversed(struct.unpack(f"<{count}Q", cursor.take(8 * count))))
    code, offset = cursor.number("I"), cursor.number("Q")
    kind = TYPES.get(code)
    if kind is None:
        known = ", ".join(sorted(one.name for one in TYPES.values()))
        raise ValueError(f"the tensor {shown} has the unknown number type {code}; known are {known}")
    if any(not 1 <= size < 2**48 for size in shape):
        raise ValueError(f"the tensor {shown} has the impossible shape {_short(str(list(shape)))}")
    try:
        nbytes = kind.size(shape)
    except ValueError as error:
        raise ValueError(f"the tensor {shown}: {error}") from error
    if offset % alignment:
        raise ValueError(f"the tensor {shown} begins at {offset}, which is no multiple of {alignment}")
    return _Tensor(name, shape, kind, offset, nbytes)


def _entries(found: list[_Tensor], data_start: int, size: int, file: str) -> dict[str, TensorEntry]:
    """The tensors by name, after checking that each lies in the file and none on another."""
    at, before = 0, ""
    for one in sorted(found, key=lambda tensor: tensor.offset):
        if one.offset < at:
            raise ValueError(f"the tensor {_short(one.name)} overlaps {before}")
        at, before = one.offset + one.nbytes, _short(one.name)
        if data_start + at > size:
            raise ValueError(
                f"the tensor {before} ends at byte {data_start + at} and the file at {size}: it is cut short"
            )
    entries: dict[str, TensorEntry] = {}
    for one in found:
        if one.name in entries:
            raise ValueError(f"the tensor {_short(one.name)} occurs twice")
        kind = one.kind.name
        layout = "rows-1" if kind in PLAIN else "gguf-blocks"
        entries[one.name] = TensorEntry(
            one.name, kind, one.shape, None, layout, file, data_start + one.offset, one.nbytes
        )
    return entries


def _short(text: str) -> str:
    shown = text if text.isprintable() else ascii(text)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
