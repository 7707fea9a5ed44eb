"""Expert stores made to crash a reader, or to be believed: each is refused in one sentence, before use."""

from __future__ import annotations

import json
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest

from haversack.core.errors import DamagedFileError
from haversack.core.expert_store import ExpertStore, ExpertStoreWriter

TENSOR = {
    "name": "w",
    "kind": "f32",
    "shape": [16, 8],
    "group": None,
    "layout": "rows-1",
    "start": 0,
    "nbytes": 512,
}
RECORD = {
    "layer": 0,
    "expert": 0,
    "part": "",
    "offset": 4096,
    "nbytes": 512,
    "sums": [zlib.crc32(bytes(512))],
    "tensors": [TENSOR],
}
OTHER = {**RECORD, "expert": 1, "offset": 8192}

LONG = {**RECORD, "nbytes": 4608, "sums": [0], "tensors": [{**TENSOR, "shape": [144, 8], "nbytes": 4608}]}


def header(*records, **changes):
    return {"format": [1, 0], "model": "m", "records": list(records), **changes}


def sealed(said, data=bytes(8192), *, magic=b"HVEXPERT", version=(1, 0), start=None, count=None):
    """A store whose checksums hold, whatever it says."""
    text = said if isinstance(said, bytes) else json.dumps(said).encode()
    start = 4096 + len(data) if start is None else start
    count = len(text) if count is None else count
    page = struct.pack("<8sIIQQI4056x", magic, *version, start, count, zlib.crc32(text))
    return page + struct.pack("<I", zlib.crc32(page)) + data + text


def record(**changes):
    return header({**RECORD, **changes}, OTHER)


def tensor(**changes):
    return record(tensors=[{**TENSOR, **changes}])


FILES = {
    "empty": b"",
    "half-a-page": bytes(2048),
    "zeros": bytes(8192),
    "another-magic": sealed(header(RECORD), magic=b"HVTENSOR"),
    "a-later-major": sealed(header(RECORD), version=(2, 0)),
    "header-outside": sealed(header(RECORD), start=2**40),
    "header-inside-a-page": sealed(header(RECORD), start=4100),
    "header-on-the-first-page": sealed(header(RECORD), start=0),
    "header-of-2^64": sealed(header(RECORD), count=2**64 - 1),
    "header-of-a-gigabyte": sealed(header(RECORD), count=2**30),
    "bytes-after-the-header": sealed(header(RECORD)) + b"\0",
    "no-json": sealed(b"hello"),
    "a-list": sealed(b"[]"),
    "not-utf-8": sealed(b'{"format": [1, 0], "model": "\xff", "records": []}'),
    "deep": sealed(b'{"records":' + b"[" * 200_000),
    "no-records": sealed({"format": [1, 0], "model": "m"}),
    "no-model": sealed(header(RECORD, model="")),
    "endless-model": sealed(header(RECORD, model="x" * 5000)),
    "record-twice": sealed(header(RECORD, {**OTHER, "expert": 0})),
    "overlap": sealed(header(LONG, OTHER)),
    "same-place": sealed(header(RECORD, {**RECORD, "expert": 1})),
    "backwards": sealed(header(OTHER, RECORD)),
    "inside-a-page": sealed(record(offset=4160)),
    "on-the-first-page": sealed(record(offset=0)),
    "negative-offset": sealed(record(offset=-4096)),
    "outside": sealed(record(offset=2**40)),
    "in-the-header": sealed(header({**RECORD, "offset": 12288})),
    "no-bytes": sealed(record(nbytes=0, sums=[], tensors=[])),
    "negative-bytes": sealed(record(nbytes=-512)),
    "a-terabyte": sealed(record(nbytes=2**40, sums=[0])),
    "bytes-of-2^70": sealed(record(nbytes=2**70)),
    "no-sums": sealed(record(sums=[])),
    "too-many-sums": sealed(record(sums=[0, 0])),
    "sums-as-text": sealed(record(sums=["0"])),
    "negative-layer": sealed(record(layer=-1)),
    "expert-of-2^40": sealed(record(expert=2**40)),
    "no-tensors": sealed(record(tensors=[])),
    "tensor-outside": sealed(tensor(start=64)),
    "tensor-before": sealed(tensor(start=-64)),
    "tensor-askew": sealed(record(nbytes=513, tensors=[{**TENSOR, "start": 1}])),
    "tensor-twice-as-large": sealed(tensor(shape=[32, 8])),
    "tensor-bomb": sealed(tensor(shape=[2**30, 2**30, 2**30])),
    "tensor-of-nothing": sealed(tensor(shape=[0, 8], nbytes=0)),
    "tensor-shape-wraps": sealed(tensor(shape=[2**62 + 16, 8])),
    "unknown-kind": sealed(tensor(kind="f12")),
    "unknown-layout": sealed(tensor(layout="columns-9")),
    "group-of-7": sealed(tensor(kind="int4", group=7, layout="rows16-1")),
    "endless-name": sealed(tensor(name="x" * 5000)),
    "no-name": sealed(tensor(name="")),
    "truth-as-a-number": sealed(record(layer=True)),
    "fraction": sealed(record(offset=4096.5)),
}


