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
from haversack.formats.idx import idx_set, is_idx, read_idx, read_labelled_pictures

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
    (tmp_path / "a").write_bytes(gzip.compress(data, mtime=0) if zipped else data)
    found = read_idx(tmp_path / "a")
    assert found.dtype == array.dtype and np.array_equal(found, array)


def test_a_pair_of_mnist_files(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pictures), mtime=0))
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
        gzip.compress(WHOLE, mtime=0)[:-9],
        gzip.compress(WHOLE[:-1], mtime=0),
        gzip.compress(WHOLE + b"x", mtime=0),
        gzip.compress(WHOLE, mtime=0)[:12] + b"\xff" * 30,
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


def mnist(folder: Path, part: str, labels: list[int], zipped: bool, dot: bool = False) -> np.ndarray:
    """A pair of files as MNIST's origin names them; `dot`: as some copies do."""
    values = np.random.default_rng(len(labels)).integers(0, 256, (len(labels), 28, 28), np.uint8)
    for kind, array in (("images-idx3", values), ("labels-idx1", np.array(labels, np.uint8))):
        name = f"{part}-{kind.replace('-', '.' if dot else '-')}-ubyte{'.gz' if zipped else ''}"
        (folder / name).write_bytes(gzip.compress(idx(array), mtime=0) if zipped else idx(array))
    return values


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("dot", [False, True])
def test_a_folder_of_pairs_is_a_set(zipped, dot, tmp_path, monkeypatch):
    monkeypatch.setenv("HAVERSACK_CACHE", str(tmp_path / "cache"))
    x = mnist(tmp_path, "train", [5, 0, 7, 5, 0], zipped, dot)
    y = mnist(tmp_path, "t10k", [7, 0], zipped, dot)
    found = idx_set(tmp_path)
    assert (
        found is not None
        and found.classes == ("0", "5", "7")
        and found.labels.tolist() == [1, 0, 2, 1, 0, 2, 0]
    )
    assert found.held_out is not None and found.held_out.tolist() == [False] * 5 + [True] * 2
    rows = np.array([6, 1, 4])
    assert np.array_equal(found.read(rows), np.concatenate([x, y])[rows])
    assert np.array_equal(found.read(np.array([3])), idx_set(tmp_path).read(np.array([3])))
    pictures = next(path for path in sorted(tmp_path.iterdir()) if path.name.startswith("train-images"))
    alone = idx_set(pictures)
    assert is_idx(pictures) and alone is not None and alone.held_out is None and len(alone.labels) == 5


def test_pairs_that_do_not_belong_together(tmp_path, monkeypatch):
    monkeypatch.setenv("HAVERSACK_CACHE", str(tmp_path / "cache"))
    assert idx_set(tmp_path) is None and not is_idx(tmp_path / "train-images-idx3-ubyte")
    mnist(tmp_path, "train", [1, 2], False)
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(idx(np.zeros(3, np.uint8)))
    with pytest.raises(DamagedFileError, match="a label for each of 2"):
        idx_set(tmp_path)
    labels.unlink()
    with pytest.raises(UserError, match="train-labels-idx1-ubyte is not beside it"):
        idx_set(tmp_path)
    mnist(tmp_path, "train", [1, 2], False)
    mnist(tmp_path, "t10k", [3], False)
    with pytest.raises(UserError, match="has the class 3, which nothing that is learned from has"):
        idx_set(tmp_path)
    mnist(tmp_path, "emnist-letters-test", [1], False)
    with pytest.raises(UserError, match="two sets of pictures"):
        idx_set(tmp_path)


def test_a_zipped_file_that_holds_less_than_it_says(tmp_path, monkeypatch):
    monkeypatch.setenv("HAVERSACK_CACHE", str(tmp_path / "cache"))
    mnist(tmp_path, "train", [1, 2], True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = gzip.decompress(path.read_bytes())
    for data in (whole[:-1], whole + b"x"):
        path.write_bytes(gzip.compress(data, mtime=0))
        with pytest.raises(DamagedFileError, match="1,568 bytes that its header says"):
            idx_set(tmp_path)
    path.write_bytes(gzip.compress(whole, mtime=0)[:-12])
    with pytest.raises(DamagedFileError, match="gzip stream breaks off"):
        idx_set(tmp_path)
    assert not list((tmp_path / "cache").rglob("*partial*"))
