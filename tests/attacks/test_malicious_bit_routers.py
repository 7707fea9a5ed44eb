"""Bit routers that lie about themselves under a checksum that holds: refused, in bounded memory, never a
traceback."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.core.errors import DamagedFileError
from haversack.run._levels import BitRouters

PATH = Path("bit-router.bin")
HEAD = struct.Struct("<8sIIIIII")
SAID: dict[str, Any] = {"identity": "m", "blocks": [0, 1], "first": 2}


def sealed(data: bytes) -> bytes:
    return data + struct.pack("<I", zlib.crc32(data))


def file(
    sizes: tuple[int, int, int, int] = (2, 3, 3, 4),
    said: Any = SAID,
    magic: bytes = b"HVBITROU",
    version: int = 1,
    fill: float = 0.5,
) -> bytes:
    text = said if isinstance(said, bytes) else json.dumps(said).encode()
    numbers = 2 * 3 * 3
    body = np.full(numbers * 4, fill, "<f2").tobytes() + np.full(numbers, fill, "<f4").tobytes()
    return sealed(HEAD.pack(magic, version, *sizes, len(text)) + text + body)


def test_what_is_whole_reads() -> None:
    found = BitRouters.of_bytes(file(), PATH)
    assert found.weights.shape == (2, 3, 3, 4) and found.identity == "m" and found.first == 2


@pytest.mark.parametrize(
    "data",
    [
        file(sizes=(2**31, 2**31, 2**31, 2**31)),
        file(sizes=(0, 3, 3, 4)),
        file(sizes=(2, 3, 3, 5)),
        file(said={**SAID, "blocks": [0]}),
        file(said={**SAID, "blocks": 7}),
        file(said={**SAID, "first": "two"}),
        file(said={"identity": "m"}),
        file(said=b"[" * 5000),
        file(said=b"\xff\xfe"),
        file(said=[]),
        file(magic=b"HVEXPERT"),
        file(version=2),
        file(fill=float("nan")),
        file(fill=float("inf")),
        sealed(b""),
        sealed(b"HVBITROU"),
    ],
    ids=range(16),
)
def test_what_lies_is_refused(data: bytes) -> None:
    with pytest.raises(DamagedFileError, match="holds no bit routers"):
        BitRouters.of_bytes(data, PATH)


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, 10**6), byte=st.integers(0, 255), cut=st.integers(0, 300))
def test_altered_bytes_are_refused_whatever_they_say(at: int, byte: int, cut: int) -> None:
    data = bytearray(file()[:-4])
    data[at % len(data)] = byte
    whole = sealed(bytes(data[: len(data) - cut]))
    for tried in (whole, bytes(data), bytes(data) + file()[-4:]):
        try:
            BitRouters.of_bytes(tried, PATH)
        except DamagedFileError:
            continue
