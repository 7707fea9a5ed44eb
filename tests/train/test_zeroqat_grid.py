"""ZeroQAT's grids: the numbers of the specification, and that a pack holds what training multiplied by."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.core.errors import UserError
from haversack.kernels._narrow import pack_int2
from haversack.train.gradient._zeroqat_grid import (
    CLIP_START,
    codes_of,
    fresh_clip,
    packed,
    rounded,
    rounded_inputs,
    sigmoid,
    weight_grid,
)

WHOLE = np.full((2, 1, 1), 40.0, np.float32)
"""A clip that clips nothing."""


def test_the_numbers_of_the_specification() -> None:
    x = np.array([[-1, 0, 0.5, 2]], np.float32)
    codes, scales, zeros = codes_of(x, 2, None, WHOLE)
    assert (scales.item(), zeros.item(), codes.tolist()) == (1, 1, [[0, 1, 1, 3]])
    assert rounded(x, 2, None, WHOLE).tolist() == [[-1, 0, 0, 2]], "0.5 goes to even"
    assert rounded_inputs(x, 2).tolist() == [[-1, 0, 0, 2]]


def test_four_codes_lie_in_a_byte_low_bits_first() -> None:
    codes = np.zeros((16, 32), np.int8)
    codes[0, [0, 4, 8, 12]] = np.array([3, 0, 2, 1]) - 2
    assert pack_int2(codes, np.ones((16, 1), np.float32), 32)[0] == 0x63


def test_clipping_begins_at_three() -> None:
    assert sigmoid(np.float32(CLIP_START)) == pytest.approx(0.9526, abs=1e-4)
    grid = weight_grid(np.array([[-1.0, 1.0]], np.float32), 8, None, fresh_clip(1, 2, None))
    assert grid.scale.item() == pytest.approx(2 * 0.9526 / 255, rel=1e-3)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("group", [None, 16, 32])
def test_a_plane_is_what_was_rounded(bits: int, group: int | None) -> None:
    weight = np.random.default_rng(bits).normal(size=(21, 96)).astype(np.float32)
    clip = np.random.default_rng(1).normal(2, 1, (2, 21, 96 // (group or 96))).astype(np.float32)
    plane = packed(weight, bits, group, clip)
    assert plane.dense().tobytes() == rounded(weight, bits, group, clip).tobytes()
    x = np.random.default_rng(2).normal(size=(3, 96)).astype(np.float32)
    out = np.zeros((3, 21), np.float32)
    plane.add(x, out)
    np.testing.assert_allclose(out, x @ plane.dense().T, rtol=1e-4, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 8), st.integers(0, 2**31), st.sampled_from([1e-6, 1e-2, 1.0, 1e3]))
def test_errors_stay_within_half_a_step(bits: int, seed: int, size: float) -> None:
    weight = (np.random.default_rng(seed).normal(size=(3, 32)) * size).astype(np.float32)
    clip = np.full((2, 3, 1), 40.0, np.float32)
    grid = weight_grid(weight, bits, None, clip)
    assert (grid.scale >= 0.99e-4).all() and (grid.scale <= 1e4).all()
    assert (grid.zero >= 0).all() and (grid.zero <= grid.high).all()
    error = np.abs(rounded(weight, bits, None, clip) - weight)
    assert (error <= 1.01 * grid.scale[..., 0] + 1e-3 * np.abs(weight)).all()


def test_sixteen_bits_round_nothing_and_others_are_refused() -> None:
    weight = np.ones((2, 4), np.float32)
    assert rounded(weight, 16, None, fresh_clip(2, 4, None)) is weight
    assert rounded_inputs(weight, 16) is weight
    with pytest.raises(UserError, match="group=3 does not divide the 4 inputs"):
        rounded(weight, 4, 3, fresh_clip(2, 4, None))
    with pytest.raises(UserError, match="12 bits are not stored"):
        packed(weight, 12, None, fresh_clip(2, 4, None))
