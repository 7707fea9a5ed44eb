"""Writing a GGUF file: header first, then tensor by tensor, and only a whole file takes the name."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from haversack.core._files import (
    explain_write_errors,
    partial_path,
    put_in_place,
    remove,
    remove_stale_partials,
)
from haversack.formats._gguf_types import BY_NAME

if TYPE_CHECKING:
    from typing_extensions import Buffer

ALIGNMENT = 32
_SCALARS = {
    "u8": 0,
    "i8": 1,
    "u16": 2,
    "i16": 3,
    "u32": 4,
    "i32": 5,
    "f32": 6,
    "u64": 10,
    "i64": 11,
    "f64": 12,
}
_DTYPES = {
    "u8": "u1", "i8": "i1", "u16": "<u2", "i16": "<i2", "u32": "<u4", "i32": "<i4", "f32": "<f4",
    "u64": "<u8", "i64": "<i8", "f64": "<f8",
}  # fmt: skip
_BOOL, _STRING, _ARRAY = 7, 8, 9


@dataclass(frozen=True)
class TensorOut:
    """A tensor to be written: `kind` f32, f16, bf16, q8_0, q4_0 or another type of GGUF, its `shape` [...,
    columns], and `data`, which gives its bytes in pieces when its turn comes."""

    name: str
    kind: str
    shape: tuple[int, ...]
    data: Callable[[], Iterable[Buffer]]

    @property
    def nbytes(self) -> int:
        """Bytes it takes. Raises ValueError when a row is no whole number of blocks."""
        return BY_NAME[self.kind].size(self.shape)


def write_gguf_file(
    path: str | os.PathLike[str],
    metadata: Mapping[str, tuple[str, Any]],
    tensors: Sequence[TensorOut],
    check: Callable[[Path], None] = lambda path: None,
) -> int:
    """Write GGUF version 3 atomically; returns its size in bytes.

    `metadata` maps a key to (type, value): a scalar type (u8 ... f64), bool, string, or [TYPE] for an array.
    `check` sees the whole file before it takes its name; what it raises leaves no file. Raises ValueError
    when a tensor's bytes are not what its shape takes, UserError when the disk is full.
    """
    goal = Path(path)
    header = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, (kind, value) in metadata.items():
        header += _text(key)
        _put(header, kind, value)
    at = 0
    for tensor in tensors:
        sizes = tuple(reversed(tensor.shape))
        header += _text(tensor.name) + struct.pack("<I", len(sizes)) + struct.pack(f"<{len(sizes)}Q", *sizes)
        header += struct.pack("<IQ", BY_NAME[tensor.kind].code, at)
        at += _padded(tensor.nbytes)
    header += bytes(-len(header) % ALIGNMENT)
    with explain_write_errors(goal):
        remove_stale_partials(goal)
        partial = partial_path(goal)
        try:
            with partial.open("wb") as file:
                file.write(header)
                for tensor in tensors:
                    written = 0
                    for piece in tensor.data():
                        view = memoryview(piece).cast("B")
                        written += view.nbytes
                        file.write(view)
                    if written != tensor.nbytes:
                        raise ValueError(f"{tensor.name} takes {tensor.nbytes} bytes and was given {written}")
                    file.write(bytes(_padded(written) - written))
                file.flush()
                os.fsync(file.fileno())
            check(partial)
            put_in_place(partial, goal)
        except BaseException:
            remove(partial)
            raise
    return len(header) + at


def _padded(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT


def _text(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _put(header: bytearray, kind: str, value: Any) -> None:
    """Type code and value."""
    if kind == "bool":
        header += struct.pack("<IB", _BOOL, bool(value))
    elif kind == "string":
        header += struct.pack("<I", _STRING) + _text(value)
    elif kind == "[string]":
        items = list(value)
        header += struct.pack("<IIQ", _ARRAY, _STRING, len(items))
        for item in items:
            header += _text(item)
    elif kind.startswith("["):
        numbers = np.asarray(value, _DTYPES[kind[1:-1]])
        header += struct.pack("<IIQ", _ARRAY, _SCALARS[kind[1:-1]], numbers.size) + numbers.tobytes()
    else:
        header += struct.pack("<I", _SCALARS[kind]) + np.asarray(value, _DTYPES[kind]).tobytes()
