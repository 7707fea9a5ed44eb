"""SpQR against its definition: the published recursion on the inverse, leaving one out by hand, its bytes."""

import numpy as np
import pytest
from tests.shrink.test_gptq import layer, loss

from haversack.core.errors import UserError
from haversack.shrink._precision import InputStatistics
from haversack.shrink._rounding import levels, restored
from haversack.shrink.precision.gptq import Feedback, gptq
from haversack.shrink.precision.round_to_nearest import round_to_nearest
from haversack.shrink.precision.spqr import (
    Sparse,
    Spqr,
    WithOutliers,
    as_f16,
    group_order,
    round_or_keep,
    spqr,
    threshold_of,
    without_extremes,
)


def numbers(codes, scales, sparse, group):
    """The matrix that codes, scales and outliers stand for."""
    found = restored(codes, scales, group)
    rows = np.repeat(np.arange(len(codes)), np.diff(sparse.starts))
    assert (found[rows, sparse.columns] == 0).all(), "an outlier's place in the packed part holds 0"
    found[rows, sparse.columns] = as_f16(sparse.values)
    return found


def published_sweep(weight, hessian, scales, limit, bits):
    """The paper's loop, in double precision: rows of a Cholesky factor of the inverse, errors over its
    diagonal, and a weight kept where the square of that exceeds the limit."""
    low, high = levels(bits)
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    work = weight.astype(np.float64)
    found, kept = np.zeros_like(work), np.zeros(work.shape, bool)
    for j in range(work.shape[1]):
        value = np.clip(np.rint(work[:, j] / scales), low, high) * scales
        kept[:, j] = ((work[:, j] - value) / upper[j, j]) ** 2 > limit
        found[:, j] = np.where(kept[:, j], as_f16(work[:, j].astype(np.float32)), value)
        work[:, j:] -= np.outer((work[:, j] - found[:, j]) / upper[j, j], upper[j, j:])
    return found, kept


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_sweep_is_the_published_one(seed):
    weight, hessian = layer(seed, 24, 32)
    hessian[np.diag_indices(32)] += 0.1 * np.trace(hessian) / 32
    feedback = Feedback.of(hessian.copy(), 1e-9, "given")
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    limit = threshold_of(weight.T, feedback.cost, 0.2)
    assert limit == pytest.approx(0.2 * np.mean(weight.var(axis=0) / np.diagonal(upper) ** 2), rel=1e-4)
    scales = (np.abs(weight).max(axis=1) / 6).astype(np.float32)
    expected, outliers = published_sweep(weight, hessian, scales, limit, 3)
    part = feedback.unit_upper.astype(np.float32), feedback.cost
    codes, kept, values = round_or_keep(weight.T, weight.T.copy(), scales, part, 3, limit)
    assert outliers.any() and not outliers.all()
    # In f32 a weight may fall on the other side of a step or of the limit, and its row then goes another way.
    same = np.isclose(values.T, expected, atol=1e-3).all(axis=1) & (outliers == kept.T).all(axis=1)
    assert same.mean() >= 0.9
    assert (codes[kept] == 0).all()


def left_out_by_hand(values, cost, bits):
    """(place, gain) of the weight without which rounding the others loses least."""
    low, high = levels(bits)

    def lost(some, weigh):
        scale = np.float32(np.float16(some[np.abs(some).argmax()] / low))
        return (np.square(some - np.clip(np.rint(some / scale), low, high) * scale) * weigh).sum()

    whole = lost(values, cost)
    gains = [whole - lost(np.delete(values, i), np.delete(cost, i)) for i in range(len(values))]
    return int(np.argmax(gains)), max(gains)


@pytest.mark.parametrize("seed", range(6))
def test_the_weight_left_out_of_a_range_is_the_one_that_gains_most(seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=32).astype(np.float32)
    values[rng.integers(32)] = 9.0
    cost = (0.5 + rng.random(32)).astype(np.float32)
    place, gain = left_out_by_hand(values, cost, 3)
    assert values[place] == 9.0 and gain > 0
    fitted = without_extremes(values[:, None], cost, 3, 0.99 * gain)[:, 0]
    assert np.flatnonzero(fitted != values).tolist() == [place]
    assert fitted[place] == pytest.approx(np.delete(values, place).mean(), rel=1e-5)
    assert np.array_equal(without_extremes(values[:, None], cost, 3, 1.01 * gain)[:, 0], values)


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("order", ["given", "activation"])
def test_loses_less_than_gptq_in_the_same_groups(bits, group, order):
    weight, hessian = layer(5, 48, 200)
    feedback = Feedback.of(hessian.copy(), 0.01, "given")
    plain = restored(*gptq(weight, feedback, bits, group, "searched"), group)
    blocks = group_order(np.diagonal(hessian), group, order)
    places = np.concatenate(blocks)
    own = Feedback.of(hessian[np.ix_(places, places)], 0.01, "given")
    losses, shares = [], []
    for threshold in (0.8, 0.2, 0.05):
        codes, scales, sparse = spqr(weight, own, blocks, bits, group, threshold)
        losses.append(loss(weight, numbers(codes, scales, sparse, group), hessian).sum())
        shares.append(len(sparse.values) / weight.size)
    assert losses[1] < 0.8 * loss(weight, plain, hessian).sum()
    assert losses[0] > losses[1] > losses[2] and shares[0] < shares[1] < shares[2] < 0.2


