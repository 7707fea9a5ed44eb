"""Rope equals its definition, keeps lengths, and depends on relative positions only."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack import kernels
from haversack.core.errors import UserError
from haversack.kernels.rotary import rope_table_twin, rope_twin


def frequencies(turned, theta=10000.0):
    return theta ** (-np.arange(0, turned, 2) / turned)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 9),
    heads=st.integers(1, 4),
    pairs=st.integers(1, 70),
    rest=st.integers(0, 20),
    style=st.sampled_from(["half", "interleaved"]),
    far=st.sampled_from([1, 1000, 100_000]),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_its_twin(n, heads, pairs, rest, style, far, seed):
    rng = np.random.default_rng(seed)
    positions = rng.integers(0, 3, n) * far
    cos, sin = kernels.rope_table(positions, frequencies(2 * pairs), 1.25)
    expected_cos, expected_sin = rope_table_twin(positions, frequencies(2 * pairs), 1.25)
    assert np.allclose(cos, expected_cos, rtol=0, atol=2e-7)
    assert np.allclose(sin, expected_sin, rtol=0, atol=2e-7)
    x = rng.standard_normal((n, heads, 2 * pairs + rest)).astype(np.float32)
    expected = rope_twin(x, cos, sin, style)
    got = x.copy()
    assert kernels.rope(got, cos, sin, style) is got
    assert np.allclose(got, expected, rtol=0, atol=1e-6)
    assert np.array_equal(got[..., 2 * pairs :], x[..., 2 * pairs :])


@pytest.mark.parametrize("style", ["half", "interleaved"])
def test_products_depend_on_the_distance_only(style):
    rng = np.random.default_rng(1)
    q, k = rng.standard_normal((2, 64))

    def turned(x, position):
        cos, sin = kernels.rope_table(np.array([position]), frequencies(64))
        return kernels.rope(x.astype(np.float32).reshape(1, 1, 64), cos, sin, style)[0, 0]

    near = turned(q, 9) @ turned(k, 4)
    assert abs(turned(q, 1009) @ turned(k, 1004) - near) < 1e-3
    assert abs(turned(q, 9) @ turned(k, 5) - near) > 1e-2
    assert abs(np.linalg.norm(turned(q, 777)) - np.linalg.norm(q)) < 1e-4


def test_the_two_styles_are_one_up_to_the_order_of_numbers():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((3, 2, 32)).astype(np.float32)
    cos, sin = kernels.rope_table(np.arange(3), frequencies(32))
    order = np.concatenate([np.arange(0, 32, 2), np.arange(1, 32, 2)])
    half = kernels.rope(np.ascontiguousarray(x[..., order]), cos, sin, "half")
    assert np.allclose(kernels.rope(x.copy(), cos, sin, "interleaved")[..., order], half, atol=1e-6)


def test_far_positions_are_computed_in_double():
    cos, _ = kernels.rope_table(np.array([1_000_003]), np.array([1.0]))
    assert abs(float(cos[0, 0]) - np.cos(1_000_003.0)) < 1e-7


def test_positions_may_be_i32():
    table = kernels.rope_table(np.arange(5, dtype=np.int32), frequencies(8).astype(np.float32))
    wide = kernels.rope_table(np.arange(5), frequencies(8).astype(np.float32).astype(np.float64))
    assert np.array_equal(table[0], wide[0]) and np.array_equal(table[1], wide[1])


X = np.zeros((2, 3, 8), np.float32)
COS = np.zeros((2, 4), np.float32)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: kernels.rope(X, COS, COS, "halves"), "style=halves.*half"),
        (lambda: kernels.rope(X, COS[:1], COS, "half"), r"cos must be f32\[2, any\]"),
        (lambda: kernels.rope(X, COS, COS[:, :2]), r"sin must be f32\[2, 4\], got f32\[2, 2\]"),
        (lambda: kernels.rope(X[0], COS, COS), "x must be"),
        (lambda: kernels.rope(X, np.zeros((2, 5), np.float32), np.zeros((2, 5), np.float32)), "2 <= r <= 8"),
        (lambda: kernels.rope(X, np.zeros((2, 0), np.float32), np.zeros((2, 0), np.float32)), "2 <= r <= 8"),
        (lambda: kernels.rope_table(np.zeros(2), frequencies(8)), "positions must be i32 or i64"),
        (lambda: kernels.rope_table([1, 2], frequencies(8)), "got list"),
        (lambda: kernels.rope_table(np.arange(2), np.ones((2, 2))), "inverse_frequencies must be"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(call, words):
    with pytest.raises(UserError, match=words):
        call()