@pytest.mark.parametrize("name", FILES)
def test_it_is_refused_in_one_sentence(tmp_path, name):
    path = tmp_path / "experts.store"
    path.write_bytes(FILES[name])
    with pytest.raises(DamagedFileError) as caught:
        ExpertStore.open(path)
    sentence = str(caught.value)
    assert sentence.startswith(str(path)) and sentence.endswith(".") and "\n" not in sentence
    assert len(sentence) < len(str(path)) + 400


def test_the_good_file_opens_and_reads(tmp_path):
    path = tmp_path / "experts.store"
    path.write_bytes(sealed(header(RECORD, OTHER)))
    with ExpertStore.open(path) as store:
        assert all(bytes(store.read(record)) == bytes(512) for record in store.records.values())


def written(path):
    with ExpertStoreWriter(path, "m") as writer:
        for expert in range(2):
            values = np.arange(128, dtype="<f4") + expert
            writer.add(0, expert, [("w", "f32", (16, 8), None, "rows-1", [values])])
        writer.finish()
    return path.read_bytes()


def test_every_truncation_is_found_at_opening(tmp_path):
    whole = written(tmp_path / "whole")
    path = tmp_path / "experts.store"
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedFileError):
            ExpertStore.open(path)


def test_every_flipped_bit_is_found_before_use(tmp_path):
    """In the first page and the header at opening; in a record when it is read, and in no other."""
    whole = written(tmp_path / "whole")
    path = tmp_path / "experts.store"
    with ExpertStore.open(tmp_path / "whole") as store:
        spans = {key: (r.offset, r.offset + r.nbytes) for key, r in store.records.items()}
    end = 4096 + 2 * 4096
    for at in [
        *range(40),
        *range(40, 4096, 97),
        4095,
        *range(4096, 4608, 19),
        *range(8192, 8704, 19),
        *range(end, len(whole)),
    ]:
        data = bytearray(whole)
        data[at] ^= 1 << at % 8
        path.write_bytes(data)
        if at < 4096 or at >= end:
            with pytest.raises(DamagedFileError):
                ExpertStore.open(path)
            continue
        with ExpertStore.open(path) as store:
            for key, record in store.records.items():
                first, last = spans[key]
                if first <= at < last:
                    with pytest.raises(DamagedFileError, match="altered, by its checksum"):
                        store.read(record)
                else:
                    store.read(record)


def test_claims_cost_neither_memory_nor_time(tmp_path):
    path = tmp_path / "experts.store"
    for name in ("header-of-2^64", "a-terabyte", "tensor-bomb"):
        path.write_bytes(FILES[name])
        tracemalloc.start()
        started = time.monotonic()
        with pytest.raises(DamagedFileError):
            ExpertStore.open(path)
        assert time.monotonic() - started < 1
        assert tracemalloc.get_traced_memory()[1] < 2**20
        tracemalloc.stop()
