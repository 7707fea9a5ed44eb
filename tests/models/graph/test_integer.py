"""Integer arithmetic against its definition, in Python's own whole numbers and fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.models.graph import _integer
from haversack.models.graph._integer import (
    divided,
    multiplier,
    product,
    requantized,
    scaled_fixed,
    scaled_once,
    shifted_right,
    with_headroom,
)

WHOLE = st.integers(-(2**31), 2**31 - 1)
SCALES = st.floats(1e-8, 0.999)


def away(value: Fraction) -> int:
    """To the nearest whole number, halves away from zero."""
    return math.floor(value + Fraction(1, 2)) if value >= 0 else -math.floor(-value + Fraction(1, 2))


@settings(max_examples=300, deadline=None)
@given(WHOLE, SCALES)
def test_fixed_point_is_two_roundings_of_the_exact_product(x: int, scale: float) -> None:
    m, shift = multiplier(scale)
    assert abs(Fraction(m, 2**31) * Fraction(2) ** shift / Fraction(scale) - 1) <= Fraction(1, 2**30)
    # a scale below 1 shifts right alone
    high = math.floor(Fraction(x * m, 2**31) + Fraction(1, 2))
    assert int(scaled_fixed(np.array([x]), m, shift)[0]) == away(Fraction(high, 2 ** max(-shift, 0)))


@settings(max_examples=200, deadline=None)
@given(st.integers(-(2**28), 2**28), SCALES)
def test_one_rounding_goes_up_at_halves(x: int, scale: float) -> None:
    m, shift = multiplier(scale)
    exact = Fraction(x * m) / Fraction(2) ** (31 - shift)
    assert int(scaled_once(np.array([x]), m, shift)[0]) == math.floor(exact + Fraction(1, 2))


@settings(max_examples=200, deadline=None)
@given(WHOLE, st.integers(0, 31))
def test_shifts_round_halves_away_from_zero(x: int, by: int) -> None:
    assert int(shifted_right(np.array([x], np.int64), by)[0]) == away(Fraction(x, 2**by))


@settings(max_examples=200, deadline=None)
@given(st.integers(-(10**6), 10**6), st.integers(1, 500))
def test_division_rounds_halves_away_from_zero(total: int, count: int) -> None:
    assert int(divided(np.array([total]), count)[0]) == away(Fraction(total, count))


def test_a_scale_of_nothing_is_zero_and_one_of_a_half_is_exact() -> None:
    assert multiplier(0.0) == (0, 0)
    assert multiplier(0.5) == (1 << 30, 0)
    assert multiplier(1.0) == (1 << 30, 1)
    assert multiplier(1e-12) == (0, 0)


def test_both_ways_to_scale_differ_by_at_most_one_code() -> None:
    random = np.random.default_rng(0)
    total = random.integers(-100_000, 100_000, (2000, 16))
    scales = random.uniform(1e-4, 0.02, 16)
    codes = [requantized(total, scales, -3, -128, 127, way, False)[0] for way in ("float", "fixed")]
    difference = np.abs(codes[0].astype(int) - codes[1].astype(int))
    assert difference.max() <= 1
    assert difference.mean() < 0.01


def test_bits_say_what_was_inside_before_the_bounds() -> None:
    total, scales = np.array([[-400, -10, 0, 300]]), np.array([0.5])
    codes, mask = requantized(total, scales, 0, -100, 100, "float", True)
    assert codes.tolist() == [[-100, -5, 0, 100]]
    assert mask is not None and mask.tolist() == [[False, True, True, False]]


@pytest.mark.parametrize("inputs", [9, 576, 5000])
def test_products_are_exact_whatever_their_size(inputs: int) -> None:
    random = np.random.default_rng(inputs)
    rows = random.choice([-255, 255], (7, inputs)).astype(np.float32)
    matrix = random.choice([-127, 127], (5, inputs)).astype(np.int8)
    exact = rows.astype(np.int64) @ matrix.astype(np.int64).T
    assert (product(rows, matrix, 255) == exact).all()


def test_the_bound_of_exactness_is_that_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = np.ones((1, 1000), np.int8)
    assert product(np.ones((1, 1000), np.float32), matrix, 255).dtype == np.float32
    monkeypatch.setattr(_integer, "EXACT", 1000)
    assert product(np.ones((1, 1000), np.float32), matrix, 255).dtype == np.float64


def test_no_sum_overflows_after_headroom() -> None:
    weight = np.full((3, 10), 127, np.int8)
    bias = np.array([-(2**31), 2**31 - 1, 5], np.int32)
    safe = with_headroom(bias, weight, 0)
    room = 10 * 127 * 255
    assert safe[2] == 5
    assert int(safe[0]) - room >= -(2**31) and int(safe[1]) + room < 2**31
    assert (safe.astype(np.float32).astype(np.int64) == safe).all(), "whole numbers of f32"
