"""Neural predictive control: one Newton-Raphson step a tick on a learned model's forecast.

Paper: Toward smart composites (arXiv 2205.10940), after Soloway and Haley's neural generalized predictive
control; public code: sarahaguasvivas/nlsoft (MIT), of which only facts are used. With yn the model's
forecast, ym the wish, u(1) .. u(Nu) the inputs of the next ticks, each held for one and the last one from Nu
on,

    J = sum_{j=N1..N2} |ym(j) - yn(j)|^2_Q + sum_{h=1..Nu} |du(h)|^2_L
        + sum_h sum_i s / (u_i + r/2 - b) + s / (r/2 + b - u_i) - 4 / r,        du(h) = u(h) - u(h-1)
    g = -2 G^T Q (ym - yn) + 2 D^T L du + barrier'(u)                           G = d yn / d u, D = d du / d u
    H =  2 G^T Q G - 2 sum (ym - yn)^T Q d2yn/du2 + 2 D^T L D + barrier''(u)
    u <- clip(u - (H + mu I)^-1 g), NaN becomes the lower limit

G comes from central differences of the whole forecast with step e, all probes as one batch, each from the
hidden state that the tick began with; or analytically (forward mode). `hessian`: `gauss-newton` leaves the
second derivatives out (default [inferred]), `newton` takes them, `scalar` is the published code's: a matrix
of Nu by Nu that sums over inputs, without the factors of 2.

Changed: the published G is the derivative of a single step, summed over the delays; ours is that of the
forecast, the matrix of m Nu inputs. mu starts at 0 and rises tenfold from 1e-9 of the largest entry until H
is positive definite. `leak` breaks the state on purpose: probes then advance the hidden state, which the
ablation shows.

Cost of a tick: (2 m Nu + 1) N2 steps of the network. Limits: references are followed only within what N2
foresees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError, not_allowed
from haversack.embed.forward_model import ForwardModel
from haversack.models.series.recurrent import State, tangent

Array = npt.NDArray[Any]
SYSTEM = 18

HESSIANS = ("gauss-newton", "newton", "scalar")
DERIVATIVES = ("differences", "analytic")


def cost(
    miss: Array, controls: Array, previous: Array, Q: Array, L: Array, barrier: tuple[float, float, float]
) -> float:
    """J for ym - yn (N, n), controls (Nu, m) and the input that is applied now (m,)."""
    du = np.diff(np.vstack([previous, controls]), axis=0)
    sharpness, span, offset = barrier
    walls = sharpness / (controls + span / 2 - offset) + sharpness / (span / 2 + offset - controls) - 4 / span
    return float(np.einsum("jn,nk,jk", miss, Q, miss) + np.einsum("hm,mk,hk", du, L, du) + walls.sum())


def barrier_slopes(controls: Array, barrier: tuple[float, float, float]) -> tuple[Array, Array]:
    """First and second derivatives of the walls, in the shape of the controls."""
    sharpness, span, offset = barrier
    low, high = controls + span / 2 - offset, span / 2 + offset - controls
    return sharpness * (high**-2 - low**-2), 2 * sharpness * (low**-3 + high**-3)


def moves_matrix(steps: int, inputs: int) -> Array:
    """D: du = D u - (u(0), 0, ...), for controls in one row, (steps inputs, steps inputs)."""
    return np.kron(np.eye(steps) - np.eye(steps, k=-1), np.eye(inputs))


def differences(forecast: Callable[[Array], Array], controls: Array, step: float) -> tuple[Array, Array]:
    """The forecast yn (N, n) and G (N n, Nu m) by central differences; `forecast` takes (batch, Nu, m)."""
    count = controls.size
    shifts = step * np.eye(count).reshape(count, *controls.shape)
    rolled = forecast(np.concatenate([controls[None], controls + shifts, controls - shifts]))
    up, down = rolled[1 : count + 1], rolled[count + 1 :]
    return rolled[0], ((up - down) / (2 * step)).reshape(count, -1).T


def second_differences(
    forecast: Callable[[Array], Array], controls: Array, step: float, weight: Array
) -> Array:
    """sum over outputs of weight * d2 yn / du du, (Nu m, Nu m); `weight` (N, n)."""
    count = controls.size
    shifts = step * np.eye(count).reshape(count, *controls.shape)
    pairs = [(a, b) for a in range(count) for b in range(a + 1)]
    probes = [controls + i * shifts[a] + j * shifts[b] for a, b in pairs for i in (1, -1) for j in (1, -1)]
    value = (forecast(np.array(probes)) * weight).sum(axis=(1, 2)).reshape(len(pairs), 4)
    found = np.zeros((count, count))
    for (a, b), (both, one, other, neither) in zip(pairs, value, strict=True):
        found[a, b] = found[b, a] = (both - one - other + neither) / (4 * step**2)
    return found


def gradient(
    miss: Array, G: Array, Q: Array, controls: Array, previous: Array, L: Array, walls: Array
) -> Array:
    """g, in one row of Nu m."""
    D = moves_matrix(*controls.shape)
    du = np.diff(np.vstack([previous, controls]), axis=0)
    return -2 * G.T @ (miss @ Q).ravel() + 2 * D.T @ (du @ L).ravel() + walls.ravel()


def hessian(
    G: Array, Q: Array, shape: tuple[int, int], L: Array, walls: Array, curvature: Array | None
) -> Array:
    """H; `curvature` is sum (ym - yn)^T Q d2yn/du2 for Newton's, None for Gauss and Newton's."""
    D = moves_matrix(*shape)
    whole_q = np.kron(np.eye(len(G) // len(Q)), Q)
    found = 2 * G.T @ whole_q @ G + 2 * D.T @ np.kron(np.eye(shape[0]), L) @ D + np.diag(walls.ravel())
    return found if curvature is None else found - 2 * curvature


def scalar_step(H: Array, g: Array, shape: tuple[int, int]) -> Array:
    """The published step: H summed over inputs to (Nu, Nu), both without the factors of 2, (Nu, m)."""
    steps, inputs = shape
    summed = np.einsum("hiji->hj", H.reshape(steps, inputs, steps, inputs)) / 2
    return damped(summed, g.reshape(shape) / 2)


def damped(H: Array, g: Array) -> Array:
    """(H + mu I)^-1 g, mu the least of 0, 1e-9, 1e-8, ... of the largest entry that makes it definite.

    NaN where H is not finite.
    """
    if not (np.isfinite(H).all() and np.isfinite(g).all()):
        return np.full_like(g, np.nan)
    size, mu = float(np.abs(H).max()) or 1.0, 0.0
    while True:
        try:
            root = np.linalg.cholesky(H + mu * np.eye(len(H)))
        except np.linalg.LinAlgError:
            mu = max(10 * mu, 1e-9 * size)
            continue
        return np.asarray(np.linalg.solve(root.T, np.linalg.solve(root, g)))


@dataclass(frozen=True)
class Settings:
    """What the controller is told. `Q` (n, n) and `L` (m, m) weigh errors and moves, `limits` bound inputs;
    `barrier` is (s, r, b); `step` is e, in units of the input."""

    Q: Array
    L: Array
    limits: tuple[float, float]
    N1: int = 0
    N2: int = 1
    Nu: int = 1
    step: float = 5e-2
    barrier: tuple[float, float, float] = (1e-20, 4e5, 1e-5)
    newton_steps: int = 1
    hessian: str = "gauss-newton"
    derivative: str = "differences"
    leak: bool = False

    def __post_init__(self) -> None:
        for name in ("Q", "L"):
            given = np.atleast_2d(np.asarray(getattr(self, name), float))
            object.__setattr__(self, name, given)
            symmetric = given.shape[0] == given.shape[1] and np.array_equal(given, given.T)
            if not np.isfinite(given).all() or not symmetric or np.linalg.eigvalsh(given).min() < 0:
                raise UserError(
                    f"{name} is not symmetric and positive semidefinite; give a matrix that is, such as a "
                    f"diagonal "
                    "of numbers from 0 on.",
                    field=name,
                    given=given.tolist(),
                )
        if max(self.N1, 1) > self.N2 or self.N1 < 0:
            raise UserError(
                f"N1={self.N1}, N2={self.N2} is no horizon (0 <= N1 <= N2, and N2 from 1 on).",
                field="N2",
                given=self.N2,
                nearest=max(self.N1, 1),
            )
        if not 1 <= self.Nu <= self.N2:
            raise UserError(
                f"Nu={self.Nu} inputs do not fit a horizon of N2={self.N2} ticks (1 to N2).",
                field="Nu",
                given=self.Nu,
                nearest=min(max(self.Nu, 1), self.N2),
            )
        if not self.limits[0] < self.limits[1]:
            raise UserError(f"limits={self.limits} leave no input.", field="limits", given=self.limits)
        if not self.step > 0:
            raise UserError(f"step={self.step} is not above 0.", field="step", given=self.step)
        for name, allowed in (("hessian", HESSIANS), ("derivative", DERIVATIVES)):
            if getattr(self, name) not in allowed:
                raise not_allowed(name, getattr(self, name), allowed)


@dataclass
class Controller:
    """The loop of one body: `step` takes what was measured and the wish, and gives the input to apply."""

    model: ForwardModel
    settings: Settings
    measured: bool = False
    _state: State = field(init=False)
    _u: Array = field(init=False)
    _y: Array = field(init=False)

    def __post_init__(self) -> None:
        for name, given, wanted in (
            ("Q", len(self.settings.Q), self.model.outputs),
            ("L", len(self.settings.L), self.model.inputs),
        ):
            if given != wanted:
                raise UserError(
                    f"{name} is {given} by {given} and the model has {wanted}.",
                    field=name,
                    given=given,
                    nearest=wanted,
                )
        self.reset()

    def reset(self) -> None:
        """Back to the neutral posture: nothing applied, nothing seen."""
        low, high = self.settings.limits
        rest = np.clip(np.zeros(self.model.inputs), low, high)
        self._state = self.model.start()
        self._u = np.tile(rest, (self.model.input_delays - 1, 1))
        self._y = np.zeros((self.model.output_delays, self.model.outputs))
        self._last = rest
        self.estimate = np.zeros(self.model.outputs)

    def step(self, measurement: Array, wish: Array) -> Array:
        """The input of this tick, (m,). `measurement`: the position where it is measured, else the sensors;
        `wish` (N2, n): where to be 1 .. N2 ticks from now."""
        settings, model = self.settings, self.model
        sensors = np.zeros(0) if self.measured else measurement
        if self.measured:
            self._y[0] = measurement
        if not self.measured and len(sensors) != model.sensors:
            raise UserError(
                f"{len(sensors)} sensors arrived and the model has {model.sensors}.",
                field="sensors",
                given=len(sensors),
                nearest=model.sensors,
            )
        controls = np.tile(self._last, (settings.Nu, 1))
        low, high = settings.limits
        self.cost = np.nan
        for _ in range(settings.newton_steps):
            move = self._newton(controls, sensors, wish)
            controls = np.clip(controls - move, low, high)
            controls = np.where(np.isnan(controls), low, controls)
        u = controls[0]
        y, self._state = model.predict(self._window(u[None, None], sensors)[0], self._state)
        self.estimate = y[0]
        self._u = np.vstack([u, self._u])[: model.input_delays - 1]
        self._y = np.vstack([y, self._y])[: model.output_delays]
        self._last = u
        return np.asarray(u)

    def _window(self, controls: Array, sensors: Array) -> tuple[Array, Array, Array]:
        """x of the first tick for (batch, Nu, m) controls; and the histories behind it."""
        batch = len(controls)
        u = np.concatenate([controls[:, :1], np.tile(self._u, (batch, 1, 1))], axis=1)
        y = np.tile(self._y, (batch, 1, 1))
        return self._x(u, y, sensors), u, y

    def _x(self, u: Array, y: Array, sensors: Array) -> Array:
        batch = len(u)
        return np.hstack([u.reshape(batch, -1), y.reshape(batch, -1), np.tile(sensors, (batch, 1))])

    def forecast(self, controls: Array, sensors: Array) -> Array:
        """yn (batch, N2, n) under (batch, Nu, m) controls; the controller's own state stays as it is."""
        if (
            self.settings.leak and len(controls) > 1
        ):  # one after the other, each from where the last one ended
            return np.concatenate([self.forecast(probe[None], sensors) for probe in controls])
        batch, steps = len(controls), self.settings.Nu
        state = tuple(np.tile(each, (batch, 1)) for each in self._state)
        x, u, y = self._window(controls, sensors)
        outs = []
        for at in range(self.settings.N2):
            if at:
                u = np.concatenate([controls[:, [min(at, steps - 1)]], u[:, :-1]], axis=1)
                x = self._x(u, y, sensors)
            next_y, state = self.model.predict(x, state)
            outs.append(next_y)
            y = np.concatenate([next_y[:, None], y[:, :-1]], axis=1)
        if self.settings.leak:
            self._state = state
        return np.stack(outs, axis=1)

    def analytic(self, controls: Array, sensors: Array) -> tuple[Array, Array]:
        """yn (N2, n) and G by forward mode through the network and its feedback."""
        settings, model = self.settings, self.model
        count, m = controls.size, model.inputs
        basis = np.eye(count).reshape(count, settings.Nu, m)
        state, dstate = self._state, tuple(np.zeros((count, each.shape[1])) for each in self._state)
        _, u, y = self._window(controls[None], sensors)
        du, dy = np.zeros((count, *u.shape[1:])), np.zeros((count, *y.shape[1:]))
        outs, slopes = [], []
        for at in range(settings.N2):
            now = min(at, settings.Nu - 1)
            if at:
                u = np.concatenate([controls[None, [now]], u[:, :-1]], axis=1)
                du = du[:, :-1]
            else:
                du = du[:, 1:]
            du = np.concatenate([basis[:, [now]], du], axis=1)
            dx = np.hstack([du.reshape(count, -1), dy.reshape(count, -1), np.zeros((count, len(sensors)))])
            out, state, slope, dstate = tangent(model.layers, self._x(u, y, sensors), state, dx, dstate)
            outs.append(out[0])
            slopes.append(slope)
            y = np.concatenate([out[:, None], y[:, :-1]], axis=1)
            dy = np.concatenate([slope[:, None], dy[:, :-1]], axis=1)
        return np.array(outs), np.concatenate(slopes, axis=1).T

    def _newton(self, controls: Array, sensors: Array, wish: Array) -> Array:
        settings = self.settings

        def rolled(probes: Array) -> Array:
            return self.forecast(probes, sensors)

        if settings.derivative == "analytic":
            y, G = self.analytic(controls, sensors)
        else:
            y, G = differences(rolled, controls, settings.step)
        first = max(settings.N1, 1) - 1
        n = self.model.outputs
        miss = (wish - y)[first:]
        G = G[first * n :]
        slopes, bends = barrier_slopes(controls, settings.barrier)
        self.cost = cost(miss, controls, self._last, settings.Q, settings.L, settings.barrier)
        g = gradient(miss, G, settings.Q, controls, self._last, settings.L, slopes)
        curvature = None
        if settings.hessian == "newton":
            weight = np.zeros_like(y)
            weight[first:] = miss @ settings.Q
            curvature = second_differences(rolled, controls, settings.step, weight)
        H = hessian(G, settings.Q, controls.shape, settings.L, bends, curvature)
        if settings.hessian == "scalar":
            return scalar_step(H, g, controls.shape)
        return damped(H, g).reshape(controls.shape)
