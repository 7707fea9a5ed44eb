"""int2 is stored, and becomes int4 of the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.core._record import nbytes_of
from haversack.core.errors import UserError
from haversack.kernels import unpack
from haversack.kernels._narrow import narrow_nbytes, pack_int2, widen_int2


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 300),
    group=st.sampled_from([32, 64, 96, 128]),
    seed=st.integers(0, 2**20),
)
def test_what_was_packed_is_what_is_multiplied(rows: int, columns: int, group: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(-2, 2, (rows, columns), dtype=np.int8)
    scales = rng.random((rows, -(-columns // group))).astype(np.float16).astype(np.float32)
    data = pack_int2(codes, scales, group)
    assert data.nbytes == narrow_nbytes(rows, columns, group)
    assert data.nbytes == nbytes_of("int2", (rows, columns), group, "rows16-1")
    matrix = widen_int2(memoryview(data), rows, columns, group)
    spread = np.repeat(scales, group, axis=1)[:, :columns]
    assert np.array_equal(unpack(matrix), codes * spread)


def test_the_layout_is_what_its_page_says() -> None:
    codes = np.zeros((16, 32), np.int8)
    codes[3, :] = [1, 0, -1, -2] * 8  # row 3: c = 0..3 of every quad
    data = pack_int2(codes, np.full((16, 1), 0.5, np.float32), 32)
    assert len(data) == 2 * 64 + 32
    for first in (0, 64):
        assert data[first + 12] == 0b11111111 and data[first + 13] == 0b10101010
        assert data[first + 14] == 0b01010101 and data[first + 15] == 0
    assert data[128:].view("<f2").tolist() == [0.5] * 16


@pytest.mark.parametrize(
    ("codes", "scales", "group", "said"),
    [
        (np.array([[2]]), np.ones((1, 1)), 32, "values in -2..1"),
        (np.array([[0.5]]), np.ones((1, 1)), 32, "expects integers"),
        (np.array([[1]]), np.ones((2, 1)), 32, "scales of shape"),
        (np.array([[1]]), np.full((1, 1), 1e6), 32, "does not fit f16"),
        (np.array([[1]]), np.ones((1, 1)), 40, "group=40 is not supported"),
    ],
)
def test_what_cannot_be_packed_is_refused(
    codes: np.ndarray, scales: np.ndarray, group: int, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        pack_int2(codes, scales, group)
