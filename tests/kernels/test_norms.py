"""Norms equal their definitions, and say what does not fit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack import kernels
from haversack.core.errors import UserError
from haversack.kernels.norms import layer_norm_twin, rms_norm_twin


def near(got, expected, tolerance=1e-5):
    return bool(np.all(np.abs(got - expected) <= tolerance * np.maximum(np.abs(expected), 1e-6)))


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 9),
    heads=st.integers(0, 4),
    width=st.integers(1, 300),
    size=st.sampled_from([1e-4, 1.0, 300.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_equal_their_twins(n, heads, width, size, seed):
    rng = np.random.default_rng(seed)
    shape = (n, heads, width) if heads else (n, width)
    x = (rng.standard_normal(shape) * size).astype(np.float32)
    weight, bias = rng.standard_normal((2, width)).astype(np.float32)
    for offset in (0.0, 1.0):
        got = kernels.rms_norm(x, weight, 1e-6, offset=offset)
        assert got.dtype == np.float32 and near(got, rms_norm_twin(x, weight, 1e-6, offset))
    # A layer norm cancels: its error is judged by the size of the terms.
    for terms in (bias, None):
        expected = layer_norm_twin(x, weight, terms, 1e-3)
        got = kernels.layer_norm(x, weight, terms, 1e-3)
        assert got.shape == x.shape
        assert np.all(np.abs(got - expected) <= 2e-5 * (np.abs(weight) * 4 + 1))


def test_the_definition_by_hand():
    x = np.array([[3.0, -4.0]], np.float32)
    weight = np.array([1.0, 2.0], np.float32)
    assert np.allclose(kernels.rms_norm(x, weight, 0.0), [[3 / 12.5**0.5, -8 / 12.5**0.5]])
    assert np.allclose(kernels.rms_norm(x, weight, 0.0, offset=1.0), [[6 / 12.5**0.5, -12 / 12.5**0.5]])
    assert np.allclose(kernels.layer_norm(x, weight, np.array([0.5, 0.5], np.float32), 0.0), [[1.5, -1.5]])


def test_output_may_be_the_input_and_neighbours_are_untouched():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((5, 33)).astype(np.float32)
    weight = rng.standard_normal(33).astype(np.float32)
    held = np.full((7, 33), 9.0, np.float32)
    expected = kernels.rms_norm(x, weight, 1e-5)
    assert kernels.rms_norm(x, weight, 1e-5, out=held[1:6]).base is held
    assert np.array_equal(held[1:6], expected) and np.all(held[[0, 6]] == 9)
    expected = kernels.layer_norm(x, weight, None, 1e-5)
    assert np.array_equal(kernels.layer_norm(x, weight, None, 1e-5, out=x), expected)


def test_not_finite_rows_leave_other_rows_alone():
    x = np.ones((3, 40), np.float32)
    x[1, 39] = np.nan
    got = kernels.rms_norm(x, np.ones(40, np.float32), 1e-5)
    assert np.isnan(got[1]).all() and np.isfinite(got[[0, 2]]).all()


X, W = np.zeros((2, 8), np.float32), np.ones(8, np.float32)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: kernels.rms_norm(X, W[:7], 1e-5), r"rms_norm: weight must be f32\[8\], got f32\[7\]"),
        (
            lambda: kernels.rms_norm(X.astype(np.float64), W, 1e-5),
            r"x must be f32\[..., d\], got f64\[2, 8\]",
        ),
        (lambda: kernels.rms_norm([[1.0]], W, 1e-5), "x must be .*got list"),
        (lambda: kernels.rms_norm(X, None, 1e-5), "weight must be .*got NoneType"),
        (lambda: kernels.rms_norm(X, W, 1e-5, out=np.zeros((8, 2), np.float32)), r"out must be f32\[2, 8\]"),
        (lambda: kernels.rms_norm(np.zeros((2, 0), np.float32), W, 1e-5), "x must be"),
        (lambda: kernels.layer_norm(X, W, W[:3], 1e-5), r"bias must be f32\[8\], got f32\[3\]"),
        (lambda: kernels.layer_norm(X, W.astype(np.float16), None, 1e-5), "weight must be .*f16"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(call, words):
    with pytest.raises(UserError, match=words):
        call()


def test_strided_and_read_only_arrays_are_refused():
    if kernels.isa() == "twin":
        pytest.skip("numpy twins take any strides")
    wide = np.zeros((2, 16), np.float32)
    with pytest.raises(UserError, match="contiguous"):
        kernels.rms_norm(wide[:, ::2], W, 1e-5)
    out = np.zeros((2, 8), np.float32)
    out.flags.writeable = False
    with pytest.raises(UserError, match="writable"):
        kernels.rms_norm(X, W, 1e-5, out=out)
