"""What static int8 products miss: native equals its twin, hot rows change no bit, and what does not fit is
refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack import kernels
from haversack.core.errors import UserError
from haversack.kernels.shadow import finish_twin


def drawn(rng, rows, columns):
    codes = rng.integers(-127, 128, (rows, columns), dtype=np.int8)
    return codes, kernels.pack_int8(codes, np.full(rows, 0.013, np.float32))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 140),
    n=st.integers(0, 9),
    inputs=st.booleans(),
    rounds=st.sampled_from([None, 0.03, 2.0]),
    outputs=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_its_twin(rows, columns, n, inputs, rounds, outputs, seed):
    rng = np.random.default_rng(seed)
    codes, matrix = drawn(rng, rows, columns)
    x = rng.standard_normal((n, columns)).astype(np.float32)
    x[:, :: max(1, columns // 3)] *= 40
    hot = np.sort(rng.permutation(columns)[: columns // 4]).astype(np.int32)
    given = {"inputs": inputs, "out_scale": rounds, "outputs": outputs}
    plain = kernels.Shadow(matrix, 0.05, **given)
    apart = kernels.Shadow(matrix, 0.05, hot=np.ascontiguousarray(codes[:, hot].T), channels=hot, **given)
    y = kernels.matmul(x, matrix, activations="int8-static", static_scale=0.05)
    add = rng.standard_normal((n, rows)).astype(np.float32)
    bias = rng.standard_normal(rows).astype(np.float32)
    found = plain.finish(x, y, add=add, bias=bias)
    assert np.array_equal(found, apart.finish(x, y, add=add, bias=bias))
    assert np.array_equal(found, add + finish_twin(plain, x, y) + bias)
    for row in range(n):
        at = slice(row, row + 1)
        assert np.array_equal(found[at], plain.finish(x[at], y[at], add=add[at], bias=bias))
    assert plain.finish(x, y, out=y) is y  # in place
    assert np.array_equal(add + y + bias, found)


def test_with_the_shadow_a_product_is_that_of_unclipped_integers():
    rng = np.random.default_rng(3)
    codes, matrix = drawn(rng, 24, 80)
    x = (rng.standard_normal((7, 80)) * np.where(np.arange(80) % 19 == 4, 30, 1)).astype(np.float32)
    scale = np.float32(0.02)
    y = kernels.matmul(x, matrix, activations="int8-static", static_scale=float(scale))
    r = np.rint(x * (np.float32(1) / scale)).astype(np.float64)
    exact = r @ codes.T.astype(np.float64) * float(scale) * np.float64(np.float32(0.013))
    found = kernels.Shadow(matrix, float(scale)).finish(x, y)
    assert np.abs(y - exact).max() > 1
    assert np.abs(found - exact).max() < 1e-5 * np.abs(exact).max()


def test_inputs_that_are_not_numbers_stay_that():
    _, matrix = drawn(np.random.default_rng(1), 5, 40)
    x = np.ones((3, 40), np.float32)
    x[1, 3], x[2, 7] = np.nan, np.inf
    y = kernels.matmul(x, matrix, activations="int8-static", static_scale=0.1)
    found = kernels.Shadow(matrix, 0.1, out_scale=0.2, outputs=True).finish(x, y)
    assert np.isfinite(found[0]).all() and np.isnan(found[1:]).all()


CODES, MATRIX = drawn(np.random.default_rng(0), 4, 8)
HOT, AT = CODES[:, [1, 5]].T.copy(), np.array([1, 5], np.int32)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: kernels.Shadow(kernels.Matrix.from_array(np.eye(4, dtype=np.float32)), 1.0), "must be int8"),
        (lambda: kernels.Shadow(MATRIX, 0.0), "scale=0.0 must be positive"),
        (lambda: kernels.Shadow(MATRIX, 1.0, out_scale=-1.0), "out_scale=-1.0 must be positive"),
        (lambda: kernels.Shadow(MATRIX, 1.0, hot=HOT), "belong together"),
        (lambda: kernels.Shadow(MATRIX, 1.0, hot=HOT[:, :3].copy(), channels=AT), "hot must be"),
        (lambda: kernels.Shadow(MATRIX, 1.0, hot=HOT, channels=AT + 4), "name 0..7"),
        (lambda: finish(np.zeros((2, 7), np.float32)), "x must be"),
        (lambda: finish(y=np.zeros((3, 4), np.float32)), "y must be"),
        (lambda: finish(bias=np.zeros(3, np.float32)), "bias must be"),
        (lambda: finish(add=np.zeros((2, 3), np.float32)), "add must be"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(call, words):
    with pytest.raises(UserError, match=words):
        call()


def finish(x=None, y=None, **given):
    x = np.zeros((2, 8), np.float32) if x is None else x
    y = np.zeros((2, 4), np.float32) if y is None else y
    return kernels.Shadow(MATRIX, 1.0).finish(x, y, **given)
