"""The numeric checks of the specifications of systems 16 and 08: the same layer, the same figures."""

import numpy as np
import pytest

from haversack.models._fake_quant import affine_grid, extent, fake_quantized
from haversack.shrink.precision.awq import searched_scales
from haversack.shrink.precision.gptq import Feedback, round_columns
from haversack.shrink.precision.smoothquant import smoothing_scales


@pytest.fixture(scope="module")
def layer():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(512, 16)) @ (np.eye(16) + 0.5 * rng.normal(size=(16, 16)))
    x[:, 3] *= 20
    x[:, 11] *= 8
    return x, rng.normal(size=(8, 16))


def error(x, weight, found, inputs=None):
    exact = x @ weight.T
    return np.square(exact - (x if inputs is None else inputs) @ found.T).sum() / np.square(exact).sum()


def by_gptq(x, weight, bits, order):
    """Through the method's own factor and recursion; affine rows are limits of codes that differ by row."""
    feedback = Feedback.of(2 / len(x) * x.T @ x, 0.01, order)
    places = np.arange(16) if feedback.order is None else feedback.order
    rows = affine_grid(*extent(weight), bits)
    scales, zeros = rows.scale[:, 0], rows.zero[:, 0]
    columns = np.ascontiguousarray(weight[:, places].T)
    limits = rows.low - zeros, rows.high - zeros
    codes, _ = round_columns(columns, columns.copy(), scales, feedback.unit_upper, limits)
    found = np.empty_like(weight)
    found[:, places] = (codes * scales).T
    return found


@pytest.mark.parametrize(
    ("bits", "plain", "given", "ordered", "scaled", "ratio"),
    [(3, 0.038485, 0.012573, 0.008633, 0.006201, 0.60), (4, 0.008065, 0.003882, 0.002815, 0.001713, 0.45)],
)
def test_weights_alone(layer, bits, plain, given, ordered, scaled, ratio):
    x, weight = layer
    assert error(x, weight, fake_quantized(weight, bits)) == pytest.approx(plain, abs=5e-7)
    assert error(x, weight, by_gptq(x, weight, bits, "given")) == pytest.approx(given, abs=5e-7)
    assert error(x, weight, by_gptq(x, weight, bits, "activation")) == pytest.approx(ordered, abs=5e-7)

    def by_awq(scales):
        return error(x, weight, fake_quantized(weight * scales, bits) / scales)

    scales, chosen = searched_scales(np.abs(x).mean(axis=0), by_awq)
    assert by_awq(scales) == pytest.approx(scaled, abs=5e-7)
    assert chosen == ratio


def test_static_weights_and_activations(layer):
    """8 bits each, one symmetric scale for the whole tensor."""
    x, weight = layer

    def lost(scales):
        inputs = fake_quantized(x / scales, 8, symmetric=True, axis=None)
        return error(x, weight, fake_quantized(weight * scales, 8, symmetric=True, axis=None), inputs)

    scales = smoothing_scales(np.abs(x).max(axis=0), np.abs(weight).max(axis=0), 0.5)
    assert lost(np.ones(16)) == pytest.approx(1.5764e-3, abs=5e-8)
    assert lost(scales) == pytest.approx(1.2507e-4, abs=5e-9)
