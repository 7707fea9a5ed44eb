"""QUIK: the inputs kept are the largest, their weights the optimum beside the rest, and int8 inputs gain."""

import numpy as np
import pytest
from tests.shrink.test_gptq import layer

from haversack.core.errors import UserError
from haversack.kernels import matmul
from haversack.models._observers import ChannelMoments
from haversack.run._forms import bound
from haversack.shrink._precision import InputStatistics
from haversack.shrink._rounding import restored
from haversack.shrink.precision.gptq import Gptq, damped
from haversack.shrink.precision.quik import Quik, QuikFor, Split, kept_count, kept_last, largest_inputs, quik


def bind(found, shape):
    """What a pack's parts multiply as."""
    tensors = {
        f"a.{part}": value if isinstance(value, np.ndarray) else value.packed()
        for part, value in found.parts().items()
    }
    return bound("a", {**found.form, "shape": list(shape)}, tensors)


def seen(x):
    ranges = ChannelMoments(x.shape[1])
    ranges.add(x)
    return InputStatistics(len(x), (x.T.astype(np.float64) @ x) / len(x), None, ranges)


def spiked(seed, columns=288, tokens=900):
    """Inputs of which five are forty times as large as the others, as in transformers."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, columns)).astype(np.float32)
    x[:, rng.choice(columns, 5, replace=False)] *= 40
    return x, (rng.standard_t(5, (64, columns)) * 0.05).astype(np.float32)


def test_kept_inputs_are_the_largest_in_whole_32s():
    peaks = np.array([3.0, 9, 1, 9, 7], np.float32)
    assert largest_inputs(peaks, 2).tolist() == [1, 3] and largest_inputs(peaks, 3).tolist() == [1, 3, 4]
    assert [kept_count(n, 0.06) for n in (2, 8, 100, 288, 768, 4096)] == [1, 1, 6, 32, 64, 256]


@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, 32)])
def test_kept_weights_are_the_optimum_beside_the_rounded_rest(bits, group):
    """Given the rest as rounded, floats F minimise the loss in closed form: F = W_k + E H_rk H_kk^-1."""
    weight, hessian = layer(3, 16, 96)
    kept = largest_inputs(np.diagonal(hessian).astype(np.float32), 10)
    feedback, order = kept_last(hessian, kept, 0.01)
    codes, scales, floats = quik(weight, feedback, order, 10, bits, group)
    true = damped(hessian[np.ix_(order, order)].copy(), 0.01)
    missed = weight[:, order[:86]] - restored(codes, scales, group)
    best = weight[:, kept] + missed @ true[:86, 86:] @ np.linalg.inv(true[86:, 86:])
    assert np.array_equal(order[86:], kept)
    assert np.abs(floats - best).max() < 2e-3 * np.abs(best).max()


@pytest.mark.parametrize("bits", [8, 4])
def test_int8_inputs_lose_less_than_with_gptq(bits):
    x, weight = spiked(1)
    exact = x[:64].astype(np.float64) @ weight.T.astype(np.float64)
    found = Quik(bits=bits).quantize({"a": weight}, seen(x))["a"]
    assert isinstance(found, Split)
    matrix = bind(found, weight.shape)
    ours = np.empty((64, 64), np.float32)
    matrix.multiply(x[:64], ours, activations="int8-dynamic", add=False, bias=None)
    plain = Gptq(bits=bits).quantize({"a": weight}, seen(x))["a"].packed()
    theirs = matmul(x[:64], plain, activations="int8-dynamic")
    lost, lost_by_gptq = (np.linalg.norm(each - exact) for each in (ours, theirs))
    assert lost < (0.4 if bits == 8 else 0.8) * lost_by_gptq
    peaks = np.abs(x).max(axis=0)
    assert set(np.argsort(-peaks)[:5]) <= set(found.columns.tolist())


def test_the_last_matrix_has_8_bits_and_sizes_are_exact():
    x, weight = spiked(2)
    method = QuikFor(Quik(bits=4), frozenset({"down"}))
    found = method.quantize({"up": weight, "down": weight}, seen(x))
    assert found["up"].rest.kind.kind == "int4" and found["down"].rest.kind.kind == "int8"
    for name, split in found.items():
        held = sum(
            value.nbytes if isinstance(value, np.ndarray) else value.packed().nbytes
            for value in split.parts().values()
        )
        assert held == method.stored_as(name, *weight.shape).nbytes(*weight.shape)


def test_small_inputs_need_no_floats():
    x, weight = spiked(3)
    small = x / np.abs(x).max() * 4
    assert isinstance(Quik(threshold=5.0).quantize({"a": weight}, seen(x))["a"], Split)
    assert not isinstance(Quik(threshold=5.0).quantize({"a": weight}, seen(small))["a"], Split)


def test_a_row_does_not_depend_on_the_rows_beside_it():
    x, weight = spiked(4, columns=96)
    matrix = bind(Quik().quantize({"a": weight}, seen(x))["a"], weight.shape)
    rng = np.random.default_rng(5)
    before = rng.standard_normal((20, 64)).astype(np.float32)
    bias = rng.standard_normal(64).astype(np.float32)
    whole = before.copy()
    matrix.multiply(x[:20], whole, activations="int8-dynamic", add=True, bias=bias)
    for row in range(20):
        one = before[row : row + 1].copy()
        matrix.multiply(x[row : row + 1], one, activations="int8-dynamic", add=True, bias=bias)
        assert np.array_equal(one[0], whole[row])


@pytest.mark.parametrize("choice", [{"bits": 3}, {"group": 16}, {"kept": 0.5}, {"threshold": 3.0}])
def test_what_is_not_supported_is_refused(choice):
    with pytest.raises(UserError, match="is not supported"):
        Quik(**choice)
