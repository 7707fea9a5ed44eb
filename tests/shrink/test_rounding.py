"""Levels and scales: every code in range, every error within half a step, the search never worse than what
it tries.
"""

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.core.errors import UserError
from haversack.shrink._precision import expected_noise
from haversack.shrink._rounding import choose_scales, codes_of, grouped, levels, restored, rounding_error
from haversack.shrink.precision.round_to_nearest import RoundToNearest, round_to_nearest

CHOICES = ("largest", "leaning", "searched")
SHAPES = [(4, 32), (4, 64), (4, 128), (8, None)]


def matrices():
    values = st.floats(-100, 100, width=32).map(lambda value: 0.0 if abs(value) < 1e-3 else value)
    shapes = st.tuples(st.integers(1, 9), st.integers(1, 200))
    return shapes.flatmap(lambda shape: arrays.arrays(np.float32, shape, elements=values))


@settings(max_examples=60, deadline=None)
@given(matrices(), st.sampled_from(SHAPES), st.sampled_from(CHOICES))
def test_codes_are_in_range_and_every_weight_is_within_its_reach(weight, kind, choice):
    bits, group = kind
    codes, scales = round_to_nearest(weight, bits, group, choice)
    low, high = levels(bits)
    assert codes.dtype == np.int8 and codes.shape == weight.shape
    assert codes.min() >= low and codes.max() <= high
    assert np.isfinite(scales).all()
    if group is not None:
        assert np.array_equal(scales, scales.astype(np.float16).astype(np.float32))
    if choice == "largest":
        error = grouped(weight, group) - grouped(restored(codes, scales, group), group)
        assert (np.abs(error).max(axis=-1) <= 0.502 * np.abs(scales) + 1e-6).all()


@settings(max_examples=40, deadline=None)
@given(matrices(), st.sampled_from(SHAPES))
def test_the_search_is_never_worse_than_the_largest_magnitude(weight, kind):
    bits, group = kind
    values = grouped(weight, group)
    plain, found = (
        choose_scales(values, bits, choice, half=group is not None) for choice in ("largest", "searched")
    )
    assert (rounding_error(values, found, bits, None) <= rounding_error(values, plain, bits, None)).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(SHAPES), st.integers(1, 5), st.integers(1, 140))
def test_weights_that_are_levels_already_come_back_exactly(seed, kind, rows, columns):
    bits, group = kind
    rng = np.random.default_rng(seed)
    low, high = levels(bits)
    codes = rng.integers(low, high + 1, (rows, columns)).astype(np.int8)
    codes[:, :: group or columns] = high if bits == 8 else low  # every group reaches its end
    scales = (2.0 ** rng.integers(-6, 3, (rows, -(-columns // (group or columns))))).astype(np.float32)
    weight = restored(codes, scales, group)
    again = restored(*round_to_nearest(weight, bits, group, "leaning"), group)
    assert np.array_equal(again, weight)


def test_leaning_halves_nothing_but_gains_an_eighth_of_a_step():
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(400, 64)).astype(np.float32)
    errors = [
        np.square(weight - restored(*round_to_nearest(weight, 4, 64, choice), 64)).mean()
        for choice in CHOICES
    ]
    assert errors[1] < 0.85 * errors[0]
    assert errors[2] < errors[1]


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 64), (4, 128)])
def test_predicted_noise_is_what_normal_weights_show(bits, group, choice):
    weight = np.random.default_rng(2).normal(size=(500, 512)).astype(np.float32)
    found = restored(*round_to_nearest(weight, bits, group, choice), group)
    measured = np.square(weight - found).mean() / np.square(weight).mean()
    assert expected_noise(bits, group, choice) == pytest.approx(measured, rel=0.2)


def test_zeros_stay_zero_and_tiny_groups_do_not_divide_by_zero():
    weight = np.zeros((3, 70), np.float32)
    weight[1, 5] = 1e-30
    codes, scales = round_to_nearest(weight, 4, 32, "searched")
    assert not codes.any() and np.isfinite(scales).all()
    assert not codes_of(weight, np.zeros((3, 1), np.float32), 8).any()


def test_weights_beyond_16_bit_scales_are_refused_with_a_way_out():
    with pytest.raises(UserError) as caught:
        round_to_nearest(np.full((1, 32), 1e6, np.float32), 4, 32, "largest")
    assert caught.value.nearest == "bits=8"


def test_parameters_outside_the_declared_values_are_refused():
    with pytest.raises(UserError, match="bits=5 is not supported"):
        RoundToNearest(bits=5)
    with pytest.raises(UserError, match="group"):
        RoundToNearest(group=48)
