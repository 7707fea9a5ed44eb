"""Gates equal their definitions over the whole range of f32."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack import kernels
from haversack.core.errors import UserError
from haversack.kernels.gates import KINDS, activation_twin, gate_twin, softcap_twin

EVERYWHERE = np.concatenate(
    [
        np.linspace(-12, 12, 200_001),
        np.geomspace(1e-30, 1e30, 3001),
        -np.geomspace(1e-30, 1e30, 3001),
        [0.0, -0.0],
    ]
).astype(np.float32)[None, :]


@pytest.mark.parametrize("kind", KINDS)
def test_activations_are_accurate_everywhere(kind):
    got = kernels.gate(EVERYWHERE, None, kind).astype(np.float64)
    exact = activation_twin(EVERYWHERE, kind)
    # One minus a probability next to 1 cannot be relative to the result: |x| times one rounding is allowed.
    allowed = 4e-7 * np.abs(exact) + 1.3e-7 * np.where(np.abs(EVERYWHERE) < 16, np.abs(EVERYWHERE), 0) + 1e-36
    assert np.all(np.abs(got - exact) <= allowed)


def test_known_values():
    x = np.array([[1.0, -1.0]], np.float32)
    assert np.allclose(kernels.gate(x, None, "silu"), [[0.7310586, -0.2689414]], atol=1e-7)
    assert np.allclose(kernels.gate(x, None, "gelu"), [[0.8413447, -0.1586553]], atol=1e-7)
    assert np.allclose(kernels.gate(x, None, "gelu-tanh"), [[0.8411920, -0.1588080]], atol=1e-7)
    assert kernels.gate(x, None, "relu").tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("kind", KINDS)
def test_limits(kind):
    x = np.array([[np.inf, np.nan, 3e38, -3e38]], np.float32)
    got = kernels.gate(x, None, kind)[0]
    assert got[0] == math.inf and math.isnan(got[1]) and got[2] == np.float32(3e38) and got[3] == 0


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 5), f=st.integers(1, 5000), kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32 - 1)
)
def test_equals_its_twin(n, f, kind, seed):
    rng = np.random.default_rng(seed)
    x, up = (rng.standard_normal((2, n, f)) * 3).astype(np.float32)
    expected = gate_twin(x, up, kind)
    got = kernels.gate(x, up, kind)
    assert got.shape == (n, f)
    assert np.all(np.abs(got - expected) <= 1e-5 * np.abs(expected) + 2e-7 * np.abs(x * up))


@pytest.mark.parametrize("kind", KINDS)
def test_output_may_be_either_input(kind):
    rng = np.random.default_rng(1)
    x, up = rng.standard_normal((2, 3, 5001)).astype(np.float32)
    expected = kernels.gate(x, up, kind)
    into_up, into_x = up.copy(), x.copy()
    assert kernels.gate(x, into_up, kind, out=into_up) is into_up and np.array_equal(into_up, expected)
    assert kernels.gate(into_x, up, kind, out=into_x) is into_x and np.array_equal(into_x, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_number_has_the_same_bits_anywhere_in_a_row(kind):
    values = np.random.default_rng(2).standard_normal(37).astype(np.float32)
    for width in (1, 15, 16, 17, 37):
        for start in range(37 - width + 1):
            part = kernels.gate(values[None, start : start + width], None, kind)
            assert np.array_equal(part[0], kernels.gate(values[None], None, kind)[0, start : start + width])


@pytest.mark.parametrize("cap", [0.3, 1.0, 50.0])
def test_softcap(cap):
    got = kernels.softcap(EVERYWHERE, cap)
    exact = softcap_twin(EVERYWHERE, cap).astype(np.float64)
    assert np.all(np.abs(got - exact) <= 4e-7 * np.abs(exact) + 1e-36)
    into = EVERYWHERE.copy()
    assert kernels.softcap(into, cap, out=into) is into and np.array_equal(into, got)
    odd = kernels.softcap(np.array([[np.inf, -np.inf, np.nan]], np.float32), cap)[0]
    assert odd[0] == np.float32(cap) and odd[1] == -np.float32(cap) and math.isnan(odd[2])


def test_softcap_has_the_same_bits_anywhere_in_a_row():
    values = np.random.default_rng(3).standard_normal(37).astype(np.float32) * 4
    whole = kernels.softcap(values[None], 2.0)[0]
    for start in range(20):
        assert np.array_equal(kernels.softcap(values[None, start : start + 17], 2.0)[0], whole[start:][:17])


X = np.zeros((2, 8), np.float32)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: kernels.gate(X, X, "swish"),
            "kind=swish is not supported .allowed silu, gelu, gelu-tanh, relu",
        ),
        (lambda: kernels.gate(X, X[:1]), r"gate: up must be f32\[2, 8\], got f32\[1, 8\]"),
        (lambda: kernels.gate(X.astype(np.float16), X), "gate must be f32"),
        (lambda: kernels.gate(X, X, out=X[0]), r"out must be f32\[2, 8\]"),
        (lambda: kernels.softcap(X, 0.0), "cap=0.0 must be above 0"),
        (lambda: kernels.softcap(X.astype(np.float64), 1.0), "softcap: x must be f32"),
        (lambda: kernels.softcap(X, 1.0, out=X[0]), r"out must be f32\[2, 8\]"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(call, words):
    with pytest.raises(UserError, match=words):
        call()
