"""CIFAR-10 and CIFAR-100 as their origin gives them: the binary files and the Python batches.

Format (Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, and the data's page). A
picture is 3,072 bytes: 32 x 32 of red, then green, then blue. Binary: records of one label byte (CIFAR-100:
two, of the coarse and the fine class) and a picture; data_batch_1.bin to data_batch_5.bin and test_batch.bin
(train.bin, test.bin), names in batches.meta.txt (fine_label_names.txt), one a line. Python: pickles of
Python 2, without an ending, with `data` u8 [n, 3072] and `labels` (`fine_labels`), names in batches.meta
(meta). They are read without running anything (`_python2_pickle.py`) and laid out in the cache once as binary
records.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from haversack.core.errors import DamagedFileError
from haversack.formats._plain_pickle import Refused
from haversack.formats._python2_pickle import python2_values
from haversack.formats._row_files import LabelledRows, Part, RowFile, labelled_rows, laid_out

SHAPE, NBYTES = (3, 32, 32), 3072
LARGEST = 1 << 29
"""Of one file."""
TEN = tuple(f"data_batch_{number}" for number in range(1, 6)), ("test_batch",)
HUNDRED = ("train",), ("test",)
META = {"labels": "batches.meta", "fine_labels": "meta"}
NAMES = {"labels": "batches.meta.txt", "fine_labels": "fine_label_names.txt"}
KEYS = {"labels": "label_names", "fine_labels": "fine_label_names"}


def cifar_set(folder: Path) -> LabelledRows | None:
    """The pictures [3, 32, 32] of the batches in `folder`; None where it holds none.

    Raises DamagedFileError for a batch that is cut off, labels that no name has and pickles that hold more
    than plain values; UserError for a class without pictures.
    """
    for ending in (".bin", ""):
        for field, (learned, held) in (("labels", TEN), ("fine_labels", HUNDRED)):
            names = [(f"{name}{ending}", False) for name in learned]
            names += [(f"{name}{ending}", True) for name in held]
            found = [(folder / name, side) for name, side in names if (folder / name).is_file()]
            known = folder / (NAMES if ending else META)[field]
            if found and known.is_file():
                read = _binary if ending else _python
                parts = [read(path, field, side) for path, side in found]
                return labelled_rows(folder, parts, _names(known, field))
    return None


def _binary(path: Path, field: str, held_out: bool) -> Part:
    """A file of records."""
    labels = 1 if field == "labels" else 2
    size, record = path.stat().st_size, labels + NBYTES
    if size == 0 or size % record:
        raise DamagedFileError(
            path, f"its {size:,} bytes are no whole number of records of {record:,}", field="data"
        )
    count = size // record
    file = RowFile(path, count, labels, record, SHAPE)
    marks = RowFile(path, count, labels - 1, record, ())
    found = np.empty(count, np.uint8)
    marks.read(range(count), found)
    return Part(file, found.astype(np.int64), held_out)


def _python(path: Path, field: str, held_out: bool) -> Part:
    def write(file: BinaryIO) -> None:
        pictures, labels = _batch(path, field)
        records = np.zeros((len(labels), (1 if field == "labels" else 2) + NBYTES), np.uint8)
        records[:, -NBYTES:] = pictures
        records[:, -NBYTES - 1] = labels
        file.write(records.data)

    return _binary(laid_out(path, f"{path.name}.bin", write), field, held_out)


def _batch(path: Path, field: str) -> tuple[Any, Any]:
    """(u8 [n, 3072], u8 [n]) of one pickle."""
    found = _plain(path)
    pictures, labels = found.get("data"), found.get(field)
    if not isinstance(pictures, np.ndarray) or pictures.dtype != np.uint8 or pictures.shape[1:] != (NBYTES,):
        raise DamagedFileError(path, f"its data are no pictures of {NBYTES:,} bytes", field="data")
    if (
        not isinstance(labels, list)
        or len(labels) != len(pictures)
        or not all(type(label) is int and 0 <= label < 256 for label in labels)
    ):
        raise DamagedFileError(path, f"its {field} are not one number for each picture", field="data")
    return pictures, np.array(labels, np.uint8)


def _names(path: Path, field: str) -> tuple[str, ...]:
    if path.suffix == ".txt":
        text = path.read_bytes()[:65536].decode("utf-8", "replace")
        found: Any = [line.strip() for line in text.splitlines() if line.strip()]
    else:
        found = _plain(path).get(KEYS[field])
    good = isinstance(found, list) and found and all(isinstance(name, str) for name in found)
    if not good or len(set(found)) != len(found):
        raise DamagedFileError(path, "it names no classes", field="data")
    return tuple(found)


def _plain(path: Path) -> dict[str, Any]:
    if path.stat().st_size > LARGEST:
        raise DamagedFileError(path, f"it is larger than {LARGEST:,} bytes", field="data")
    try:
        found = python2_values(path.read_bytes())
    except Refused as error:
        raise DamagedFileError(path, f"it is no batch of CIFAR: {error}", field="data") from error
    if not isinstance(found, dict):
        raise DamagedFileError(path, "it is no batch of CIFAR", field="data")
    return found
