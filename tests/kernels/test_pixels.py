"""Products with patches and mixed colours equal their definitions, and say what does not fit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack import kernels
from haversack.core.errors import UserError
from haversack.kernels.pixels import mix_colours, mix_colours_twin, patch_products, patch_products_twin

SEEDS = st.integers(0, 2**32 - 1)


def picture_of(rng, height, width):
    return rng.integers(0, 256, (height, width, 3), np.uint8)


@settings(max_examples=40, deadline=None)
@given(
    patch=st.sampled_from([1, 2, 3, 4, 8, 16, 32]),
    rows=st.integers(1, 4),
    columns=st.integers(1, 5),
    channels=st.integers(1, 9),
    seed=SEEDS,
)
def test_products_equal_their_twin(patch, rows, columns, channels, seed):
    rng = np.random.default_rng(seed)
    picture = picture_of(rng, rows * patch, columns * patch)
    filters = rng.standard_normal((channels, patch, patch * 3)).astype(np.float32) / 255
    bias = rng.standard_normal(channels).astype(np.float32)
    got, expected = patch_products(picture, filters, bias), patch_products_twin(picture, filters, bias)
    assert got.shape == (channels, rows, columns)
    assert np.allclose(got, expected, rtol=1e-4, atol=2e-5 * patch * 3)


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 9), width=st.integers(1, 70), squashed=st.booleans(), seed=SEEDS)
def test_colours_equal_their_twin(height, width, squashed, seed):
    rng = np.random.default_rng(seed)
    picture = picture_of(rng, height, width)
    table = (rng.standard_normal((3, 256)) * 60).astype(np.float32)
    weights = (rng.standard_normal((3, 3, 3, 3)) / 4).astype(np.float32)
    bias, offset = rng.standard_normal(3).astype(np.float32), np.full(3, 128, np.float32)
    squash = np.array([[127, 90, 1.5], [127, 10, 1], [31, 126, 4]], np.float32) if squashed else None
    got = mix_colours(picture, table, weights, bias, offset, squash)
    expected = mix_colours_twin(picture, table, weights, bias, offset, squash)
    apart = np.abs(got.astype(int) - expected)
    assert apart.max() <= 1 and np.mean(apart) < 0.02  # only where a half is rounded


def test_an_identity_gives_the_picture_back():
    rng = np.random.default_rng(0)
    picture = picture_of(rng, 21, 33)
    table = np.tile(np.arange(256, dtype=np.float32) - 128, (3, 1))
    weights = np.zeros((3, 3, 3, 3), np.float32)
    weights[range(3), 1, 1, range(3)] = 1
    zero, middle = np.zeros(3, np.float32), np.full(3, 128, np.float32)
    assert np.array_equal(mix_colours(picture, table, weights, zero, middle), picture)
    weights = np.roll(weights, 1, 2)  # now the neighbour to the right, and zero beyond the edge
    shifted = mix_colours(picture, table, weights, zero, middle)
    assert np.array_equal(shifted[:, :-1], picture[:, 1:]) and (shifted[:, -1] == 128).all()


def test_bits_do_not_depend_on_threads_or_neighbours():
    rng = np.random.default_rng(1)
    picture = picture_of(rng, 256, 320)
    filters = rng.standard_normal((5, 32, 96)).astype(np.float32)
    bias = np.zeros(5, np.float32)
    before = kernels.threads()
    try:
        kernels.set_threads(1)
        alone = patch_products(picture, filters, bias)
        kernels.set_threads(3)
        assert np.array_equal(alone, patch_products(picture, filters, bias))
        some = patch_products(np.ascontiguousarray(picture[32:64]), filters[1:2].copy(), bias[:1])
    finally:
        kernels.set_threads(before)
    assert np.array_equal(some[0, 0], alone[1, 1])


def test_what_does_not_fit_is_said():
    picture = np.zeros((8, 8, 3), np.uint8)
    filters, bias = np.zeros((1, 4, 12), np.float32), np.zeros(1, np.float32)
    for wrong in (picture[..., 0], picture.astype(np.float32), picture[:7], np.zeros((0, 8, 3), np.uint8)):
        with pytest.raises(UserError, match="picture"):
            patch_products(wrong, filters, bias)
    with pytest.raises(UserError, match="filters"):
        patch_products(picture, np.zeros((1, 4, 4), np.float32), bias)
    with pytest.raises(UserError, match="contiguous"):
        patch_products(picture[:, ::2], filters, bias)
    table, weights = np.zeros((3, 256), np.float32), np.zeros((3, 3, 3, 3), np.float32)
    three = np.zeros(3, np.float32)
    with pytest.raises(UserError, match="table"):
        mix_colours(picture, table[:, :255], weights, three, three)
    with pytest.raises(UserError, match="squash"):
        mix_colours(picture, table, weights, three, three, np.zeros((2, 3), np.float32))
