"""Single weights and gathered inputs: native equals its twin, and what does not fit is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack import kernels
from haversack.core.errors import UserError
from haversack.kernels.outliers import add_twin


def drawn(rng, rows, columns, share):
    kept = rng.random((rows, columns)) < share
    starts = np.concatenate([[0], np.cumsum(kept.sum(axis=1))]).astype(np.int32)
    values = rng.standard_normal(int(kept.sum())).astype(np.float32)
    return kernels.Outliers(starts, np.nonzero(kept)[1].astype(np.uint16), values, columns)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 200),
    n=st.integers(0, 37),
    share=st.sampled_from([0.0, 0.01, 0.2, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_its_twin_and_the_dense_product(rows, columns, n, share, seed):
    rng = np.random.default_rng(seed)
    outliers = drawn(rng, rows, columns, share)
    x = rng.standard_normal((n, columns)).astype(np.float32)
    before = rng.standard_normal((n, rows)).astype(np.float32)
    got = outliers.add(x, before.copy())
    twin = before + add_twin(outliers, x)
    if kernels.isa() != "portable":
        # f64 rounds a sum before f32 does, once in 2^29.
        assert np.array_equal(got, twin) or np.abs(got - twin).max() < 1e-6 * max(1, np.abs(twin).max())
    exact = before + x.astype(np.float64) @ outliers.dense().T.astype(np.float64)
    assert np.abs(got - exact).max(initial=0) <= 1e-5 * (1 + columns * share)


def test_gathers_the_inputs_that_are_named():
    x = np.random.default_rng(1).standard_normal((5, 70)).astype(np.float32)
    at = np.array([69, 0, 3, 3], np.int32)
    out = np.empty((5, 4), np.float32)
    assert kernels.gather(x, at, out=out) is out
    assert np.array_equal(out, x[:, at]) and np.array_equal(
        kernels.gather(x[:, ::2], at[1:]), x[:, ::2][:, at[1:]]
    )
    assert kernels.gather(x, at[:0]).shape == (5, 0)


STARTS, AT, VALUES = np.array([0, 1, 2], np.int32), np.array([3, 1], np.uint16), np.ones(2, np.float32)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: kernels.Outliers(STARTS[::-1].copy(), AT, VALUES, 4), "do not fit each other"),
        (lambda: kernels.Outliers(STARTS[:2], AT, VALUES, 4), "do not fit each other"),
        (lambda: kernels.Outliers(np.array([0, 3, 2], np.int32), AT, VALUES, 4), "do not fit each other"),
        (lambda: kernels.Outliers(STARTS, AT, VALUES, 3), "and 3 columns"),
        (lambda: kernels.Outliers(STARTS, AT, VALUES[:1], 4), "values must be"),
        (lambda: kernels.Outliers(STARTS, AT.astype(np.int32), VALUES, 4), "at must be"),
        (lambda: kernels.gather(np.zeros((2, 3), np.float32), np.array([3], np.int32)), "columns 0..2"),
        (lambda: kernels.gather(np.zeros((2, 3)), np.array([1], np.int32)), "x must be"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(call, words):
    with pytest.raises(UserError, match=words):
        call()


def test_products_of_another_shape_are_refused():
    outliers = kernels.Outliers(STARTS, AT, VALUES, 4)
    with pytest.raises(UserError, match="x must be"):
        outliers.add(np.zeros((2, 5), np.float32), np.zeros((2, 2), np.float32))
    with pytest.raises(UserError, match="out must be"):
        outliers.add(np.zeros((2, 4), np.float32), np.zeros((3, 2), np.float32))
    assert outliers.nbytes == 3 * 4 + 2 * 2 + 2 * 4
