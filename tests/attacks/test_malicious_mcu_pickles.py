"""Zip-pickles that try to run code, take memory or time, or crash: refused in one sentence, quickly."""

from __future__ import annotations

import io
import os
import pickle
import random
import resource
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.formats.test_mcu_pickle import packed, small

from haversack.core.errors import DamagedFileError, UserError
from haversack.formats._plain_pickle import Refused, plain_values
from haversack.formats.mcu_pickle import read_mcu


class Runs:
    """Unpickling this runs a command."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def array(shape: bytes, data: bytes, dtype: bytes = b"i1") -> bytes:
    """An array by hand: the pieces that numpy writes."""
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85"
        + text("b")
        + b"tR(K\x01"
        + shape
        + b"cnumpy\ndtype\n("
        + text(dtype.decode())
        + b"\x89\x88tR(K\x03"
        + text("<")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + data
        + b"tb"
    )


def encoded(raw: str) -> bytes:
    return b"c_codecs\nencode\n" + text(raw) + text("latin1") + b"\x86R"


ATTACKS: dict[str, bytes] = {
    "system": b"\x80\x02cos\nsystem\n" + text("touch /tmp/haversack-was-here") + b"\x85R.",
    "eval": b"\x80\x02cbuiltins\neval\n" + text("1") + b"\x85R.",
    "getattr of an allowed module": b"\x80\x02cnumpy\nload\n" + text("x") + b"\x85R.",
    "a name by stack": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01x\x85R.",
    "an instance": b"\x80\x02(cos\nsystem\no.",
    "an old instance": b"(ios\nsystem\n.",
    "a new object": b"\x80\x02cnumpy\nndarray\n)\x81.",
    "a persistent id": b"\x80\x02X\x01\x00\x00\x00aQ.",
    "an extension": b"\x80\x02\x82\x01.",
    "called encode with another codec": b"\x80\x02c_codecs\nencode\n" + text("a") + text("zip") + b"\x86R.",
    "a dtype of objects": b"\x80\x02cnumpy\ndtype\n(" + text("O8") + b"\x89\x88tR.",
    "a bare dtype": b"\x80\x02cnumpy\ndtype\n(" + text("i1") + b"\x89\x88tR.",
    "a bare name": b"\x80\x02cnumpy\nndarray\n.",
    "an array without a state": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85"
    + text("b")
    + b"tR.",
    "a huge array": b"\x80\x02" + array(b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86", encoded("abc")) + b".",
    "a negative size": b"\x80\x02" + array(b"J\xff\xff\xff\xff\x85", encoded("abc")) + b".",
    "too many dimensions": b"\x80\x02" + array(b"(" + b"K\x01" * 9 + b"t", encoded("a")) + b".",
    "a state twice": b"\x80\x02" + array(b"K\x01\x85", encoded("a"))[:-2] + b"tb(tb.",
    "a list in itself": b"\x80\x02]q\x00h\x00a.",
    "a dictionary in itself": b"\x80\x02}q\x00" + text("a") + b"h\x00s.",
    "a list by a tuple in itself": b"\x80\x02]q\x00h\x00\x85a.",
    "deep lists": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "deep dictionaries": b"\x80\x02" + (b"}" + text("a")) * 1000 + b"N" + b"s" * 1000 + b".",
    "deep tuples": b"\x80\x02N" + b"\x85" * 100_000 + b".",
    "a tree of tuples that doubles": b"\x80\x02K\x00" + b"q\x00h\x00\x86" * 64 + b".",
    "a list used twice": b"\x80\x02](]q\x00h\x00e.",
    "a huge text": b"\x80\x02X\xff\xff\xff\xffabc.",
    "bytes that are not there": b"\x80\x03B\xff\xff\xff\xff.",
    "no end": b"\x80\x02" + b"N" * 10,
    "an end at once": b".",
    "empty": b"",
    "two values": b"\x80\x02NN.",
    "an append to nothing": b"\x80\x02Na.",
    "items for a number": b"\x80\x02K\x01(NNu.",
    "an odd dictionary": b"\x80\x02}(" + text("a") + b"u.",
    "a list as a key": b"\x80\x02}]Ns.",
    "a mark that is not there": b"\x80\x02Nt.",
    "a mark as a value": b"\x80\x02](.",
    "a mark in a tuple": b"\x80\x02(\x85.",
    "an unknown memory": b"\x80\x02h\x07.",
    "a build of a list": b"\x80\x02]}b.",
    "a reduce of a number": b"\x80\x02K\x01)R.",
    "text that is none": b"\x80\x02X\x01\x00\x00\x00\xff.",
    "a name without an end": b"\x80\x02c" + b"a" * 1000,
    "a protocol of today": b"\x80\x05\x95\x01\x00\x00\x00\x00\x00\x00\x00N.",
    "an instruction that is none": b"\x80\x02\xf0.",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_what_is_not_plain_is_refused(name: str, tmp_path: Path) -> None:
    began = time.process_time()
    with pytest.raises(Refused) as caught:
        plain_values(ATTACKS[name])
    assert time.process_time() - began < 2
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    path = tmp_path / "a.pkl"
    path.write_bytes(packed(ATTACKS[name]))
    with pytest.raises(DamagedFileError):
        read_mcu(path)
    assert not Path("/tmp/haversack-was-here").exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
@pytest.mark.parametrize(
    "call", [(os.system, "exit 3"), (eval, "1"), (np.zeros, (9, 9)), (bytearray, 1 << 40)]
)
def test_a_pickle_made_by_reduce_never_runs(protocol: int, call: Any) -> None:
    network = small() | {"feature_mix": Runs(*call)}
    with pytest.raises(Refused, match=r"asks for|another pickle protocol|instruction"):
        plain_values(pickle.dumps(network, protocol))


def test_memory_stays_near_the_size_of_the_file() -> None:
    """A text that is encoded again and again, and memory slots of any number: 2 GiB would break the limit."""
    program = """
