"""IDX: the files of MNIST and Fashion-MNIST, plain or gzipped.

Format: two zero bytes, a byte for the type (0x08 u8, 0x09 i8, 0x0B i16, 0x0C i32, 0x0D f32, 0x0E f64), a byte
for the number of dimensions, their sizes as big-endian u32, then the numbers, big-endian, the last dimension
fastest (LeCun, Cortes and Burges, "The MNIST database", 1998). Headers are checked against the file's size
before anything is allocated; a gzipped file is read to its header's size and one byte more.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import DamagedFileError, UserError

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
BYTES_MOST = 1 << 31
DIMENSIONS_MOST = 8
GZIP = b"\x1f\x8b"


def read_idx(path: Path) -> NDArray[Any]:
    """The array of an IDX file, in native byte order.

    Raises UserError when the file cannot be read, DamagedFileError when it is not IDX, ends early, holds more
    than its header says, or claims more than 2 GiB.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == GZIP
            file.seek(0)
            if not zipped:
                return _read(path, file, path.stat().st_size)
            with gzip.GzipFile(fileobj=file) as inside:
                return _read(path, inside, None)  # type: ignore[arg-type]
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DamagedFileError(path, f"its gzip stream breaks off ({error})") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.", field="data", given=str(path)) from error


def _read(path: Path, file: BinaryIO, size: int | None) -> NDArray[Any]:
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in TYPES:
        raise DamagedFileError(path, f"it does not begin like IDX (its first bytes are {head.hex()})")
    count = head[3]
    if not 1 <= count <= DIMENSIONS_MOST:
        raise DamagedFileError(path, f"it claims {count} dimensions (allowed 1 to {DIMENSIONS_MOST})")
    sizes = file.read(4 * count)
    if len(sizes) < 4 * count:
        raise DamagedFileError(path, "it ends within its header")
    shape = struct.unpack(f">{count}I", sizes)
    dtype = np.dtype(TYPES[head[2]])
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes > BYTES_MOST:
        raise DamagedFileError(path, f"it claims {nbytes:,} bytes of numbers (at most {BYTES_MOST:,})")
    if size is not None and size != 4 + 4 * count + nbytes:
        raise DamagedFileError(
            path, f"its header asks for {4 + 4 * count + nbytes:,} bytes and it has {size:,}"
        )
    data = bytearray()
    while len(data) < nbytes:
        # piece by piece: a header that claims much and a stream that holds little cost little
        piece = file.read(min(1 << 20, nbytes - len(data)))
        if not piece:
            raise DamagedFileError(path, f"it ends after {len(data):,} of {nbytes:,} bytes of numbers")
        data += piece
    if file.read(1):
        raise DamagedFileError(path, "it holds more than its header says")
    found = np.frombuffer(data, dtype).reshape(shape)
    return found.astype(dtype.newbyteorder("="))


def read_labelled_pictures(pictures: Path, labels: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """u8 [n, height, width, 1] and i64 [n] of a pair of MNIST's files.

    Raises DamagedFileError for arrays of other types or dimensions, or of two lengths.
    """
    values, names = read_idx(pictures), read_idx(labels)
    if values.dtype != np.uint8 or values.ndim != 3:
        raise DamagedFileError(pictures, f"it holds {values.dtype} {values.shape}, not pictures of bytes")
    if names.dtype != np.uint8 or names.ndim != 1 or len(names) != len(values):
        raise DamagedFileError(
            labels, f"it holds {names.dtype} {names.shape}, not a label for each of {len(values)} pictures"
        )
    return values[..., None], names.astype(np.int64)
