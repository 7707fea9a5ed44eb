"""CRC-32C: the known sums, and equality with the definition, bit by bit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haversack.collect._crc32c import crc32c


def by_definition(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_known_sums(data, expected):
    assert crc32c(data) == expected


@given(st.binary(max_size=1500))
def test_it_is_the_definition_s(data):
    assert crc32c(data) == by_definition(data)


@pytest.mark.parametrize("size", [255, 256, 257, 511, 512, 513, 4096, 70_001])
def test_sizes_at_the_edges_of_rows(size):
    data = bytes((at * 7 + at // 256) % 256 for at in range(size))
    assert crc32c(data) == by_definition(data)
