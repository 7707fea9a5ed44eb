"""GPTQ against its definition: the published recursion on the inverse, and the loss it promises to lower."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.shrink._precision import HessianSum, InputStatistics
from haversack.shrink._rounding import levels, restored
from haversack.shrink.precision.gptq import Feedback, Gptq, damped, gptq, row_losses, upper_factor
from haversack.shrink.precision.round_to_nearest import round_to_nearest

SHAPES = [(4, 32), (4, 64), (8, None)]
DAMPING = 0.01


def layer(seed, rows, columns, tokens=None):
    """Correlated inputs with a few large channels, as transformers have, and weights with heavy tails."""
    rng = np.random.default_rng(seed)
    tokens = tokens or 3 * columns
    shared = rng.normal(size=(tokens, max(1, columns // 4))) @ rng.normal(
        size=(max(1, columns // 4), columns)
    )
    x = (0.5 * shared + rng.normal(size=(tokens, columns))) * np.exp(rng.normal(size=columns))
    total = HessianSum(columns)
    total.add(x.astype(np.float32))
    return rng.standard_t(5, size=(rows, columns)).astype(np.float32), total.finish().hessian


def loss(weight, found, hessian):
    error = (weight - found).astype(np.float64)
    return np.einsum("rk,kl,rl->r", error, hessian, error)


def published_recursion(weight, hessian, scales, bits, group):
    """The paper's algorithm without its speed-ups: after each column, invert what is left and spread the
    error.
    """
    work = weight.astype(np.float64)
    found = np.zeros_like(work)
    for k in range(work.shape[1]):
        inverse = np.linalg.inv(hessian[k:, k:])
        scale = scales[:, k // group]
        found[:, k] = np.clip(np.rint(work[:, k] / scale), *levels(bits)) * scale
        work[:, k:] -= ((work[:, k] - found[:, k]) / inverse[0, 0])[:, None] * inverse[0]
    return found


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.sampled_from(SHAPES))
def test_equals_the_published_recursion(seed, columns, kind):
    bits, group = kind
    weight, hessian = layer(seed, 6, columns)
    feedback = Feedback.of(hessian.copy(), DAMPING, "given")
    # Where plain rounding of a whole row loses less, it is kept; those rows are not the recursion's.
    codes, scales = gptq(weight, feedback, bits, group, "largest")
    expected = published_recursion(weight, damped(hessian, DAMPING), scales, bits, group or columns)
    plain = round_to_nearest(weight, bits, group, "largest")[0]
    spread = (codes != plain).any(axis=1)
    difference = np.abs(restored(codes, scales, group) - expected).max(axis=1)
    # A value within rounding error of the middle of two levels may go either way, and all after it follow.
    assert (difference[spread] <= 1e-4 * np.abs(weight).max()).mean() >= 0.8 if spread.any() else True


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 8),
    st.integers(1, 150),
    st.sampled_from(SHAPES),
    st.sampled_from(["largest", "leaning", "searched"]),
    st.sampled_from(["given", "activation"]),
)
def test_no_row_ever_loses_more_than_by_plain_rounding(seed, rows, columns, kind, choice, order):
    bits, group = kind
    weight, hessian = layer(seed, rows, columns)
    found = gptq(weight, Feedback.of(hessian.copy(), DAMPING, order), bits, group, choice)
    assert found[0].min() >= levels(bits)[0] and found[0].max() <= levels(bits)[1]
    hessian = damped(hessian, DAMPING)
    plain = restored(*round_to_nearest(weight, bits, group, choice), group)
    ours, theirs = loss(weight, restored(*found, group), hessian), loss(weight, plain, hessian)
    assert (ours <= theirs * (1 + 1e-3) + 1e-9).all()


@pytest.mark.parametrize("order", ["given", "activation"])
@pytest.mark.parametrize(("bits", "group"), SHAPES)
def test_loses_less_than_half_of_what_plain_rounding_loses_on_correlated_inputs(bits, group, order):
    weight, hessian = layer(7, 48, 256)
    found = restored(
        *gptq(weight, Feedback.of(hessian.copy(), DAMPING, order), bits, group, "searched"), group
    )
    plain = restored(*round_to_nearest(weight, bits, group, "searched"), group)
    assert loss(weight, found, hessian).sum() < 0.5 * loss(weight, plain, hessian).sum()


def test_finds_what_exhaustive_search_finds_on_four_weights():
    """Codes of one row by brute force over all 16^4: greedy spreading stays within a few percent of the
    optimum.
    """
    ratios = []
    for seed in range(8):
        weight, hessian = layer(seed, 1, 4, tokens=64)
        codes, scales = gptq(weight, Feedback.of(hessian.copy(), 0.001, "given"), 4, 32, "largest")
        grid = np.stack(np.meshgrid(*[np.arange(-8, 8)] * 4), axis=-1).reshape(-1, 4)
        error = weight.astype(np.float64) - grid * float(scales[0, 0])
        best = np.einsum("rk,kl,rl->r", error, hessian, error).min()
        ratios.append(loss(weight, restored(codes, scales, 32), hessian)[0] / best)
    assert min(ratios) >= 1 - 1e-6
    assert np.median(ratios) < 1.25


def test_searching_scales_with_spreading_beats_the_largest_magnitude():
    weight, hessian = layer(3, 64, 256)
    losses = [
        loss(
            weight,
            restored(*gptq(weight, Feedback.of(hessian.copy(), DAMPING, "given"), 4, 64, choice), 64),
            hessian,
        )
        for choice in ("largest", "searched")
    ]
    assert losses[1].sum() < 0.8 * losses[0].sum()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 300))
def test_the_factor_multiplies_back(seed, size):
    root = np.random.default_rng(seed).normal(size=(size, size + 8))
    matrix = root @ root.T
    factor = upper_factor(matrix.copy())
    assert not np.tril(factor, -1).any()
    assert np.allclose(factor @ factor.T, matrix, rtol=1e-9, atol=1e-9 * np.abs(matrix).max())


def test_losses_of_rows_are_the_quadratic_form():
    weight, hessian = layer(11, 5, 200)
    codes, scales = round_to_nearest(weight, 4, 64, "largest")
    for order in ("given", "activation"):
        feedback = Feedback.of(hessian.copy(), DAMPING, order)
        expected = loss(weight, restored(codes, scales, 64), damped(hessian.copy(), DAMPING))
        assert np.allclose(row_losses(weight, codes, scales, 64, feedback), expected, rtol=1e-3)


def test_inputs_never_seen_are_rounded_plainly():
    weight, hessian = layer(5, 4, 64)
    hessian[10, :] = hessian[:, 10] = 0.0
    codes, scales = gptq(weight, Feedback.of(hessian.copy(), DAMPING, "given"), 8, None, "largest")
    assert np.array_equal(codes[:, 10], np.rint(weight[:, 10] / scales[:, 0]).astype(np.int8))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 600), st.lists(st.integers(1, 40), min_size=1, max_size=4))
def test_the_hessian_does_not_depend_on_how_tokens_are_batched(seed, columns, batches):
    rng = np.random.default_rng(seed)
    parts = [rng.normal(size=(count, columns)).astype(np.float32) for count in batches]
    total = HessianSum(columns)
    for part in parts:
        total.add(part)
    x = np.concatenate(parts).astype(np.float64)
    statistics = total.finish()
    assert statistics.tokens == len(x)
    assert np.allclose(statistics.hessian, x.T @ x / len(x), rtol=1e-3, atol=1e-4)
    assert np.array_equal(statistics.hessian, statistics.hessian.T)


def test_the_method_quantizes_matrices_that_share_an_input_alike():
    weight, hessian = layer(13, 12, 96)
    method = Gptq(bits=4, group=32)
    together = method.quantize({"a": weight[:5], "b": weight[5:]}, InputStatistics(288, hessian.copy()))
    alone = method.quantize({"all": weight}, InputStatistics(288, hessian.copy()))["all"]
    assert np.array_equal(np.concatenate([together["a"].codes, together["b"].codes]), alone.codes)
