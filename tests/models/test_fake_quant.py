"""Uniform quantizers: known numbers, half a step at most, ranges that only ever help; observers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.core.errors import UserError
from haversack.models._fake_quant import (
    SCALE_LIMITS,
    affine_grid,
    clipped_range,
    extent,
    fake_quantized,
    grid,
    symmetric_grid,
)
from haversack.models._observers import ChannelMoments, RangeObserver


def test_the_specification_s_numbers():
    one = affine_grid(-1.0, 3.0, 8)
    assert float(one.scale) == pytest.approx(0.0156863, abs=5e-8) and float(one.zero) == 64
    two = symmetric_grid(-0.7, 0.35, 4)
    assert float(two.scale) == pytest.approx(0.1) and (two.low, two.high) == (-8, 7)
    assert two.codes(np.array([0.35, -0.7, -5.0])).tolist() == [4.0, -7.0, -8.0], "3.5 goes to even"


def test_scales_of_activations_stay_within_their_limits():
    assert float(affine_grid(-1e-9, 1e-9, 8, SCALE_LIMITS).scale) == 1e-5
    assert float(symmetric_grid(-1e12, 0.0, 8, SCALE_LIMITS).scale) == 1e6


seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(2, 8), st.booleans(), st.sampled_from([None, -1]), st.floats(-3, 3))
def test_no_number_in_range_is_more_than_half_a_step_away(seed, bits, symmetric, axis, middle):
    x = np.random.default_rng(seed).normal(middle, 1.0, size=(5, 33))
    low, high = extent(x, axis=axis)
    made = grid(low, high, bits, symmetric=symmetric)
    assert (
        np.abs(made.nearest(x) - x) <= 0.5 * made.scale * (1 + 1e-9) + (0 if symmetric else 0.5) * made.scale
    ).all()
    assert (made.nearest(np.zeros((5, 1))) == 0).all(), "zero is a level"
    codes = made.codes(x)
    assert codes.min() >= made.low and codes.max() <= made.high
    assert np.allclose(made.nearest(made.nearest(x)), made.nearest(x)), "a level stays where it is"


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(2, 5), st.booleans())
def test_clipping_never_raises_the_error_it_judges_by(seed, bits, symmetric):
    x = np.random.default_rng(seed).standard_t(2, size=(6, 64))
    errors = [
        (np.abs(grid(*ends, bits, symmetric=symmetric).nearest(x) - x) ** 2.4).sum(axis=-1)
        for ends in (extent(x), clipped_range(x, bits, symmetric=symmetric))
    ]
    assert (errors[1] <= errors[0]).all()
    plain, clipped = (fake_quantized(x, bits, symmetric=symmetric, clipped=one) for one in (False, True))
    assert np.square(clipped - x).mean() < np.square(plain - x).mean() or bits > 3


def test_constant_and_empty_ranges_give_zeros_not_nan():
    for symmetric in (False, True):
        assert (fake_quantized(np.zeros((2, 4)), 4, symmetric=symmetric) == 0).all()
    with pytest.raises(UserError, match="bits=1 is no width"):
        affine_grid(0.0, 1.0, 1)


pieces = st.lists(st.integers(1, 9), min_size=1, max_size=5)


@settings(max_examples=30, deadline=None)
@given(seeds, pieces, st.integers(1, 40), st.sampled_from([4, 32]))
def test_observed_extremes_are_those_of_the_whole(seed, counts, columns, group):
    rng = np.random.default_rng(seed)
    parts = [rng.normal(size=(n, columns)).astype(np.float32) for n in counts]
    whole = np.concatenate(parts)
    found = {name: RangeObserver(name, group=group) for name in ("tensor", "channel", "group")}
    moments = ChannelMoments(columns, fourth=True)
    for part in parts:
        moments.add(part)
        for one in found.values():
            one.add(part)
    assert (found["tensor"].low, found["tensor"].high) == (whole.min(), whole.max())
    assert np.array_equal(found["channel"].high, whole.max(axis=0))
    assert found["group"].low[-1] == whole[:, (columns - 1) // group * group :].min()
    assert np.array_equal(moments.largest, np.abs(whole).max(axis=0))
    assert np.allclose(moments.magnitude, np.abs(whole).mean(axis=0), rtol=1e-5)
    assert np.allclose(moments.mean, whole.mean(axis=0), atol=1e-6)
    centred = whole.astype(np.float64) - whole.mean(axis=0, dtype=np.float64)
    variance = np.square(centred).mean(axis=0)
    if len(whole) > 1:
        kurtosis = (centred**4).mean(axis=0) / variance**2
        assert np.allclose(moments.kurtosis, kurtosis, rtol=1e-2, atol=1e-2)


def test_running_and_moving_ranges_weigh_pieces_as_they_say():
    parts = [np.full((3, 2), value, np.float32) for value in (1.0, 2.0, 6.0)]
    running, moving = RangeObserver(rule="running"), RangeObserver(rule="moving", share=0.5)
    for part in parts:
        running.add(part)
        moving.add(part)
    assert running.high == 3.0
    assert moving.high == 0.5 * (0.5 * 1 + 0.5 * 2) + 0.5 * 6


def test_unknown_granularities_and_rules_are_named():
    with pytest.raises(UserError, match="granularity=token"):
        RangeObserver("token")
    with pytest.raises(UserError, match="rule=median"):
        RangeObserver(rule="median")
