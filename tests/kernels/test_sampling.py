"""Filters keep exactly what their definitions keep; draws follow the distribution and the seed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack import kernels
from haversack.core.errors import UserError
from haversack.kernels.sampling import (
    draw_twin,
    filter_logits_twin,
    greedy_twin,
    log_probability_twin,
    scaled,
    uniform,
)


def random_logits(rng, vocabulary, size, ties):
    logits = (rng.standard_normal(vocabulary) * size).astype(np.float32)
    if ties:
        logits = np.round(logits * 2) / 2
    logits[rng.random(vocabulary) < 0.1] = -np.inf
    logits[rng.integers(vocabulary)] = 0.0
    return logits


@settings(max_examples=200, deadline=None)
@given(
    vocabulary=st.integers(1, 3000),
    size=st.sampled_from([0.5, 3.0, 30.0]),
    ties=st.booleans(),
    temperature=st.sampled_from([0.1, 0.7, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 3, 40, 5000]),
    top_p=st.sampled_from([1.0, 0.9031, 0.5017, 0.0113]),
    min_p=st.sampled_from([0.0, 0.05, 1.0]),
    penalty=st.sampled_from([1.0, 1.3, 0.8]),
    seen=st.integers(0, 60),
    seed=st.integers(0, 2**32 - 1),
)
def test_filters_keep_what_the_definition_keeps(
    vocabulary, size, ties, temperature, top_k, top_p, min_p, penalty, seen, seed
):
    rng = np.random.default_rng(seed)
    logits = random_logits(rng, vocabulary, size, ties)
    history = rng.integers(0, vocabulary, seen).astype(np.int32)
    expected = filter_logits_twin(logits, temperature, top_k, top_p, min_p, penalty, history)
    got = kernels.filter_logits(
        logits,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=penalty,
        history=history,
    )
    different = got != expected
    if different.any():
        # Only a token at which the sum of probabilities meets top_p to within a rounding may differ.
        scores = scaled(logits, temperature, penalty, history).astype(np.float64)
        order = np.argsort(-scores, kind="stable")[: top_k or None]
        weights = np.exp(scores[order] - scores[order[0]])
        before = np.cumsum(weights) - weights
        at_the_edge = order[np.abs(before / weights.sum() - top_p) < 3e-7]
        assert set(np.flatnonzero(different)) <= set(at_the_edge)
    assert np.isfinite(got).any()


def test_filters_by_hand():
    logits = np.log(np.array([0.1, 0.4, 0.05, 0.25, 0.2], np.float32))

    def kept(**filters):
        return np.flatnonzero(np.isfinite(kernels.filter_logits(logits, **filters))).tolist()

    assert kept(top_k=2) == [1, 3]
    assert kept(top_p=0.6) == [1, 3]
    assert kept(top_p=0.7) == [1, 3, 4]
    assert kept(min_p=0.45) == [1, 3, 4]
    assert kept(top_p=0.89) == [0, 1, 3, 4]
    assert kept(top_k=4, top_p=0.89) == [1, 3, 4]  # of the four kept, three hold 0.85 / 0.95
    assert kept(top_p=1e-9) == [1]
    assert kept() == [0, 1, 2, 3, 4]
    equal = np.zeros(7, np.float32)
    assert np.flatnonzero(np.isfinite(kernels.filter_logits(equal, top_k=3))).tolist() == [0, 1, 2]
    assert np.flatnonzero(np.isfinite(kernels.filter_logits(equal, top_p=0.5))).tolist() == [0, 1, 2, 3]


def test_the_penalty_counts_a_token_once_and_lowers_both_signs():
    logits = np.array([2.0, -2.0, 1.0], np.float32)
    history = np.array([0, 1, 0, 0], np.int32)
    got = kernels.filter_logits(logits, repetition_penalty=2.0, history=history)
    assert got.tolist() == [1.0, -4.0, 1.0]
    assert kernels.filter_logits(logits, repetition_penalty=2.0, history=history, out=logits) is logits
    assert logits.tolist() == [1.0, -4.0, 1.0]


@settings(max_examples=100, deadline=None)
@given(vocabulary=st.integers(1, 500), ties=st.booleans(), seed=st.integers(0, 2**32 - 1))
def test_greedy_takes_the_first_largest(vocabulary, ties, seed):
    logits = random_logits(np.random.default_rng(seed), vocabulary, 2.0, ties)
    assert kernels.greedy(logits) == greedy_twin(logits)
    token, log_probability = kernels.sample(logits, temperature=0)
    assert token == greedy_twin(logits)
    assert math.isclose(log_probability, log_probability_twin(logits, token), rel_tol=1e-5, abs_tol=1e-5)


def test_greedy_after_a_penalty():
    logits = np.array([3.0, 2.9, -1.0], np.float32)
    assert (
        kernels.sample(logits, temperature=0, repetition_penalty=1.5, history=np.array([0], np.int32))[0] == 1
    )


def test_native_and_twin_draw_the_same_tokens():
    rng = np.random.default_rng(1)
    filters = {"temperature": 0.9, "top_k": 200, "top_p": 0.95}
    for vocabulary in (5, 1000, 1024, 5000):
        logits = random_logits(rng, vocabulary, 2.0, ties=False)
        scores = filter_logits_twin(logits, 0.9, 200, 0.95)
        sums = np.cumsum(np.exp(scores.astype(np.float64) - scores.max()))
        for step in range(300):
            token, log_probability = kernels.sample(logits, **filters, seed=42, step=step)
            number = uniform(42, step)
            expected = draw_twin(scores, number)
            assert token == expected or np.abs(sums / sums[-1] - number).min() < 1e-6
            assert math.isclose(log_probability, log_probability_twin(logits, token), abs_tol=2e-5)


@pytest.mark.parametrize(
    "filters", [{}, {"temperature": 0.7}, {"top_k": 9}, {"top_p": 0.8}, {"min_p": 0.1, "temperature": 1.4}]
)
def test_draws_follow_the_distribution(filters):
    """Pearson's chi-square over 20,000 draws, against the 99.99th percentile."""
    logits = random_logits(np.random.default_rng(2), 40, 1.5, ties=False)
    scores = filter_logits_twin(logits, **filters)
    expected = np.exp(scores.astype(np.float64))
    expected *= 20_000 / expected.sum()
    drawn = [kernels.sample(logits, **filters, seed=7, step=step)[0] for step in range(20_000)]
    counts = np.bincount(drawn, minlength=40)
    assert not counts[expected == 0].any()
    many = expected >= 5
    chi_square = float(((counts - expected)[many] ** 2 / expected[many]).sum())
    freedom = int(many.sum()) - 1
    # Wilson and Hilferty's approximation of the percentile.
    limit = freedom * (1 - 2 / (9 * freedom) + 3.72 * math.sqrt(2 / (9 * freedom))) ** 3
    assert freedom >= 4 and chi_square < limit


