"""Copies in huge pages: the same bytes, aligned, and never both copy and source resident."""

from __future__ import annotations

import mmap

import numpy as np
import pytest

from haversack import kernels
from haversack.kernels._native import native

pytestmark = pytest.mark.skipif(native() is None, reason="numpy twins only: plain copies")
MIB = 1 << 20


def resident_mib(address: int) -> float:
    """MiB of the mapping that holds `address` which are in this process's page tables."""
    inside = False
    with open("/proc/self/smaps") as lines:  # noqa: PTH123
        for line in lines:
            first = line.split(maxsplit=1)[0]
            if "-" in first and not first.endswith(":"):
                low, high = (int(part, 16) for part in first.split("-"))
                inside = low <= address < high
            elif inside and line.startswith("Rss:"):
                return int(line.split()[1]) / 1024
    raise AssertionError("no such mapping")


@pytest.mark.parametrize("nbytes", [1, 4095, 2 * MIB, 2 * MIB + 1, 17 * MIB + 5])
def test_the_same_bytes_aligned_and_owned(nbytes):
    source = np.random.default_rng(nbytes).integers(0, 256, nbytes, np.uint8)
    copy = kernels.huge_copy(source)
    assert np.array_equal(copy, source)
    assert copy.ctypes.data % (2 * MIB) == 0 and copy.flags.writeable
    copy[0] ^= 1
    assert copy[0] != source[0]


def test_a_mapped_source_is_given_back_while_it_is_copied(tmp_path):
    path = tmp_path / "weights"
    content = np.random.default_rng(1).integers(0, 256, 24 * MIB + 777, np.uint8)
    path.write_bytes(content.tobytes())
    with path.open("rb") as file:
        held = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    assert int(held.sum()) == int(content.sum())
    assert resident_mib(held.ctypes.data) > 20
    copy = kernels.huge_copy(held[5:])
    assert resident_mib(held.ctypes.data) < 1
    assert np.array_equal(copy, content[5:]) and np.array_equal(held, content)


def test_memory_that_only_lives_here_is_left_alone(tmp_path):
    anonymous = np.frombuffer(mmap.mmap(-1, 9 * MIB), np.uint8)
    anonymous.setflags(write=True)
    anonymous[:] = 7
    assert int(kernels.huge_copy(anonymous).min()) == 7 and int(anonymous.min()) == 7
    path = tmp_path / "weights"
    path.write_bytes(bytes(9 * MIB))
    with path.open("rb") as file:
        private = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)
    private.setflags(write=True)
    private[:] = 9
    assert int(kernels.huge_copy(private).min()) == 9 and int(private.min()) == 9


def test_other_types_and_strides_are_copied_as_bytes():
    values = np.arange(24, dtype=np.float32).reshape(4, 6)[:, ::2]
    assert np.array_equal(kernels.huge_copy(values).view(np.float32), values.reshape(-1))
    assert kernels.huge_copy(np.zeros(0, np.float32)).size == 0
