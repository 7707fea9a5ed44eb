"""Features of gaps: native equals its twin, a gap's bits are its own, and what does not fit is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack import kernels
from haversack.core.errors import UserError
from haversack.kernels._native import native
from haversack.kernels.gaps import gap_features_twin


def drawn(rng, gaps, heads, width, window):
    """What `gap_features` takes but for eps."""
    channels = heads * width
    parts = rng.standard_normal((gaps + 2 * window - 1, (2 + heads) * channels)).astype(np.float32)
    return parts, heads, window, *rng.standard_normal((3, channels)).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    gaps=st.integers(1, 40),
    heads=st.integers(1, 5),
    width=st.integers(1, 20),
    window=st.integers(1, 10),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_its_twin(gaps, heads, width, window, seed):
    made = drawn(np.random.default_rng(seed), gaps, heads, width, window)
    wanted = gap_features_twin(*made, 1e-3)
    got = kernels.gap_features(*made, 1e-3)
    assert got.shape == (gaps, kernels.feature_width(heads * width)) and got.shape[1] % 16 == 0
    assert np.abs(got - wanted).max() <= 1e-4 * max(1.0, float(np.abs(wanted).max()))
    assert not got[:, 4 * heads * width + 1 :].any()


def test_the_twin_is_the_definition():
    """One gap, number by number."""
    parts, heads, window, bias, weight, shift = drawn(np.random.default_rng(4), 3, 2, 3, 2)
    queries, keys, one, two = parts[1:5].astype(np.float64).reshape(4, 4, 6).transpose(1, 0, 2)
    seen = np.tile(bias.astype(np.float64), (4, 1))
    for head, values in enumerate((one, two)):
        part = slice(3 * head, 3 * head + 3)
        powers = np.exp(queries[:, part] @ keys[:, part].T)
        seen += powers / powers.sum(axis=1, keepdims=True) @ values
    seen = (seen - seen.mean(axis=1, keepdims=True)) / np.sqrt(seen.var(axis=1, keepdims=True) + 1e-5)
    left, right = (seen * weight + shift).reshape(2, 2, 6).mean(axis=1)
    cosine = left @ right / (np.linalg.norm(left) * np.linalg.norm(right))
    wanted = np.concatenate([left, right, np.abs(left - right), left * right, [cosine]])
    assert np.allclose(
        gap_features_twin(parts, heads, window, bias, weight, shift, 1e-5)[1, :25], wanted, atol=1e-5
    )


def test_large_scores_stay_finite():
    parts, *rest = drawn(np.random.default_rng(5), 20, 4, 16, 4)
    parts[:, :128] *= 60
    found = kernels.gap_features(parts, *rest, 1e-5)
    assert np.isfinite(found).all()
    assert np.abs(found - gap_features_twin(parts, *rest, 1e-5)).max() <= 1e-3


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"parts": np.zeros((7, 24), np.float32)}, "parts"),
        ({"parts": np.zeros((9, 23), np.float32)}, "parts"),
        ({"parts": np.zeros((9, 24))}, "parts"),
        ({"parts": np.zeros((24, 9), np.float32).T}, "arrays"),
        ({"heads": 4}, "parts"),
        ({"window": 0}, "parts"),
        ({"bias": np.zeros((6, 1), np.float32)}, "bias"),
        ({"weight": np.zeros(5, np.float32)}, "weight"),
        ({"shift": np.zeros(6)}, "shift"),
    ],
)
def test_what_does_not_fit_is_refused(change, field):
    call = {"parts": np.zeros((9, 24), np.float32), "heads": 2, "window": 4, "eps": 1e-5}
    call |= {name: np.zeros(6, np.float32) for name in ("bias", "weight", "shift")}
    assert kernels.gap_features(**call).shape == (2, 32)
    if field == "arrays" and native() is None:
        return  # numpy takes any strides
    with pytest.raises(UserError) as caught:
        kernels.gap_features(**call | change)
    assert caught.value.field == field
