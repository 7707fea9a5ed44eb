"""Predictive control: the specification's exact checks, derivatives, states, refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from haversack.core.errors import UserError
from haversack.embed.forward_model import ForwardModel
from haversack.embed.predictive_control import (
    Controller,
    Settings,
    barrier_slopes,
    cost,
    damped,
    differences,
    moves_matrix,
)
from haversack.models.series.recurrent import Dense, Gru

QUIET = (0.0, 4e5, 0.0)
WIDE = (-1e6, 1e6)


def linear_model(gain: np.ndarray) -> ForwardModel:
    """y(n+1) = gain u(n): `gain` (outputs, inputs), one delay of each."""
    outputs, inputs = gain.shape
    kernel = np.vstack([gain.T, np.zeros((outputs, outputs))])
    return ForwardModel((Dense(kernel, np.zeros(outputs)),), inputs, outputs, 0, 1, 1)


def recurrent_model(seed: int = 0, inputs: int = 2, outputs: int = 3, sensors: int = 4) -> ForwardModel:
    rng = np.random.default_rng(seed)
    width = 2 * inputs + 2 * outputs + sensors
    gru = Gru(
        rng.normal(0, 0.5, (width, 15)),
        rng.normal(0, 0.5, (5, 15)),
        rng.normal(0, 0.3, (2, 15)),
        "tanh",
        "sigmoid",
    )
    return ForwardModel(
        (gru, Dense(rng.normal(0, 0.5, (5, outputs)), np.zeros(outputs))), inputs, outputs, sensors
    )


def test_one_newton_step_reaches_a_linear_plant_s_goal() -> None:
    rng = np.random.default_rng(0)
    gain = rng.normal(size=(3, 3)) + 3 * np.eye(3)
    settings = Settings(np.eye(3), np.zeros((3, 3)), WIDE, N2=1, Nu=1, barrier=QUIET)
    goal = rng.normal(size=3)
    for hessian in ("gauss-newton", "newton"):
        controller = Controller(linear_model(gain), replace(settings, hessian=hessian), measured=True)
        u = controller.step(np.zeros(3), goal[None])
        np.testing.assert_allclose(u, np.linalg.solve(gain, goal), rtol=0, atol=1e-9)


def test_moves_that_cost_pull_towards_the_input_before() -> None:
    """u = (G^T Q G + L)^-1 (G^T Q ym + L u_prev)."""
    rng = np.random.default_rng(1)
    gain = rng.normal(size=(3, 2))
    Q, L = np.diag([1.0, 2.0, 3.0]), np.array([[0.5, 0.1], [0.1, 0.4]])
    controller = Controller(linear_model(gain), Settings(Q, L, WIDE, barrier=QUIET), measured=True)
    before = np.zeros(2)
    for _ in range(3):
        goal = rng.normal(size=3)
        u = controller.step(np.zeros(3), goal[None])
        wanted = np.linalg.solve(gain.T @ Q @ gain + L, gain.T @ Q @ goal + L @ before)
        np.testing.assert_allclose(u, wanted, rtol=0, atol=1e-9)
        before = u


def test_gradient_is_that_of_the_cost() -> None:
    """What Newton's step divides is the derivative of J, barrier and moves included."""
    model = recurrent_model()
    rng = np.random.default_rng(3)
    Q, L, barrier = np.diag([1.0, 2.0, 3.0]), np.array([[1.0, 0.2], [0.2, 2.0]]), (0.1, 6.0, 0.01)
    controls, sensors, wish = rng.normal(0, 0.3, (2, 2)), rng.normal(size=4), rng.normal(size=(4, 3))
    settings = Settings(Q, L, WIDE, N2=4, Nu=2, step=1e-4, barrier=barrier)
    controller = Controller(model, settings)

    def value(point: np.ndarray) -> float:
        return cost(wish - controller.forecast(point[None], sensors)[0], point, np.zeros(2), Q, L, barrier)

    numeric = np.array(
        [
            (value(controls + 1e-5 * e.reshape(2, 2)) - value(controls - 1e-5 * e.reshape(2, 2))) / 2e-5
            for e in np.eye(4)
        ]
    )
    from haversack.embed.predictive_control import gradient

    y, G = differences(lambda probes: controller.forecast(probes, sensors), controls, 1e-4)
    ours = gradient(wish - y, G, Q, controls, np.zeros(2), L, barrier_slopes(controls, barrier)[0])
    np.testing.assert_allclose(ours, numeric, rtol=1e-5, atol=1e-6)


