"""Safetensors files made to crash a reader: each is refused in one sentence, quickly, in little memory."""

import json
import struct
import time
import tracemalloc

import pytest

from haversack.core.errors import DamagedFileError
from haversack.formats.safetensors import SafetensorsFile

GOOD = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def one(**changes):
    return {"a": {**GOOD["a"], **changes}}


def sealed(header, data=bytes(8)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


FILES = {
    "empty": b"",
    "seven-bytes": b"\0" * 7,
    "length-beyond-file": struct.pack("<Q", 1000) + b"{}",
    "length-of-2^64": b"\xff" * 8 + b"{}",
    "no-json": sealed(b"hello"),
    "a-list": sealed(b"[]"),
    "not-utf-8": sealed(b'{"\xff": 1}'),
    "two-documents": sealed(b"{} {}"),
    "deep": sealed(b'{"a":' + b"[" * 200_000),
    "deep-and-closed": sealed(b"[" * 50_000 + b"]" * 50_000),
    "name-twice": sealed(
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    ),
    "field-twice": sealed(b'{"a":{"dtype":"F32","dtype":"U8","shape":[2],"data_offsets":[0,8]}}'),
    "no-dtype": sealed({"a": {"shape": [2], "data_offsets": [0, 8]}}),
    "extra-field": sealed(one(strides=[1])),
    "unknown-dtype": sealed(one(dtype="F12")),
    "dtype-number": sealed(one(dtype=3)),
    "negative-dimension": sealed(one(shape=[-2])),
    "fraction": sealed(one(shape=[2.0])),
    "truth": sealed(one(shape=[True, 2])),
    "shape-text": sealed(one(shape="2")),
    "shape-bomb": sealed(one(shape=[2**62, 2**62, 2**62])),
    "shape-wraps-to-2": sealed(one(shape=[2**63 + 1, 2**63 - 1, 2])),
    "shape-wraps-to-8-bytes": sealed(one(shape=[2**62 + 2])),
    "zero-times-overflow": sealed(one(shape=[0, 2**64], data_offsets=[0, 0]), b""),
    "too-many-dimensions": sealed(one(shape=[1] * 100)),
    "digits": sealed(b'{"a":{"dtype":"F32","shape":[' + b"9" * 10_000 + b'],"data_offsets":[0,8]}}'),
    "nan": sealed(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}'),
    "wrong-size": sealed(one(shape=[3])),
    "ends-before-it-begins": sealed(one(data_offsets=[8, 0])),
    "offset-beyond-file": sealed(one(data_offsets=[2**40, 2**40 + 8])),
    "negative-offset": sealed(one(data_offsets=[-8, 0])),
    "three-offsets": sealed(one(data_offsets=[0, 4, 8])),
    "hole": sealed(one(data_offsets=[8, 16]), bytes(16)),
    "overlap": sealed({**GOOD, "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}),
    "same-place": sealed({**GOOD, "b": GOOD["a"]}),
    "trailing-bytes": sealed(GOOD, bytes(9)),
    "truncated-data": sealed(GOOD, bytes(7)),
    "metadata-number": sealed({**GOOD, "__metadata__": {"a": 1}}),
    "metadata-list": sealed({**GOOD, "__metadata__": []}),
    "empty-name": sealed({"": GOOD["a"]}),
    "endless-name": sealed({"x" * 5000: GOOD["a"]}),
    "name-with-newline": sealed({"a\nb": {**GOOD["a"], "dtype": "F12"}}),
    "no-tensors-but-data": sealed({}),
}


@pytest.mark.parametrize("name", FILES)
def test_it_is_refused_in_one_sentence(tmp_path, name):
    path = tmp_path / "model.safetensors"
    path.write_bytes(FILES[name])
    with pytest.raises(DamagedFileError) as caught:
        SafetensorsFile.open(path)
    sentence = str(caught.value)
    assert sentence.startswith(str(path)) and sentence.endswith(".") and "\n" not in sentence
    assert len(sentence) < len(str(path)) + 400


def test_the_good_file_opens(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(sealed(GOOD))
    assert SafetensorsFile.open(path).tensors["a"].shape == (2,)


def test_every_truncation_and_every_flipped_bit_of_a_header_is_survived(tmp_path):
    path = tmp_path / "model.safetensors"
    whole = sealed({**GOOD, "b": {"dtype": "U8", "shape": [3], "data_offsets": [8, 11]}}, bytes(11))
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedFileError):
            SafetensorsFile.open(path)
    for bit in range(8 * (len(whole) - 11)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            opened = SafetensorsFile.open(path)
        except DamagedFileError:
            continue
        for tensor in opened.tensors:  # a renamed tensor is still one that lies inside the file
            assert opened.bytes(tensor).nbytes in (3, 8)


def test_a_claimed_terabyte_costs_neither_memory_nor_time(tmp_path):
    path = tmp_path / "model.safetensors"
    text = json.dumps(one(shape=[2**38], data_offsets=[0, 2**40])).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    tracemalloc.start()
    started = time.monotonic()
    with pytest.raises(DamagedFileError):
        SafetensorsFile.open(path)
    assert time.monotonic() - started < 1
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_a_real_gigabyte_of_header_is_not_read(tmp_path):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2**30))
        file.truncate(2**30 + 8)  # sparse
    with pytest.raises(DamagedFileError, match="more than"):
        SafetensorsFile.open(path)


def test_a_file_that_shrinks_after_opening_is_refused_at_the_first_tensor(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(sealed(GOOD))
    opened = SafetensorsFile.open(path)
    path.write_bytes(sealed(GOOD)[:-4])
    with pytest.raises(DamagedFileError, match="instead of"):
        opened.bytes("a")
