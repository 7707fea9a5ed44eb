"""Planes of nested matrices: layout, twin and kernel, the bits of a row, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack import kernels
from haversack.core.errors import UserError
from haversack.kernels.nested import Plane, add_twin, pack_base, pack_signs, plane_nbytes

SHAPES = ((1, 1), (16, 64), (37, 130), (83, 301), (64, 257))  # rows, columns


def drawn(rng: np.random.Generator, rows: int, columns: int, bits: int, group: int, base: bool) -> Plane:
    ends = rng.random((2, rows, -(-columns // group))).astype(np.float16).astype(np.float32)
    codes = rng.integers(0, 1 << bits, (rows, columns))
    if base:
        return pack_base(codes, ends[0], ends[1] * 3, bits, group)
    return pack_signs(codes.astype(bool), ends[0], group)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 150),
    bits=st.integers(1, 8),
    group=st.sampled_from([16, 32, 64, 128]),
    seed=st.integers(0, 99),
)
def test_what_was_packed_unpacks(rows: int, columns: int, bits: int, group: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 1 << bits, (rows, columns))
    ends = rng.random((2, rows, -(-columns // group))).astype(np.float16).astype(np.float32)
    plane = pack_base(codes, ends[0], ends[1], bits, group)
    assert plane.nbytes == plane_nbytes(rows, columns, group, bits, True)
    found = plane.unpacked()
    assert np.array_equal(found[0], codes)
    assert np.array_equal(found[1], ends[0]) and np.array_equal(found[2], ends[1])
    wide = [np.repeat(one, group, axis=1)[:, :columns] for one in ends]
    assert np.array_equal(plane.dense(), (codes.astype(np.float32) - wide[1]) * wide[0])
    plus = codes % 2 == 1
    signs = pack_signs(plus, ends[0], group)
    assert signs.nbytes == plane_nbytes(rows, columns, group, 1, False)
    assert np.array_equal(signs.dense(), np.where(plus, wide[0], -wide[0]))


@pytest.mark.parametrize("kind", [(1, False), (1, True), (2, True), (5, True)], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_its_definition(kind: tuple[int, bool], shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(2)
    plane = drawn(rng, *shape, kind[0], 64, kind[1])
    x = rng.standard_normal((7, shape[1])).astype(np.float32)
    wanted = rng.standard_normal((7, shape[0])).astype(np.float32)
    got = wanted.copy()
    plane.add(x, got)
    add_twin(plane, x, wanted)
    assert np.allclose(got, wanted, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("base", [True, False])
def test_a_row_does_not_depend_on_the_others(base: bool) -> None:
    rng = np.random.default_rng(3)
    plane = drawn(rng, 150, 300, 2 if base else 1, 128, base)
    x = rng.standard_normal((11, 300)).astype(np.float32)
    before = rng.standard_normal((11, 150)).astype(np.float32)
    for threads in (1, 2):
        kernels.set_threads(threads)
        whole = before.copy()
        plane.add(x, whole)
        for row in range(11):
            one = before[row : row + 1].copy()
            plane.add(x[row : row + 1], one)
            assert np.array_equal(one[0].view(np.uint32), whole[row].view(np.uint32))


def test_a_group_of_four_by_hand() -> None:
    plane = pack_base(np.array([[0, 1, 2, 3]]), np.array([[1.0]]), np.array([[0.0]]), 2, 16)
    out = np.full((1, 1), 10, np.float32)
    plane.add(np.array([[1, 10, 100, 1000]], np.float32), out)
    assert out.tolist() == [[3220.0]]


def test_what_does_not_fit_is_refused() -> None:
    plane = drawn(np.random.default_rng(1), 5, 40, 2, 16, True)
    good = np.zeros((2, 40), np.float32), np.zeros((2, 5), np.float32)
    with pytest.raises(UserError, match="nested_add"):
        plane.add(good[0][:, :39], good[1])
    with pytest.raises(UserError, match="nested_add"):
        plane.add(good[0], np.zeros((3, 5), np.float32))
    with pytest.raises(UserError, match="nested_add"):
        plane.add(good[0].astype(np.float64), good[1])
    with pytest.raises(UserError, match="bytes, got 3"):
        Plane(5, 40, 16, 2, True, np.zeros(3, np.uint8))
    with pytest.raises(UserError, match="a residual plane one, not 2"):
        Plane(5, 40, 16, 2, False, plane.data)
    with pytest.raises(UserError, match="codes of 2 bits are 0 to 3"):
        pack_base(np.array([[4]]), np.ones((1, 1)), np.ones((1, 1)), 2, 16)
    with pytest.raises(UserError, match="f16 scales"):
        pack_signs(np.array([[True]]), np.full((1, 1), 1e6), 16)
