"""Integer tensors: known numbers of rounding and of cross-entropy, exact products."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.core.errors import UserError
from haversack.train._niti import (
    LOG2_E,
    F,
    Integers,
    log2_fixed,
    logit_error,
    loss_bits,
    product_type,
    pseudo_rounded,
    quantized,
    renormalized,
    sign_of,
)


def test_the_constant_is_log2_of_e():
    assert pytest.approx(1.442688, abs=1e-6) == LOG2_E / 2**15
    assert abs(LOG2_E / 2**15 - np.log2(np.e)) < 1e-5


def test_rounding_of_the_known_patterns():
    assert pseudo_rounded(np.array([0b0110_1011, 0b0110_1101], np.int32), 4).tolist() == [6, 7]
    assert pseudo_rounded(-np.array([0b0110_1011, 0b0110_1101], np.int32), 4).tolist() == [-6, -7]


def test_mean_error_with_four_bits_dropped():
    numbers = np.arange(96, 112, dtype=np.int32)
    errors = pseudo_rounded(numbers, 4) - numbers / 16
    assert errors.mean() == -3 / 32
    for upper in range(4):  # up with probability upper / 4
        assert (pseudo_rounded(numbers, 4) == 7)[4 * upper : 4 * upper + 4].mean() == upper / 4


@given(st.integers(-(2**30), 2**30), st.integers(0, 24))
@settings(max_examples=300, deadline=None)
def test_rounding_is_to_a_neighbour(number, dropped):
    found = int(pseudo_rounded(np.array([number], np.int32), dropped)[0])
    assert abs(found - number / 2**dropped) < 1
    assert int(pseudo_rounded(np.array([-number], np.int32), dropped)[0]) == -found


@given(st.lists(st.integers(-(2**24), 2**24), min_size=1, max_size=50), st.integers(1, 7))
@settings(max_examples=100, deadline=None)
def test_renormalized_sums_fit_and_stay_close(values, bits):
    sums, out = np.array(values, np.int32), np.empty(len(values), np.int8)
    dropped = renormalized(sums, out, bits)
    assert np.abs(out.astype(int)).max() <= 2**bits - 1
    assert np.abs(out * 2.0**dropped - sums).max() <= 2**dropped
    assert dropped == 0 or np.abs(sums).max() >= 2 ** (bits + dropped - 1)


def test_quantized_once():
    values = np.random.default_rng(0).uniform(-0.3, 0.3, (20, 30)).astype(np.float32)
    found = quantized(values)
    assert found.mantissas.dtype == np.int8 and 63 < np.abs(found.mantissas).max() <= 127
    assert np.abs(found.values - values).max() <= 2.0**found.exponent / 2
    assert quantized(np.zeros(3)).mantissas.tolist() == [0, 0, 0]


@pytest.mark.parametrize(("length", "kind"), [(784, np.float32), (1040, np.float32), (1041, np.float64)])
def test_products_are_exact_up_to_the_stated_length(length, kind):
    assert product_type(length) is kind
    rng = np.random.default_rng(0)
    rows = np.concatenate(
        [np.full((2, length), 127), -np.full((1, length), 127), rng.integers(-127, 128, (20, length))]
    )
    want = rows @ rows.T
    assert np.array_equal(rows.astype(kind) @ rows.T.astype(kind), want)


def test_cross_entropy_of_the_known_logits():
    logits = Integers(np.array([[2, 1, 0]], np.int8), 0)
    whole = [loss_bits(logits, np.array([label]), fraction=0) / 2**F for label in range(3)]
    assert abs(whole[0] - 0.588) < 0.35 and whole[0] < whole[1] < whole[2]
    fine = [loss_bits(logits, np.array([label])) / 2**F for label in range(3)]
    for label, loss in enumerate(fine):
        want = -np.log2(np.exp(2.0 - label) / np.exp([2.0, 1.0, 0.0]).sum())
        assert loss == pytest.approx(want, abs=0.05)


@given(st.integers(1, 2**40))
@settings(max_examples=300, deadline=None)
def test_logarithm_of_whole_numbers(number):
    found = log2_fixed(np.array([number], np.int64))[0] / 2**F
    assert found == pytest.approx(np.log2(number), abs=1e-3)


@given(st.integers(0, 10**6), st.integers(-7, 0))
@settings(max_examples=60, deadline=None)
def test_cross_entropy_and_its_error_follow_the_floats(seed, exponent):
    rng = np.random.default_rng(seed)
    logits = Integers(rng.integers(-127, 128, (8, 10)).astype(np.int8), exponent)
    labels = rng.integers(0, 10, 8)
    values = logits.values.astype(np.float64)
    total = np.exp(values - values.max(axis=1, keepdims=True))
    share = total / total.sum(axis=1, keepdims=True)
    picked = values[np.arange(8), labels] - values.max(axis=1) - np.log(total.sum(axis=1))
    want = -picked.sum() / np.log(2)
    assert loss_bits(logits, labels) / 2**F == pytest.approx(want, rel=2e-4, abs=0.5)
    error = np.empty((8, 10), np.int8)
    logit_error(logits, labels, error)
    share[np.arange(8), labels] -= 1
    assert np.abs(error - 127 * share).max() < 5


def test_losses_compare_across_exponents():
    same = Integers(np.array([[40, 8]], np.int8), -3), Integers(np.array([[80, 16]], np.int8), -4)
    labels = np.array([1])
    assert sign_of(*(loss_bits(each, labels) for each in same)) == 0
    assert sign_of(5, 3) == 1 and sign_of(3, 5) == -1


@pytest.mark.parametrize(
    ("logits", "labels", "field"),
    [
        (Integers(np.zeros((1, 3), np.int8), 21), [0], "logits"),
        (Integers(np.zeros((1, 3), np.int8), -65), [0], "logits"),
        (Integers(np.zeros((1, 3), np.int8), 0), [3], "labels"),
        (Integers(np.zeros((1, 3), np.int8), 0), [-1], "labels"),
        (Integers(np.zeros((1, 3), np.float32), 0), [0], "logits"),  # type: ignore[arg-type]
    ],
)
def test_what_integers_cannot_hold_is_refused(logits, labels, field):
    with pytest.raises(UserError) as error:
        loss_bits(logits, np.array(labels))
    assert error.value.field == field
