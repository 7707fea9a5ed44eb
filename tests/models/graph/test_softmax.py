"""Softmax of codes in whole numbers: the published functions term by term, the real function, the table."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.graph.record_litert import SCALES, SOFTMAX, checksum, logits

from haversack.models.graph._ir import Quantization
from haversack.models.graph._softmax import (
    EXP_POWERS,
    ONE,
    SCALE,
    SUM_BITS,
    WHOLE,
    ZERO,
    exponentials,
    fixed_powers,
    reciprocal,
    softmax_codes,
    softmax_fixed,
)


def high(x: int, y: int) -> int:
    """round(x y / 2^31), halves up."""
    return (x * y + (1 << 30)) >> 31


def away(x: int, by: int) -> int:
    """round(x / 2^by), halves away from zero."""
    return (abs(x) + (1 << by >> 1) >> by) * (1 if x >= 0 else -1)


def power(x: int) -> int:
    """exp of x <= 0 with five whole bits, in Python's own numbers."""
    if x == 0:
        return ONE
    quarter = 1 << 24
    below = x % quarter - quarter
    near = below * 32 + (1 << 28)
    square = high(near, near)
    cube, fourth = high(square, near), high(square, square)
    terms = away(high(away(fourth, 2) + cube, 715827883) + square, 1)
    found = 1895147668 + high(1895147668, near + terms)
    for place, factor in enumerate(EXP_POWERS):
        if (below - x) >> (24 + place) & 1:
            found = high(found, factor)
    return found


def by_hand(row: list[int], m: int, shift: int) -> list[int]:
    """A row's codes; differences that have no room in 32 bits count as nothing."""
    farthest = math.floor(31 * 2.0 ** (26 - shift))
    gaps = [each - max(row) for each in row]
    powers = [power(high(gap << shift, m)) if -gap <= farthest else 0 for gap in gaps]
    total = sum(away(each, SUM_BITS) for each in powers)
    zeros = 32 - total.bit_length()
    half = ((total << zeros) - (1 << 31) + ONE + 1) // 2
    found = 1515870810 + high(half, -1010580540)
    for _ in range(3):
        found += high(found, (1 << 29) - high(half, found)) * 4
    share = min(2 * found, ONE)
    return [max(-128, min(127, away(high(share, each), 35 - zeros) - 128)) for each in powers]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(-128, 127), min_size=1, max_size=40),
    st.floats(2.0**-12, 2.0),
)
def test_rows_are_those_of_the_published_functions(row: list[int], scale: float) -> None:
    from haversack.models.graph._integer import multiplier

    m, shift = multiplier(min(scale * 2**26, float(ONE)))
    found = softmax_fixed(np.array([row], np.int8), scale)
    assert found[0].tolist() == by_hand(row, m, shift)


def test_constants_are_what_they_stand_for() -> None:
    for place, factor in enumerate(EXP_POWERS):
        assert factor == round(math.exp(-(2.0 ** (place - 2))) * 2**31)


def test_exponentials_are_close_everywhere() -> None:
    x = -np.arange(0, 31 << (31 - WHOLE), 65_537, dtype=np.int64)
    real = np.exp(x / 2.0 ** (31 - WHOLE))
    assert np.abs(exponentials(x) / 2.0**31 - real).max() < 1e-6
    assert (np.diff(exponentials(x)) <= 0).all()
    assert exponentials(np.zeros(1, np.int64))[0] == ONE


def test_reciprocals_are_close_everywhere() -> None:
    total = np.unique(np.geomspace(1 << 19, (1 << 31) - 1, 4000).astype(np.int64))
    share, bits = reciprocal(total)
    assert np.abs(share / 2.0**31 / 2.0**bits * (total / 2.0**19) - 1).max() < 1e-6


@pytest.mark.parametrize("scale", [0.01, 0.05, 0.1447, 0.5, 1.9])
def test_codes_are_within_one_of_the_real_softmax(scale: float) -> None:
    x = np.random.default_rng(3).integers(-128, 128, (500, 12)).astype(np.int8)
    power = np.exp(scale * (x.astype(float) - x.max(axis=1, keepdims=True)))
    real = np.clip(power / power.sum(axis=1, keepdims=True) / SCALE + ZERO, -128, 127)
    assert np.abs(softmax_fixed(x, scale) - real).max() < 1
    other = softmax_codes(x, scale, Quantization((SCALE,), ZERO))
    assert np.abs(softmax_fixed(x, scale).astype(int) - other).max() <= 1


@pytest.mark.parametrize("scale", SCALES)
def test_codes_are_those_recorded_of_litert(scale: float) -> None:
    """40,000 rows each; over all, the table of floats differs in some."""
    wanted = json.loads(SOFTMAX.read_text(encoding="utf-8"))
    assert checksum(softmax_fixed(logits(scale), float(np.float32(scale)))) == wanted[str(scale)]


def test_the_recordings_tell_both_rules_apart() -> None:
    wanted = json.loads(SOFTMAX.read_text(encoding="utf-8"))
    y = Quantization((SCALE,), ZERO)
    table = {
        str(scale): checksum(softmax_codes(logits(scale), float(np.float32(scale)), y)) for scale in SCALES
    }
    assert table != wanted


def test_what_is_too_far_counts_as_nothing() -> None:
    """A scale of 1 is half of 2, so that its differences reach -15.5; one next to 2 reaches -31."""
    powers = fixed_powers(1.0)
    assert powers[0] == ONE and powers[:16].all() and not powers[16:].any()
    assert np.flatnonzero(fixed_powers(1.999)).max() * 1.999 > 15.5
    assert softmax_fixed(np.array([[127, -128]], np.int8), 1.0).tolist() == [[127, -128]]
    assert softmax_fixed(np.full((1, 256), 7, np.int8), 0.3).tolist() == [[-127] * 256]