def test_random_numbers_are_uniform_and_independent_of_each_other():
    numbers = np.array([[uniform(seed, step) for step in range(500)] for seed in range(40)])
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 50
    assert len(np.unique(numbers)) == numbers.size
    centred = numbers - 0.5
    for pairs in (centred[:, 1:] * centred[:, :-1], centred[1:] * centred[:-1]):
        assert abs(pairs.mean()) < 5 / 12 / math.sqrt(pairs.size)
    assert uniform(0, 0) == uniform(2**64, 0) != uniform(1, 0)


def test_a_seed_repeats_and_seeds_differ():
    logits = np.zeros(1000, np.float32)
    runs = [[kernels.sample(logits, seed=seed, step=i)[0] for i in range(20)] for seed in (1, 1, 2, -1)]
    assert runs[0] == runs[1] != runs[2] and runs[3] not in runs[:3]


def test_known_numbers_of_the_generator():
    """Frozen: a changed generator would change every seeded text."""
    assert [uniform(0, 0), uniform(42, 7)] == [0.6524484863740322, 0.7347204584623639]


@pytest.mark.parametrize("op", [kernels.greedy, kernels.sample, kernels.filter_logits])
@pytest.mark.parametrize("size", [1, 16, 50])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_without_probabilities_are_refused(op, size, bad):
    logits = np.zeros(size, np.float32)
    logits[:] = bad if bad == -np.inf else 0
    logits[size // 2] = bad
    with pytest.raises(UserError, match="NaN, infinity, or no finite"):
        op(logits)


def test_extreme_logits_are_served():
    logits = np.array([3e38, -3e38, -np.inf, 2.9e38], np.float32)
    assert kernels.sample(logits, seed=3) == (0, 0.0)
    assert kernels.greedy(-logits[:2]) == 1
    with pytest.raises(UserError, match="scores after penalty and temperature"):
        kernels.sample(logits, temperature=0.1)
    with pytest.raises(UserError, match="scores after penalty and temperature"):
        kernels.filter_logits(logits, temperature=0.1)


L = np.zeros(4, np.float32)


@pytest.mark.parametrize(
    ("filters", "words"),
    [
        ({"temperature": -1.0}, "temperature=-1 is not supported"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"temperature": math.inf}, "temperature=inf"),
        ({"top_k": -1}, "top_k=-1"),
        ({"top_p": 0.0}, "top_p=0 is not supported .must be above 0"),
        ({"top_p": 1.1}, "top_p=1.1"),
        ({"min_p": 1.5}, "min_p=1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0"),
        ({"history": np.array([4], np.int32)}, "history holds tokens outside 0..3"),
        ({"history": np.array([-1], np.int32)}, "history holds tokens outside 0..3"),
        ({"history": np.array([1])}, r"history must be i32\[any\], got i64\[1\]"),
    ],
)
def test_parameters_out_of_range_are_refused_in_words(filters, words):
    for op in (kernels.sample, kernels.filter_logits):
        with pytest.raises(UserError, match=words):
            op(L, **filters)
    with pytest.raises(UserError, match="temperature=0"):
        kernels.filter_logits(L, temperature=0.0)
    with pytest.raises(UserError, match=r"logits must be f32\[any\], got f64\[4\]"):
        kernels.greedy(L.astype(np.float64))