def test_differences_agree_with_the_analytic_derivative() -> None:
    controller = Controller(recurrent_model(2), Settings(np.eye(3), np.eye(2), WIDE, N2=5, Nu=3, step=1e-4))
    rng = np.random.default_rng(0)
    controller._state = (rng.normal(0, 0.3, (1, 5)),)
    controls, sensors = rng.normal(0, 0.3, (3, 2)), rng.normal(size=4)
    y, G = controller.analytic(controls, sensors)
    rolled, numeric = differences(lambda probes: controller.forecast(probes, sensors), controls, 1e-4)
    np.testing.assert_allclose(y, rolled, rtol=0, atol=1e-12)
    np.testing.assert_allclose(G, numeric, rtol=1e-5, atol=1e-8)


def test_probes_leave_the_hidden_state_and_a_leak_does_not() -> None:
    settings = Settings(np.eye(3), np.eye(2), WIDE)
    kept, leaking = (Controller(recurrent_model(), replace(settings, leak=leak)) for leak in (False, True))
    for controller in (kept, leaking):
        before = controller._state[0].copy()
        controller.forecast(np.ones((3, 1, 2)), np.ones(4))
        assert np.array_equal(before, controller._state[0]) is not controller.settings.leak


def test_an_indefinite_matrix_is_damped_until_it_is_definite() -> None:
    H, g = np.diag([2.0, -1.0]), np.ones(2)
    step = damped(H, g)
    assert np.isfinite(step).all() and step @ g > 0
    np.testing.assert_allclose(damped(np.eye(2), g), g)


def test_what_is_not_a_number_becomes_the_lower_limit() -> None:
    controller = Controller(
        linear_model(np.eye(2)), Settings(np.eye(2), np.eye(2), (-1.0, 2.0)), measured=True
    )
    assert (controller.step(np.zeros(2), np.full((1, 2), np.nan)) == -1.0).all()
    controller.reset()
    assert (controller.step(np.zeros(2), np.full((1, 2), 1e9)) == 2.0).all()


def test_moves_are_differences() -> None:
    controls = np.arange(6.0).reshape(3, 2)
    du = (moves_matrix(3, 2) @ controls.ravel()).reshape(3, 2)
    np.testing.assert_array_equal(du, [[0, 1], [2, 2], [2, 2]])


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"Q": np.array([[1.0, 2.0], [0.0, 1.0]])}, "Q"),
        ({"Q": -np.eye(2)}, "Q"),
        ({"L": np.array([[np.nan]])}, "L"),
        ({"N1": 3, "N2": 2}, "N2"),
        ({"N2": 2, "Nu": 3}, "Nu"),
        ({"limits": (1.0, 1.0)}, "limits"),
        ({"step": 0.0}, "step"),
        ({"hessian": "bfgs"}, "hessian"),
    ],
)
def test_settings_that_cannot_be_are_refused(changed: dict[str, object], field: str) -> None:
    given: dict[str, object] = {"Q": np.eye(2), "L": np.eye(1), "limits": (-1.0, 1.0)}
    with pytest.raises(UserError) as caught:
        Settings(**(given | changed))  # type: ignore[arg-type]
    assert caught.value.field == field


def test_a_network_of_another_width_and_weights_that_are_not_finite_are_refused() -> None:
    layer = Dense(np.ones((4, 2)), np.zeros(2))
    with pytest.raises(UserError, match="takes 4 inputs and the window has 3"):
        ForwardModel((layer,), 1, 2, 0, 1, 1)
    with pytest.raises(UserError, match="not finite"):
        ForwardModel((replace(layer, kernel=np.full((3, 2), np.inf)),), 1, 2, 0, 1, 1)
    with pytest.raises(UserError, match="Q is 3 by 3 and the model has 2"):
        Controller(linear_model(np.eye(2)), Settings(np.eye(3), np.eye(2), WIDE))
    with pytest.raises(UserError, match="2 sensors arrived and the model has 4"):
        Controller(recurrent_model(), Settings(np.eye(3), np.eye(2), WIDE)).step(
            np.zeros(2), np.zeros((1, 3))
        )
