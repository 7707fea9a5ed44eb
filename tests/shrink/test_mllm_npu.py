"""Static int8 with shadows: the specification's figures, what profiling finds, and what packs hold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.shrink.precision._mllm_npu_profile import Magnitudes
from haversack.shrink.precision.mllm_npu import (
    hot_channels,
    kept_shadows,
    shadow_product,
    side_of,
    split,
    weight_codes,
)


@pytest.fixture(scope="module")
def layer():
    """The matrices of system 16's check."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(512, 16)) @ (np.eye(16) + 0.5 * rng.normal(size=(16, 16)))
    x[:, 3] *= 20
    x[:, 11] *= 8
    return x, rng.normal(size=(8, 16))


def error(exact, found):
    return np.square(exact - found).sum() / np.square(exact).sum()


def codes_of(weight):
    """As `weight_codes`, in double precision."""
    scale = np.abs(weight).max() / 127
    return np.rint(weight / scale), scale


def test_the_specified_figures(layer):
    x, weight = layer
    codes, weight_scale = codes_of(weight)
    exact = x @ weight.T
    scale = np.quantile(np.abs(x), 0.97) / 127
    _, missed = split(x, scale)
    assert (missed != 0).mean() == pytest.approx(0.029297, abs=5e-7)
    assert set(np.nonzero(missed)[1]) == {3, 11}
    clipped = shadow_product(x, codes, scale, weight_scale, shadow=False)
    whole = shadow_product(x, codes, scale, weight_scale)
    assert error(exact, clipped) == pytest.approx(0.137075, abs=5e-7)
    assert error(exact, whole) == pytest.approx(1.1095e-4, rel=5e-5)
    plain = shadow_product(x, codes, np.abs(x).max() / 127, weight_scale)
    assert error(exact, plain) == pytest.approx(1.5764e-3, rel=5e-5)
    unclipped = np.rint(x / scale) @ codes.T * scale * weight_scale
    assert np.abs(whole - unclipped).max() / np.abs(unclipped).max() < 1e-13
    found, own = weight_codes(weight.astype(np.float32))
    assert np.array_equal(found, codes) and own == pytest.approx(weight_scale, rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.001, 0.01, 0.2]), st.integers(1, 5000))
def test_the_histogram_finds_the_magnitude_that_a_share_passes(seed, share, count):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(count) * 10.0 ** rng.uniform(-8, 8)).astype(np.float32)
    seen = Magnitudes()
    for piece in np.array_split(x, 3):
        seen.add(piece)
    found = seen.passed_by(share)
    assert seen.largest == np.abs(x).max()
    assert (np.abs(x) > found).mean() <= share  # no more than asked for
    exact = np.sort(np.abs(x))[::-1][int(share * count)]  # the largest that is not among the share
    assert exact <= found <= min(1.005 * exact + 1e-38, seen.largest)


def test_a_side_clips_unless_its_largest_stands_out():
    assert side_of(10.0, 3.0, 5.0).mode == "clip" and side_of(10.0, 3.0, 5.0).scale == 10.0 / 127
    side = side_of(100.0, 3.0, 5.0)
    assert side.mode == "shadow" and side.scale == 3.0 / 127
    assert side.importance == pytest.approx(100 * 127 / 3) and side_of(10.0, 3.0, 5.0).importance == 0
    assert side_of(0.0, 0.0, 5.0).scale == 1.0  # a side that is always 0


def test_a_grid_alone_is_the_one_of_the_least_error():
    rng = np.random.default_rng(5)
    x = rng.standard_normal(20_000).astype(np.float32)
    x[:40] *= 30
    seen = Magnitudes()
    seen.add(x)
    high = seen.passed_by(0.01)

    def error_of(scale):
        return np.square(x - np.clip(np.rint(x / scale), -128, 127) * scale).mean()

    found = seen.clipping(high)
    tried = np.geomspace(high, seen.largest, 33) / 127
    assert error_of(found) <= 1.02 * min(error_of(scale) for scale in tried)
    assert error_of(found) < 0.95 * min(error_of(high / 127), error_of(seen.largest / 127))
    side = side_of(seen.largest, high, 5.0, found)
    assert side.mode == "shadow" and side.alone == found and side.scale == high / 127


def test_hot_channels_hold_most_outliers_and_are_few():
    counts = np.zeros(400, np.int64)
    counts[[7, 250]] = 500, 300
    counts[50:60] = 1
    assert hot_channels(counts).tolist() == [7, 250]
    assert hot_channels(np.zeros(400, np.int64)).tolist() == []
    assert len(hot_channels(np.full(400, 9))) == 12  # 3 %
    assert hot_channels(np.array([0, 4, 3], np.int64)).tolist() == [1]


def test_the_most_important_share_is_kept():
    importances = {f"m{i}": float(i) for i in range(20)}
    assert kept_shadows(importances, 0.15) == {"m19", "m18", "m17"}
    assert kept_shadows(importances, 0.0) == frozenset()
    assert "m0" not in kept_shadows(importances, 1.0)  # nothing of it is in the shadow
