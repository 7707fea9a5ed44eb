"""Where an encoder's weights live, and the layout that its float matrices take there.

mapped: everything stays in the mapped file. copied: what multiplies is copied once, to memory in huge pages;
float matrices become f32 in layout rows16-1, which products of a whole text read faster. Embeddings stay
mapped either way, since a text touches a few of their rows.
"""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import DamagedFileError
from haversack.core.pack import TensorEntry, TensorSource
from haversack.kernels import Matrix, interleave_rows, interleaved_nbytes
from haversack.models.language._encoder import EncoderArchitecture
from haversack.run._forms import assemble, forms_of, stored_names
from haversack.run._weights import FLOAT_KINDS, MATRIX_KINDS, nbytes, tensor

Array = npt.NDArray[Any]

RESIDENCIES = ("mapped", "copied")
HUGE = 2 << 20
LINE = 64
PIECE = 12 << 20
"""What `interleave_rows` takes beside its source and its result."""


def load(source: TensorSource, architecture: EncoderArchitecture, residency: str) -> dict[str, Any]:
    """The architecture's tensors as kernels take them."""
    copied = _copied(source, architecture) if residency == "copied" else []
    others = [name for name in stored_names(source, architecture.tensors()) if name not in set(copied)]
    found = {name: tensor(source.tensors[name], source.bytes(name)) for name in others}
    sizes = [_held(source.tensors[name]) for name in copied]
    memory = huge_memory(sum(sizes))
    at = 0
    for name, size in zip(copied, sizes, strict=True):
        entry = source.tensors[name]
        rows, columns = entry.shape
        read = Matrix.from_bytes(entry.kind, (rows, columns), entry.group, entry.layout, _read(source, entry))
        if entry.kind in FLOAT_KINDS:
            found[name] = interleave_rows(read, memory[at : at + interleaved_nbytes(rows, columns)])
        else:
            found[name] = _moved(read, memory[at : at + read.nbytes])
        at += size
    return assemble(forms_of(source), found)


def planned_weights(
    source: TensorSource, architecture: EncoderArchitecture, residency: str
) -> tuple[tuple[str, int], ...]:
    """(label, bytes) of what `load` will hold."""
    everything = architecture.tensors()
    if residency == "mapped":
        return (("weights, mapped", nbytes(source, everything)),)
    copied = _copied(source, architecture)
    held = [_held(source.tensors[name]) for name in copied]
    rest = nbytes(source, everything) - nbytes(source, copied)
    return (
        ("weights, copied", sum(held) + HUGE),
        ("embeddings, mapped", rest),
        ("a matrix on its way", max((source.tensors[name].nbytes for name in copied), default=0) + PIECE),
    )


def _copied(source: TensorSource, architecture: EncoderArchitecture) -> list[str]:
    """Names of the matrices that multiply (or are parts of one that does), but for an embedding that is also
    the output.
    """
    names = dict.fromkeys(linear.weight for linear in architecture.matrices())
    stored = stored_names(source, (name for name in names if name != architecture.embedding))
    entries = ((name, source.tensors[name]) for name in stored)
    return [name for name, entry in entries if len(entry.shape) == 2 and entry.kind in MATRIX_KINDS]


def _held(entry: TensorEntry) -> int:
    """Bytes of a matrix's copy, up to the next line of the cache."""
    rows, columns = entry.shape
    size = interleaved_nbytes(rows, columns) if entry.kind in FLOAT_KINDS else entry.nbytes
    return -(-size // LINE) * LINE


def huge_memory(nbytes: int) -> Array:
    """Zeroed memory of `nbytes` bytes, uint8, aligned to 2 MiB with huge pages advised."""
    # Private: memory that can be shared with a child gets no huge pages.
    memory = mmap.mmap(-1, nbytes + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(memory, "madvise") and hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    flat = np.frombuffer(memory, np.uint8)
    return flat[-flat.ctypes.data % HUGE :][:nbytes]


def _moved(matrix: Matrix, to: Array) -> Matrix:
    to[...] = matrix.data
    return Matrix(matrix.kind, matrix.rows, matrix.columns, matrix.group, matrix.layout, to)


def _read(source: TensorSource, entry: TensorEntry) -> Any:
    """The bytes of a tensor, read past the mapping so that its pages do not stay resident beside the copy."""
    path = next((path for path in source.files if path.name == entry.file), None)
    if path is None:  # not in a file
        return source.bytes(entry.name)
    data = np.empty(entry.nbytes, np.uint8)
    view = memoryview(data)  # type: ignore[arg-type]
    descriptor = os.open(path, os.O_RDONLY)
    try:
        done = 0
        while done < entry.nbytes:
            got = os.preadv(descriptor, [view[done:]], entry.offset + done)
            if got == 0:
                raise DamagedFileError(path, f"it ends at byte {entry.offset + done}")
            done += got
        with suppress(AttributeError, OSError):
            os.posix_fadvise(descriptor, entry.offset, entry.nbytes, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    return data