import resource, struct, sys
from haversack.formats._plain_pickle import Refused, plain_values
text = "a" * 2_000_000
again = b"c_codecs\\nencode\\nq\\x01X" + struct.pack("<I", len(text)) + text.encode() + b"q\\x02"
again += b"X\\x06\\x00\\x00\\x00latin1q\\x03"
bomb = b"\\x80\\x02]" + again + b"(" + b"h\\x01h\\x02h\\x03\\x86R" * 4000 + b"."
slots = b"\\x80\\x02N" + b"".join(b"r" + struct.pack("<I", 2**32 - 1 - i) for i in range(1000)) + b"\\x85."
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
try:
    plain_values(bomb)
except Refused as refused:
    print(refused)
print(plain_values(slots))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "its arrays are larger than the file\n(None,)\n"


@pytest.mark.parametrize(
    "name",
    ["truncated", "no zip", "two pickles", "none", "a bomb", "flipped", "folder", "absent", "encrypted"],
)
def test_a_file_that_is_no_whole_zip_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    whole = packed(pickle.dumps(small(), 2))
    file = io.BytesIO()
    if name == "two pickles":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a/data.pkl", b"")
            archive.writestr("b/data.pkl", b"")
    elif name == "a bomb":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/data.pkl", bytes(80 << 20))
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    encrypted = bytearray(whole)
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        encrypted[encrypted.index(mark) + offset] |= 1
    content = {
        "truncated": whole[:-30],
        "no zip": b"hello",
        "none": packed(b"", "archive/other.pkl"),
        "flipped": bytes(flipped),
        "encrypted": bytes(encrypted),
    }.get(name, file.getvalue())
    if name == "folder":
        path.mkdir()
    elif name != "absent":
        path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as caught:
        read_mcu(path)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    if name == "a bomb":
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40 << 10


def test_any_damage_is_refused_or_read(tmp_path: Path) -> None:
    """Bytes changed at random, in the pickle itself: a network or one sentence, nothing else."""
    whole = pickle.dumps(small(), 2)
    draws = random.Random(0)
    refused = 0
    for _ in range(400):
        raw = bytearray(whole)
        for _ in range(draws.choice((1, 1, 3, 20))):
            raw[draws.randrange(len(raw))] = draws.randrange(256)
        path = tmp_path / "a.pkl"
        path.write_bytes(packed(bytes(raw[: draws.choice((len(raw), len(raw), draws.randrange(len(raw))))])))
        try:
            read_mcu(path)
        except DamagedFileError:
            refused += 1
    assert refused > 50
