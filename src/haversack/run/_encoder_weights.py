"""Where an encoder's weights live, and the layout that its float matrices take there.

mapped: everything stays in the mapped file. copied: what multiplies is copied once, to memory in huge pages;
float matrices become f32 in layout rows16-1, which products of a whole text read faster. Embeddings stay
mapped either way, since a text touches a few of their rows.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

import numpy as np

from haversack.core.errors import DamagedFileError
from haversack.core.pack import TensorEntry, TensorSource
from haversack.kernels import Matrix, huge_copy, interleave_rows
from haversack.models.language._encoder import EncoderArchitecture
from haversack.run._weights import FLOAT_KINDS, bind, nbytes

RESIDENCIES = ("mapped", "copied")


def load(source: TensorSource, architecture: EncoderArchitecture, residency: str) -> dict[str, Any]:
    """The architecture's tensors as kernels take them."""
    copied = _copied(architecture) if residency == "copied" else set()
    found = bind(source, (name for name in architecture.tensors() if name not in copied))
    for name in copied:
        found[name] = _copy(source, source.tensors[name])
    return found


def planned_weights(
    source: TensorSource, architecture: EncoderArchitecture, residency: str
) -> tuple[tuple[str, int], ...]:
    """(label, bytes) of what `load` will hold."""
    everything = architecture.tensors()
    if residency == "mapped":
        return (("weights, mapped", nbytes(source, everything)),)
    copied = _copied(architecture)
    total = largest = 0
    for name in copied:
        entry = source.tensors[name]
        rows, columns = everything[name]
        floats = -(-rows // 16) * 16 * columns * 4
        total += floats if entry.kind in FLOAT_KINDS else entry.nbytes
        largest = max(largest, entry.nbytes + floats)
    rest = nbytes(source, [name for name in everything if name not in copied])
    return (
        ("weights, copied", total),
        ("embeddings, mapped", rest),
        ("a matrix on its way", largest),
    )


def _copied(architecture: EncoderArchitecture) -> set[str]:
    """Names of the matrices that multiply, but for an embedding that is also the output."""
    return {linear.weight for linear in architecture.matrices()} - {architecture.embedding}


def _copy(source: TensorSource, entry: TensorEntry) -> Matrix:
    rows, columns = entry.shape
    data = _read(source, entry)
    matrix = Matrix.from_bytes(entry.kind, (rows, columns), entry.group, entry.layout, data)
    if entry.kind in FLOAT_KINDS:
        matrix = interleave_rows(matrix)
    kept = huge_copy(matrix.data)
    return Matrix(matrix.kind, rows, columns, matrix.group, matrix.layout, kept)


def _read(source: TensorSource, entry: TensorEntry) -> Any:
    """The bytes of a tensor, read past the mapping so that its pages do not stay resident beside the copy."""
    path = next((path for path in source.files if path.name == entry.file), None)
    if path is None:  # not in a file
        return source.bytes(entry.name)
    data = np.empty(entry.nbytes, np.uint8)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        done = 0
        while done < entry.nbytes:
            got = os.preadv(descriptor, [memoryview(data)[done:]], entry.offset + done)
            if got == 0:
                raise DamagedFileError(path, f"it ends at byte {entry.offset + done}")
            done += got
        with suppress(AttributeError, OSError):
            os.posix_fadvise(descriptor, entry.offset, entry.nbytes, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    return data
