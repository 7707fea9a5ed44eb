"""Reading a checkpoint's tensors one at a time without keeping the file in memory."""

from __future__ import annotations

import contextlib
import os

import numpy as np

from haversack.core.errors import DamagedFileError, UserError
from haversack.core.pack import TensorEntry, TensorSource
from haversack.models._checkpoint import Turned
from haversack.models._rearranged import Rearranged
from haversack.run._forms import forms_of
from haversack.run._weights import bind
from haversack.shrink._rounding import F32

FLOATS = ("f32", "f16", "bf16")


def read_bytes(source: TensorSource, entry: TensorEntry, start: int, nbytes: int) -> bytes:
    """`nbytes` of a tensor from its byte `start`; the pages read leave memory (mapped ones would stay in
    it).
    """
    if isinstance(entry, Turned | Rearranged):
        return bytes(source.bytes(entry.name)[start : start + nbytes])
    path = next(path for path in source.files if path.name == entry.file)
    with path.open("rb", buffering=0) as file:
        parts, at, stop = [], entry.offset + start, entry.offset + start + nbytes
        while at < stop:
            parts.append(os.pread(file.fileno(), min(stop - at, 1 << 30), at))
            if not parts[-1]:
                raise DamagedFileError(path, f"the tensor {entry.name} ends early", field="model")
            at += len(parts[-1])
        with contextlib.suppress(AttributeError, OSError):
            os.posix_fadvise(file.fileno(), entry.offset + start, nbytes, os.POSIX_FADV_DONTNEED)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_rows(source: TensorSource, name: str, start: int, stop: int) -> F32:
    """Rows `start` to `stop` of the float matrix `name` as f32. Raises like `read_tensor`."""
    entry = _float_entry(source, name)
    row = entry.nbytes // entry.shape[0]
    data = read_bytes(source, entry, start * row, (stop - start) * row)
    return _finite(name, _numbers(entry.kind, data).reshape(stop - start, *entry.shape[1:]))


def read_tensor(source: TensorSource, name: str) -> F32:
    """The float tensor `name` as f32 of its shape; a matrix of several parts as what they stand for.

    Raises UserError for a tensor that is absent, no float type, or holds NaN or infinity; it names the
    tensor.
    """
    if name in forms_of(source):
        return _finite(name, bind(source, [name])[name].dense())
    entry = _float_entry(source, name)
    return _finite(
        name, _numbers(entry.kind, read_bytes(source, entry, 0, entry.nbytes)).reshape(entry.shape)
    )


def _float_entry(source: TensorSource, name: str) -> TensorEntry:
    entry = source.tensors.get(name)
    if entry is None:
        raise DamagedFileError(source.path, f"the tensor {name} is missing", field="model")
    if entry.kind not in FLOATS:
        raise UserError(
            f"{name} is stored as {entry.kind}, not as f32, f16 or bf16; pack the original checkpoint.",
            field="model",
            given=entry.kind,
            nearest="f16",
        )
    return entry


def _numbers(kind: str, data: bytes) -> F32:
    if kind == "bf16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, "<f4" if kind == "f32" else "<f2").astype(np.float32)


def _finite(name: str, values: F32) -> F32:
    if not np.isfinite(values).all():
        count = int((~np.isfinite(values)).sum())
        raise UserError(f"{name} holds {count} weights that are not finite.", field="model", given=name)
    return values
