"""CIFAR's own files: binary and Python give the same rows; damaged and hostile ones are refused."""

from __future__ import annotations

import contextlib
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.formats.cifar_files import TEN, binary_ten, pictures, python2, python_ten

from haversack.core.errors import DamagedFileError, UserError
from haversack.formats._plain_pickle import Refused
from haversack.formats._python2_pickle import python2_values
from haversack.formats.cifar import cifar_set

LEARNED, HELD = (pictures(20), [n % 10 for n in range(20)]), (pictures(10, 1), list(range(10)))
BATCHES = {"data_batch_1": LEARNED, "data_batch_3": (pictures(3, 2), [9, 0, 4]), "test_batch": HELD}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAVERSACK_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("write", [binary_ten, python_ten])
def test_batches_are_rows_with_their_names(write, tmp_path):
    found = cifar_set(write(tmp_path / "set", BATCHES))
    assert found is not None and found.classes == TEN and found.shape == (3, 32, 32)
    assert found.labels.tolist() == [label for _, labels in BATCHES.values() for label in labels]
    assert found.held_out is not None and found.held_out.tolist() == [False] * 23 + [True] * 10
    whole = np.concatenate([values for values, _ in BATCHES.values()])
    rows = np.array([32, 0, 21, 5, 22])
    assert np.array_equal(found.read(rows), whole[rows])
    assert len(set(found.keys)) == 33


def test_the_emitter_writes_what_python_reads(tmp_path):
    python_ten(tmp_path, BATCHES)
    found = pickle.loads((tmp_path / "data_batch_1").read_bytes(), encoding="bytes")
    assert np.array_equal(found[b"data"], LEARNED[0].reshape(20, -1)) and found[b"labels"] == LEARNED[1]


def test_a_hundred_classes_are_the_fine_ones(tmp_path):
    names = [f"kind {number}" for number in range(100)]
    values, fine = pictures(100), list(range(100))
    records = [bytes([n // 5, n]) + each.tobytes() for n, each in zip(fine, values, strict=True)]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "train.bin").write_bytes(b"".join(records))
    (tmp_path / "b" / "fine_label_names.txt").write_text("\n".join(names))
    (tmp_path / "p").mkdir()
    batch = {"fine_labels": fine, "coarse_labels": [n // 5 for n in fine], "data": values.reshape(100, -1)}
    (tmp_path / "p" / "train").write_bytes(python2(batch))
    (tmp_path / "p" / "meta").write_bytes(python2({"fine_label_names": names, "coarse_label_names": ["a"]}))
    for folder in ("b", "p"):
        found = cifar_set(tmp_path / folder)
        assert found is not None and found.classes == tuple(names) and found.held_out is None
        assert np.array_equal(found.read(np.arange(100)), values) and found.labels.tolist() == fine


def test_a_folder_of_other_things_is_no_set(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "meta").write_text("{}")
    assert cifar_set(tmp_path) is None


def test_damage_is_named(tmp_path):
    folder = binary_ten(tmp_path / "b", BATCHES)
    whole = (folder / "data_batch_1.bin").read_bytes()
    (folder / "data_batch_1.bin").write_bytes(whole[:-1])
    with pytest.raises(DamagedFileError, match=r"data_batch_1\.bin .*whole number of records"):
        cifar_set(folder)
    (folder / "data_batch_1.bin").write_bytes(b"\x0a" + whole[1:])
    with pytest.raises(DamagedFileError, match="label 10, and there are 10 classes"):
        cifar_set(folder)
    few = (LEARNED[0][:9], LEARNED[1][:9])
    binary_ten(folder, {"data_batch_1": few, "data_batch_3": few})
    with pytest.raises(UserError, match=r"the class truck of .* has no rows"):
        cifar_set(folder)
    folder = python_ten(tmp_path / "p", BATCHES)
    (folder / "test_batch").write_bytes((folder / "test_batch").read_bytes()[:-50])
    with pytest.raises(DamagedFileError, match=r"test_batch .*no batch of CIFAR"):
        cifar_set(folder)
    (folder / "test_batch").write_bytes(python2({"labels": [1], "data": HELD[0].reshape(10, -1)}))
    with pytest.raises(DamagedFileError, match="not one number for each picture"):
        cifar_set(folder)


class Runs:
    def __reduce__(self):
        return (exec, ("raise SystemExit('ran')",))


def test_code_in_a_batch_is_refused_unrun(tmp_path):
    folder = python_ten(tmp_path, BATCHES)
    for protocol in (0, 2):
        (folder / "data_batch_1").write_bytes(pickle.dumps(Runs(), protocol))
        with pytest.raises(DamagedFileError, match="code and not a value"):
            cifar_set(folder)


def test_protocol_0_is_plain_text():
    text = b"(dp1\nS'label_names'\np2\n(lp3\nS'air\\'plane'\np4\naS\"bird\"\np5\nasS'num_vis'\np6\nI3072\ns."
    assert python2_values(text) == {"label_names": ["air'plane", "bird"], "num_vis": 3072}
    assert pickle.loads(text) == python2_values(text)
    for bad in (b"S'a.", b"Sopen('x')\n.", b"I1e9\n.", b"Sb'a'\n.", b"S'a' 'b\n.", b"g7\n.", b"0."):
        with pytest.raises(Refused):
            python2_values(bad)


@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(data):
    for start in (b"\x80\x02", b""):
        with contextlib.suppress(Refused):
            python2_values(start + data)


def test_a_batch_that_claims_much_takes_nothing():
    with pytest.raises(Refused):
        python2_values(b"\x80\x02T" + struct.pack("<I", 0xFFFFFFFF) + b"x.")
