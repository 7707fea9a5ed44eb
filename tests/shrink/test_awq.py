"""AWQ against its definition: plain loops in double precision, and exhaustive clipping."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.shrink._precision import InputStatistics
from haversack.shrink._rounding import grouped, levels, restored
from haversack.shrink.precision.awq import (
    CLIPS,
    Awq,
    channel_scales,
    clipped,
    rounded,
    searched_scales,
    weight_share,
)
from haversack.shrink.precision.round_to_nearest import round_to_nearest

KINDS = [(4, 32), (4, 64), (8, None)]


def layer(seed, rows=8, columns=64, tokens=96):
    """Inputs with a few large channels, and weights."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(tokens, columns)) * np.exp(1.2 * rng.normal(size=columns))
    return x.astype(np.float32), rng.normal(size=(rows, columns)).astype(np.float32)


def published_scales(x, ratio):
    """s_j = mean|x_j|^r, at least 1e-4, over the root of largest times smallest."""
    s = []
    for j in range(x.shape[1]):
        total = 0.0
        for t in range(len(x)):
            total += abs(float(x[t, j]))
        s.append(max((total / len(x)) ** ratio, 1e-4))
    middle = (max(s) * min(s)) ** 0.5
    return np.array([value / middle for value in s])


def published_search(x, weight, bits, group):
    """The ratio with the least squared error of x Q(w s)/s, by loops over groups: largest magnitude on the
    largest code."""
    low, high = levels(bits)
    exact = x.astype(np.float64) @ weight.T.astype(np.float64)
    best = None
    for step in range(20):
        s = published_scales(x, step / 20)
        found = np.zeros(weight.shape)
        for row in range(len(weight)):
            for start in range(0, weight.shape[1], group):
                part = slice(start, start + group)
                scaled = weight[row, part].astype(np.float64) * s[part]
                scale = float(np.float16(np.abs(scaled).max() / high))
                found[row, part] = np.clip(np.rint(scaled / scale), low, high) * scale / s[part]
        error = np.square(x.astype(np.float64) @ found.T - exact).mean()
        if best is None or error < best[0]:
            best = (error, step / 20, found)
    return best


@pytest.mark.parametrize("seed", range(6))
def test_equals_the_published_search(seed):
    x, weight = layer(seed)
    exact = x @ weight.T

    def error_of(scales):
        return float(np.square(x @ rounded(weight, 4, 32, "largest", scales).T - exact).mean())

    scales, ratio = searched_scales(np.abs(x).mean(axis=0), error_of)
    error, wanted, found = published_search(x, weight, 4, 32)
    assert ratio == wanted
    assert np.allclose(scales, published_scales(x, wanted), rtol=1e-5)
    assert error_of(scales) == pytest.approx(error, rel=1e-4)
    assert np.allclose(rounded(weight, 4, 32, "largest", scales), found, atol=1e-5 * np.abs(weight).max())


def test_ratio_zero_is_plain_rounding_and_scales_lie_around_one():
    x, _ = layer(3)
    magnitude = np.abs(x).mean(axis=0)
    assert (channel_scales(magnitude, 0.0) == 1).all()
    for ratio in (0.3, 0.95):
        scales = channel_scales(magnitude, ratio)
        assert scales.max() * scales.min() == pytest.approx(1.0, rel=1e-5)
        assert (np.argsort(scales) == np.argsort(magnitude)).all()


def test_version_one_divides_by_the_weights_share():
    _, weight = layer(5, rows=3)
    share = weight_share([weight[:1], weight[1:]], 32)
    by_hand = np.zeros(64)
    for row in weight:
        for start in (0, 32):
            part = np.abs(row[start : start + 32])
            by_hand[start : start + 32] += part / part.max() / 3
    assert np.allclose(share, by_hand, rtol=1e-5)
    ones = np.ones(64, np.float32)
    low, high = channel_scales(ones, 0.5, share), channel_scales(ones, 0.9, share)
    assert (np.argsort(low) == np.argsort(-share)).all(), "small weights are raised"
    assert np.ptp(high) < np.ptp(low)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(KINDS), st.sampled_from(["largest", "leaning"]))
def test_clipping_finds_what_trying_every_share_finds(seed, kind, choice):
    """Each group of each row for itself, its error on the inputs by a plain product."""
    bits, group = kind
    x, weight = layer(seed, rows=4, columns=80)
    codes, scales = clipped(weight, x, bits, group, choice)
    found = restored(codes, scales, group)
    low, high = levels(bits)
    size = group or 80
    for row in range(len(weight)):
        for start in range(0, 80, size):
            part = slice(start, min(start + size, 80))
            values = weight[row, part].astype(np.float64)
            largest = values[np.abs(values).argmax()]
            best = np.inf
            for share in CLIPS:
                tried = [np.abs(largest) / high * share] if choice == "largest" else [largest / low * share]
                tried += [] if choice == "largest" else [-largest / low * share]
                for scale in tried:
                    scale = float(np.float16(scale)) if group else float(scale)
                    near = np.clip(np.rint(values / scale), low, high) * scale
                    best = min(best, np.square(x[:, part] @ (values - near)).sum())
            ours = np.square(x[:, part].astype(np.float64) @ (values - found[row, part])).sum()
            assert ours <= best * (1 + 1e-3) + 1e-9


def test_clipping_of_more_inputs_than_a_group_has_is_judged_by_all_of_them():
    x, weight = layer(8, tokens=500)
    few = clipped(weight, x[:16], 4, 32, "leaning")
    all_of_them = clipped(weight, x, 4, 32, "leaning")
    errors = [
        np.square(
            (grouped(weight - restored(*one, 32), 32)[:, :, None] * grouped(x, 32).swapaxes(0, 1)).sum(-1)
        ).sum()
        for one in (few, all_of_them)
    ]
    assert errors[1] < errors[0]


def test_the_method_without_clipping_rounds_plainly():
    x, weight = layer(2)
    found = Awq(clip=False, group=32).quantize({"a": weight}, InputStatistics(len(x), inputs=x))["a"]
    assert np.array_equal(found.codes, round_to_nearest(weight, 4, 32, "leaning")[0])
