"""IDX: the files of MNIST and Fashion-MNIST, plain or gzipped.

Format: two zero bytes, a byte for the type (0x08 u8, 0x09 i8, 0x0B i16, 0x0C i32, 0x0D f32, 0x0E f64), a byte
for the number of dimensions, their sizes as big-endian u32, then the numbers, big-endian, the last dimension
fastest (LeCun, Cortes and Burges, "The MNIST database", 1998). Headers are checked against the file's size
before anything is allocated; a gzipped file is read to its header's size and one byte more. A set is a pair
of files, PART-images-idx3-ubyte and PART-labels-idx1-ubyte; the part t10k (or test) is kept for judging.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from haversack.core._files import explain_write_errors
from haversack.core.errors import DamagedFileError, UserError
from haversack.formats._row_files import LabelledRows, Part, RowFile, is_held_out, labelled_rows, laid_out

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
BYTES_MOST = 1 << 31
DIMENSIONS_MOST = 8
GZIP = b"\x1f\x8b"
NAME = re.compile(r"(?P<part>.+)[-.]images[-.]idx3[-.]ubyte(?P<zipped>\.gz)?", re.IGNORECASE)
"""train-images-idx3-ubyte, t10k-images.idx3-ubyte.gz, emnist-letters-test-images-idx3-ubyte.gz."""


def read_idx(path: Path) -> NDArray[Any]:
    """The array of an IDX file, in native byte order.

    Raises UserError when the file cannot be read, DamagedFileError when it is not IDX, ends early, holds more
    than its header says, or claims more than 2 GiB.
    """
    with _opened(path) as (file, size):
        return _read(path, file, size)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int | None]]:
    """The file's bytes without their gzip, and how many there are where that is known."""
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == GZIP
            file.seek(0)
            if not zipped:
                yield file, path.stat().st_size
                return
            with gzip.GzipFile(fileobj=file) as inside:
                yield inside, None  # type: ignore[misc]
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DamagedFileError(path, f"its gzip stream breaks off ({error})") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.", field="data", given=str(path)) from error


def _header(path: Path, file: BinaryIO, size: int | None) -> tuple[tuple[int, ...], Any, int]:
    """(shape, dtype, bytes of the numbers) by the header that `file` begins with."""
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
    return shape, dtype, nbytes


def _read(path: Path, file: BinaryIO, size: int | None) -> NDArray[Any]:
    shape, dtype, nbytes = _header(path, file, size)
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


def is_idx(path: Path) -> bool:
    """Whether `path` is named like a file of MNIST's pictures."""
    return NAME.fullmatch(path.name) is not None and path.is_file()


def idx_set(path: Path) -> LabelledRows | None:
    """The pictures [height, width] of MNIST's pairs of files in the folder `path`, or of the pair whose
    pictures are the file `path`; None where there is none.

    Only headers and labels are read; a gzipped file of pictures is unpacked into the cache once. Classes are
    the labels that occur. Raises UserError for pictures without labels and for two sets in one folder,
    DamagedFileError as `read_idx` does and for files that do not belong together.
    """
    if is_idx(path):
        pairs = [path]
    elif path.is_dir():
        pairs = sorted(each for each in path.iterdir() if is_idx(each))
    else:
        return None
    parts: dict[bool, Part] = {}
    for pictures in pairs:
        found = NAME.fullmatch(pictures.name)
        assert found is not None
        held_out = is_held_out(found["part"].rpartition("-")[2])
        if held_out in parts:
            raise UserError(
                f"{path} has two sets of pictures ({parts[held_out].file.path.name} and {pictures.name}); "
                "give the file of one.",
                field="data",
                given=str(path),
                nearest=str(pictures),
            )
        parts[held_out] = Part(_pictures(pictures), _labels(pictures), held_out)
    return labelled_rows(path, [parts[side] for side in sorted(parts)], None) if parts else None


def _pictures(path: Path) -> RowFile:
    with _opened(path) as (file, size):
        shape, dtype, nbytes = _header(path, file, size)
        if len(shape) != 3 or dtype != np.uint8 or 0 in shape:
            raise DamagedFileError(path, f"it holds {dtype} {shape}, not pictures of bytes")
    place, start = path, 4 + 4 * len(shape)
    if size is None:
        place, start = laid_out(path, path.name.removesuffix(".gz"), lambda goal: _unzip(path, goal)), 0
        if place.stat().st_size != nbytes:
            raise DamagedFileError(path, f"its header asks for {nbytes:,} bytes of numbers")
    return RowFile(place, shape[0], start, math.prod(shape[1:]), tuple(shape[1:]))


def _unzip(path: Path, goal: BinaryIO) -> None:
    """Write the numbers of a gzipped file, and refuse one that has more or fewer than it says."""
    with _opened(path) as (file, size):
        _, _, nbytes = _header(path, file, size)
        left = nbytes
        while left and (piece := file.read(min(1 << 20, left))):
            with explain_write_errors(Path(goal.name)):
                goal.write(piece)
            left -= len(piece)
        if left or file.read(1):
            raise DamagedFileError(path, f"it does not hold the {nbytes:,} bytes that its header says")


def _labels(pictures: Path) -> NDArray[np.int64]:
    """Of the file beside `pictures` that has their labels, zipped or not."""
    stem = pictures.name.removesuffix(".gz")
    named = re.sub("images", "labels", stem, flags=re.IGNORECASE)
    named = re.sub("idx3", "idx1", named, flags=re.IGNORECASE)
    places = [pictures.with_name(named), pictures.with_name(f"{named}.gz")]
    place = next((each for each in places if each.is_file()), None)
    if place is None:
        raise UserError(
            f"{pictures} has no labels: {named} is not beside it.", field="data", given=str(pictures)
        )
    found = read_idx(place)
    with _opened(pictures) as (file, size):
        count = _header(pictures, file, size)[0][0]
    if found.dtype != np.uint8 or found.ndim != 1 or len(found) != count:
        raise DamagedFileError(
            place, f"it holds {found.dtype} {found.shape}, not a label for each of {count} pictures"
        )
    return found.astype(np.int64)


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
