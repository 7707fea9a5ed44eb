"""Recurrent layers: Keras' definitions by known values, and PyTorch's layers as an independent reading."""

from __future__ import annotations

import numpy as np
import pytest

from haversack.core.errors import UserError
from haversack.models.series.activations import FUNCTIONS, activate
from haversack.models.series.recurrent import (
    Dense,
    Gru,
    Lstm,
    SimpleRnn,
    gru_step,
    lstm_step,
    parameter_count,
    scaled_inputs,
    start,
    step,
    tangent,
)


def gru(inputs: int, units: int, *, after: bool = True, seed: int = 0) -> Gru:
    rng = np.random.default_rng(seed)
    bias = rng.normal(size=(2, 3 * units) if after else 3 * units)
    return Gru(rng.normal(size=(inputs, 3 * units)), rng.normal(size=(units, 3 * units)), bias)


def test_known_values_of_activations() -> None:
    x = np.array([-2.5, 0.0, 1.0])
    np.testing.assert_allclose(activate("hard_sigmoid", x), [0, 0.5, 0.7], atol=1e-15)
    np.testing.assert_allclose(
        activate("hard_sigmoid_sixth", np.array([-3.0, 0, 3])), [0, 0.5, 1], atol=1e-15
    )
    assert np.isfinite(activate("sigmoid", np.array([-1e4, 1e4]))).all()
    assert np.isfinite(activate("softplus", np.array([-1e4, 1e4]))).all()
    assert activate("selu", np.array([-1.0]))[0] == pytest.approx(-1.1113307, abs=1e-6)
    with pytest.raises(UserError, match="relu"):
        activate("rellu", x)


@pytest.mark.parametrize("after", [True, False])
def test_a_gru_of_zero_weights_halves_its_state(after: bool) -> None:
    layer = Gru(np.zeros((3, 6)), np.zeros((2, 6)), np.zeros((2, 6) if after else 6))
    np.testing.assert_array_equal(gru_step(layer, np.ones((1, 3)), np.ones((1, 2))), [[0.5, 0.5]])


def test_parameter_counts_of_the_published_networks() -> None:
    ten = (gru(68, 10), Dense(np.zeros((10, 3)), np.zeros(3), "relu"))
    assert parameter_count(ten[:1]) == 2400 and parameter_count(ten) == 2433
    seven = (
        gru(10, 7, after=False),
        Dense(np.zeros((7, 8)), np.zeros(8)),
        Dense(np.zeros((8, 1)), np.zeros(1)),
    )
    assert [parameter_count([layer]) for layer in seven] == [378, 64, 9]


def test_gru_and_lstm_are_those_of_torch_with_gates_in_keras_order() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    x, h, c = rng.normal(size=(2, 3)), rng.normal(size=(2, 4)), rng.normal(size=(2, 4))
    layer = gru(3, 4)
    other = torch.nn.GRUCell(3, 4).double()
    order = [1, 0, 2]  # torch: r, z, n

    def turned(matrix: np.ndarray, parts: list[int]) -> object:
        return torch.from_numpy(
            np.concatenate([np.split(matrix, len(parts), axis=-1)[i].T for i in parts]).copy()
        )

    with torch.no_grad():
        for name, values in (
            ("weight_ih", layer.kernel),
            ("weight_hh", layer.recurrent),
            ("bias_ih", layer.bias[0]),
            ("bias_hh", layer.bias[1]),
        ):
            getattr(other, name).copy_(turned(values, order))
        wanted = other(torch.from_numpy(x), torch.from_numpy(h)).numpy()
    np.testing.assert_allclose(gru_step(layer, x, h), wanted, atol=1e-12)
    lstm = Lstm(rng.normal(size=(3, 16)), rng.normal(size=(4, 16)), rng.normal(size=16))
    cell = torch.nn.LSTMCell(3, 4).double()
    with torch.no_grad():
        for name, values in (
            ("weight_ih", lstm.kernel),
            ("weight_hh", lstm.recurrent),
            ("bias_ih", lstm.bias),
            ("bias_hh", 0 * lstm.bias),
        ):
            getattr(cell, name).copy_(turned(values, [0, 1, 2, 3]))
        wanted_h, wanted_c = (
            each.numpy() for each in cell(torch.from_numpy(x), tuple(map(torch.from_numpy, (h, c))))
        )
    for ours, theirs in zip(lstm_step(lstm, x, h, c), (wanted_h, wanted_c), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("after", [True, False])
def test_tangents_are_differences(after: bool) -> None:
    rng = np.random.default_rng(2)
    layers = (gru(3, 4, after=after), Dense(rng.normal(size=(4, 2)), rng.normal(size=2), "tanh"))
    x, h = rng.normal(size=(1, 3)), rng.normal(size=(1, 4))
    dx, dh = rng.normal(size=(5, 3)), rng.normal(size=(5, 4))
    y, _, dy, (dnext,) = tangent(layers, x, (h,), dx, (dh,))
    e = 1e-6
    for at in range(5):
        up, (up_h,) = step(layers, x + e * dx[at], (h + e * dh[at],))
        down, (down_h,) = step(layers, x - e * dx[at], (h - e * dh[at],))
        np.testing.assert_allclose(dy[at], ((up - down) / (2 * e))[0], rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(dnext[at], ((up_h - down_h) / (2 * e))[0], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(y, step(layers, x, (h,))[0])


def test_a_step_leaves_the_state_it_was_given() -> None:
    layers = (gru(3, 4), SimpleRnn(np.ones((4, 2)), np.ones((2, 2)), np.zeros(2)))
    state = start(layers)
    _, after = step(layers, np.ones((1, 3)), state)
    assert all((each == 0).all() for each in state) and len(after) == 2
    with pytest.raises(UserError, match="SimpleRnn has no derivative"):
        tangent(layers, np.ones((1, 3)), state, np.ones((1, 3)), state)


def test_a_normalisation_folds_into_the_first_layer() -> None:
    rng = np.random.default_rng(0)
    x, scale, offset = rng.normal(size=(4, 3)), rng.normal(size=3), rng.normal(size=3)
    for layer in (gru(3, 2), gru(3, 2, after=False), Dense(rng.normal(size=(3, 2)), rng.normal(size=2))):
        state = start((layer,), 4)
        one, _ = step((layer,), scale * x + offset, state)
        other, _ = step((scaled_inputs(layer, scale, offset),), x, state)
        np.testing.assert_allclose(one, other, atol=1e-12)


def test_every_activation_has_a_known_name() -> None:
    assert {"softmax", "elu", "selu", "softplus", "softsign", "relu", "tanh", "sigmoid"} <= set(FUNCTIONS)
