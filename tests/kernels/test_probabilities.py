"""Softmax and its logarithm equal their definitions, over extreme scores too."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack import kernels
from haversack.core.errors import UserError
from haversack.kernels.probabilities import log_softmax_twin, softmax_twin


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 6),
    m=st.integers(1, 3000),
    size=st.sampled_from([0.1, 5.0, 1e4, 1e37]),
    gone=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 2**32 - 1),
)
def test_equal_their_twins(n, m, size, gone, seed):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((n, m)) * size).astype(np.float32)
    x[:, 1:][rng.random((n, m - 1)) < gone] = -np.inf
    got, expected = kernels.softmax(x), softmax_twin(x)
    assert np.all(np.abs(got - expected) <= 1e-5 * expected + 1e-37)
    assert np.allclose(got.sum(axis=1, dtype=np.float64), 1, atol=1e-5)
    assert np.all(got[x == -np.inf] == 0)
    got, expected = kernels.log_softmax(x), log_softmax_twin(x)
    finite = np.isfinite(expected)
    assert np.array_equal(finite, np.isfinite(got))
    assert np.all(np.abs(got[finite] - expected[finite]) <= 1e-6 * np.abs(expected[finite]) + 1e-6)


def test_equal_scores_and_one_score():
    assert np.allclose(kernels.softmax(np.zeros((1, 40), np.float32)), 1 / 40)
    assert kernels.softmax(np.array([[3e38]], np.float32)).tolist() == [[1.0]]
    assert kernels.log_softmax(np.array([[-3e38]], np.float32)).tolist() == [[0.0]]
    assert kernels.softmax(np.array([[3e38, -3e38]], np.float32)).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("op", [kernels.softmax, kernels.log_softmax])
@pytest.mark.parametrize("m", [1, 16, 33])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_without_probabilities_are_refused(op, m, bad):
    x = np.zeros((3, m), np.float32)
    if bad == -np.inf:
        x[1] = bad
    else:
        x[1, m // 2] = bad
    with pytest.raises(UserError, match="row 1 of x"):
        op(x)
    assert np.isfinite(op(x[[0, 2]])).all()


@pytest.mark.parametrize("op", [kernels.softmax, kernels.log_softmax])
def test_output_may_be_the_input(op):
    x = np.random.default_rng(1).standard_normal((4, 99)).astype(np.float32)
    expected = op(x)
    assert op(x, out=x) is x and np.array_equal(x, expected)


@pytest.mark.parametrize("op", [kernels.softmax, kernels.log_softmax])
def test_shapes_that_do_not_fit(op):
    with pytest.raises(UserError, match=r"x must be f32\[any, any\], got f32\[3\]"):
        op(np.zeros(3, np.float32))
    with pytest.raises(UserError, match=r"out must be f32\[2, 3\]"):
        op(np.zeros((2, 3), np.float32), out=np.zeros((3, 2), np.float32))
    assert op(np.zeros((0, 3), np.float32)).shape == (0, 3)