def test_groups_stay_together_and_the_order_is_by_inputs():
    diagonal = np.array([1.0, 9, 2, 3, 8, 8, 8, 9, 30, 1])
    assert [own.tolist() for own in group_order(diagonal, 4, "given")] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [own.tolist() for own in group_order(diagonal, 4, "activation")] == [
        [8, 9],
        [7, 4, 5, 6],
        [1, 3, 2, 0],
    ]


def test_an_outlier_counts_32_bits():
    weight, hessian = layer(6, 64, 128)
    found = Spqr().quantize({"a": weight}, InputStatistics(384, hessian))["a"]
    assert isinstance(found, WithOutliers)
    parts = found.parts()
    count = len(found.sparse.values)
    assert found.form == {"form": "sparse-outliers", "outliers": count}
    assert parts["columns"].nbytes + parts["values"].packed().nbytes == 4 * count
    stored = Spqr().stored_as("a", 64, 128)
    assert stored.nbytes(64, 128) - stored.base.nbytes(64, 128) == 4 * round(0.022 * 64 * 128) + 4 * 65


def test_a_layer_without_outliers_is_an_ordinary_matrix():
    weight, hessian = np.zeros((16, 32), np.float32), np.eye(32)
    weight[:, 0] = 0.5
    found = Spqr().quantize({"a": weight}, InputStatistics(32, hessian))["a"]
    assert not isinstance(found, WithOutliers) and found.kind.kind == "int3"


def test_sparse_rows_come_in_order():
    kept = np.array([[0, 1, 0], [0, 0, 0], [1, 0, 1]], bool)
    sparse = Sparse.of(kept, np.arange(9, dtype=np.float32).reshape(3, 3))
    assert sparse.starts.tolist() == [0, 1, 1, 3]
    assert sparse.columns.tolist() == [1, 0, 2] and sparse.values.tolist() == [1, 6, 8]


def published_groups(weight):
    """Groups of 16 with a scale and a zero, both 3-bit codes in groups of 16: 3.6 bits a weight."""
    rows, columns = weight.shape
    groups = weight.reshape(rows, columns // 16, 16)
    low = np.minimum(groups.min(axis=-1), 0)
    step = (np.maximum(groups.max(axis=-1), 0) - low) / 7
    zero = np.rint(-low / step)

    def coarse(numbers):
        wide = numbers.reshape(rows, -1, 16)
        low = wide.min(axis=-1, keepdims=True)
        step = (wide.max(axis=-1, keepdims=True) - low) / 7
        return (np.rint((wide - low) / step) * step + low).reshape(rows, -1, 1)

    step, zero = coarse(step), coarse(zero)
    return ((np.clip(np.rint(groups / step + zero), 0, 7) - zero) * step).reshape(rows, columns)


def test_the_published_groups_round_better_by_what_their_bits_are_worth():
    """An eighth of a bit more, a sixth of the squared error less: as much as 6 dB a bit give."""
    weight = np.random.default_rng(8).standard_normal((128, 1024)).astype(np.float32)
    ours = restored(*round_to_nearest(weight, 3, 32, "searched"), 32)
    theirs, mine = (np.square(found - weight).sum() for found in (published_groups(weight), ours))
    assert 0.75 < theirs / mine < 0.95


class Wide:
    """A model of one block, whose second matrix has more inputs than 16 bits can name."""

    blocks = 1

    def products(self, block):
        return [("narrow",), ("wide",)]

    def shape(self, name):
        return (8, 65536 if name == "narrow" else 65537)


def test_inputs_that_16_bits_cannot_name_are_refused():
    assert Spqr().refused(Wide()) == {"wide": "65537 inputs, of 65536 at most"}


@pytest.mark.parametrize(
    "choice", [{"bits": 2}, {"bits": 8}, {"group": 16}, {"group": 48}, {"threshold": -1.0}]
)
def test_what_is_not_supported_is_refused(choice):
    with pytest.raises(UserError, match="is not supported"):
        Spqr(**choice)
