"""IDX files: written as MNIST's are, read back; hostile headers refused."""

from __future__ import annotations

import contextlib
import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.core.errors import DamagedFileError, UserError
from haversack.formats.idx import read_idx, read_labelled_pictures

CODES = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}


def idx(array: np.ndarray) -> bytes:
    code = CODES[array.dtype.str[1:]]
    head = bytes((0, 0, code, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("zipped", [False, True])
def test_arrays_come_back(kind, zipped, tmp_path):
    array = (np.arange(24) - 5).astype(kind).reshape(2, 3, 4)
    data = idx(array)
    (tmp_path / "a").write_bytes(gzip.compress(data) if zipped else data)
    found = read_idx(tmp_path / "a")
    assert found.dtype == array.dtype and np.array_equal(found, array)


def test_a_pair_of_mnist_files(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pictures)))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.array([3, 1, 4, 1, 5], np.uint8)))
    x, y = read_labelled_pictures(
        tmp_path / "train-images-idx3-ubyte.gz", tmp_path / "train-labels-idx1-ubyte"
    )
    assert x.shape == (5, 28, 28, 1) and np.array_equal(x[..., 0], pictures)
    assert y.dtype == np.int64 and y.tolist() == [3, 1, 4, 1, 5]


def test_a_label_for_each_picture(tmp_path):
    (tmp_path / "x").write_bytes(idx(np.zeros((5, 2, 2), np.uint8)))
    (tmp_path / "y").write_bytes(idx(np.zeros(4, np.uint8)))
    with pytest.raises(DamagedFileError, match="a label for each of 5"):
        read_labelled_pictures(tmp_path / "x", tmp_path / "y")
    with pytest.raises(DamagedFileError, match="pictures of bytes"):
        read_labelled_pictures(tmp_path / "y", tmp_path / "y")


WHOLE = idx(np.arange(6, dtype=np.uint8).reshape(2, 3))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\x08",
        b"\x01" + WHOLE[1:],
        b"\0\0\x07\x01" + struct.pack(">I", 1) + b"a",
        b"\0\0\x08\x00a",
        b"\0\0\x08\xff" + bytes(4 * 255),
        b"\0\0\x08\x02" + struct.pack(">I", 3),
        b"\0\0\x08\x03" + struct.pack(">3I", *[0xFFFFFFFF] * 3),
        b"\0\0\x0e\x01" + struct.pack(">I", 0x7FFFFFFF),
        WHOLE[:-1],
        WHOLE + b"x",
        gzip.compress(WHOLE)[:-9],
        gzip.compress(WHOLE[:-1]),
        gzip.compress(WHOLE + b"x"),
        gzip.compress(WHOLE)[:12] + b"\xff" * 30,
    ],
)
def test_hostile_files_are_refused(data, tmp_path):
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(DamagedFileError):
        read_idx(tmp_path / "a")


@given(st.binary(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_read_or_refused(data):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        path.write_bytes(b"\0\0" + data)
        with contextlib.suppress(UserError):
            read_idx(path)


def test_an_absent_file(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_idx(tmp_path / "none")
