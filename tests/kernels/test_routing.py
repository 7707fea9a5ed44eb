"""Routing equals its definition, whatever the row's neighbours and the instruction set."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack import kernels
from haversack.core.errors import UserError
from haversack.kernels.routing import SCORINGS, route_twin


@settings(max_examples=80, deadline=None)
@given(
    n=st.integers(0, 9),
    experts=st.integers(1, 140),
    share=st.floats(0, 1),
    size=st.sampled_from([0.1, 3.0, 40.0, 1e5]),
    scoring=st.sampled_from(SCORINGS),
    chosen=st.booleans(),
    normalized=st.booleans(),
    equal=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_its_twin(n, experts, share, size, scoring, chosen, normalized, equal, seed):
    logits = (np.random.default_rng(seed).standard_normal((n, experts)) * size).astype(np.float32)
    if equal:
        logits = np.round(logits)
    if scoring == "sigmoid" and normalized:
        logits = np.clip(logits, -60, None)  # else all shares may be zeros, which have no sum
    top = max(1, round(share * min(experts, 40)))
    found = kernels.route(logits, top, scoring, chosen=chosen, normalized=normalized)
    expected = route_twin(logits, top, scoring, chosen, normalized)
    assert np.array_equal(found[0], expected[0])
    assert np.all(np.abs(found[1] - expected[1]) <= 1e-5 * expected[1] + 1e-36)


@pytest.mark.parametrize("scoring", SCORINGS)
def test_a_row_does_not_depend_on_the_others(scoring):
    logits = np.random.default_rng(3).standard_normal((40, 60)).astype(np.float32)
    experts, shares = kernels.route(logits, 4, scoring, normalized=True)
    for row in range(40):
        one = kernels.route(logits[row : row + 1], 4, scoring, normalized=True)
        assert np.array_equal(one[0][0], experts[row])
        assert np.array_equal(one[1][0].view(np.uint32), shares[row].view(np.uint32))


def test_known_numbers():
    logits = np.log(np.array([[1, 4, 2, 1]], np.float32))
    experts, shares = kernels.route(logits, 2)
    assert experts.tolist() == [[1, 2]] and np.allclose(shares, [[0.5, 0.25]])
    assert np.allclose(kernels.route(logits, 2, normalized=True)[1], [[2 / 3, 1 / 3]])
    assert np.allclose(kernels.route(logits, 2, chosen=True)[1], [[2 / 3, 1 / 3]])
    assert np.allclose(kernels.route(logits, 2, "sigmoid")[1], [[0.8, 2 / 3]])
    assert kernels.route(np.zeros((1, 5), np.float32), 3)[0].tolist() == [[0, 1, 2]]


def test_what_is_not_a_number_is_chosen_last_and_seen():
    logits = np.array([[np.nan, 1.0, -np.inf, 2.0]], np.float32)
    experts, shares = kernels.route(logits, 2, "sigmoid")
    assert experts.tolist() == [[3, 1]] and np.isfinite(shares).all()
    assert np.isnan(kernels.route(logits, 2)[1]).all(), "a softmax over all of them"
    assert np.isnan(kernels.route(np.full((1, 3), np.nan, np.float32), 1, "sigmoid")[1]).all()


def test_calls_that_do_not_fit():
    logits = np.zeros((2, 3), np.float32)
    with pytest.raises(UserError, match="top=4 is outside 1 to the 3 experts") as refused:
        kernels.route(logits, 4)
    assert refused.value.nearest == 3
    with pytest.raises(UserError, match="top=0"):
        kernels.route(logits, 0)
    with pytest.raises(UserError, match="scoring"):
        kernels.route(logits, 2, "softmx")
    with pytest.raises(UserError, match=r"logits must be f32\[any, any\]"):
        kernels.route(np.zeros(3, np.float32), 1)
