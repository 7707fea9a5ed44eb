"""Simulated plants to control: a mass on a spring, a segment bent by tendons, a plate tilted by six
actuators.

Paper: Toward smart composites (arXiv 2205.10940). Its rigs are stood in for by models of their kind; what the
paper does not tell is [inferred] and stands here as a number.

- `spring`: m x'' + c x' + k x = u with m=1, c=1, k=10; `spring-cubic` adds a cubic spring and a dead zone of
  the input [inferred]. Measured: the position, with noise.
- `tendon`: two servos (radians) bend a segment of constant curvature in two directions, with play between
  servo and tendon, a lag, and coupling; the position (metres) of its tip is not measured in use, 11 sensors
  are: monotone functions of the curvature, drawn by a seed, with noise, as optical laces are.
- `plate`: six actuators whose stroke goes with the square of their voltage carry a plate; the position is
  that of a mark on a mast above it, the sensors are the field of a magnet under the plate at six probes,
  three axes each.

A plant is a pure function of its state: `advance` takes one tick of `tick_s` seconds with the input held.
Units are metres, seconds, newtons, radians; the inputs of the plate are voltages on a scale of -0.5 to 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from haversack.core.errors import unknown_name

Array = npt.NDArray[Any]
SYSTEM = 18


class Plant(Protocol):
    """What is controlled. `sensors` may be 0; `measured` says whether the position itself is known in use."""

    @property
    def name(self) -> str: ...

    @property
    def inputs(self) -> int: ...

    @property
    def outputs(self) -> int: ...

    @property
    def sensors(self) -> int: ...

    @property
    def tick_s(self) -> float: ...

    @property
    def limits(self) -> tuple[float, float]: ...

    @property
    def measured(self) -> bool: ...

    def rest(self) -> Array:
        """The state at rest, in the neutral posture."""

    def advance(self, state: Array, u: Array) -> Array:
        """The state one tick later."""

    def position(self, state: Array) -> Array:
        """(outputs,) in metres from the neutral point."""

    def sense(self, state: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        """What is measured: the position with noise, and the sensors with noise."""


def runge_kutta(slope: object, state: Array, seconds: float, steps: int) -> Array:
    """`steps` classical fourth-order steps of x' = slope(x) over `seconds`."""
    assert callable(slope)
    h = seconds / steps
    for _ in range(steps):
        a = slope(state)
        b = slope(state + h / 2 * a)
        c = slope(state + h / 2 * b)
        d = slope(state + h * c)
        state = state + h / 6 * (a + 2 * b + 2 * c + d)
    return state


def dead_zone(u: Array, half_width: float) -> Array:
    """0 within the zone, else u moved towards 0 by its half width."""
    return np.sign(u) * np.maximum(np.abs(u) - half_width, 0)


def play(held: Array, command: Array, half_width: float) -> Array:
    """The play operator: follows the command at a distance of at most the half width (hysteresis)."""
    return np.clip(held, command - half_width, command + half_width)


def lag(value: Array, goal: Array, tick_s: float, time_constant_s: float) -> Array:
    """A first-order lag over one tick, exact for a goal that is held."""
    return value + (1 - np.exp(-tick_s / time_constant_s)) * (goal - value)


@dataclass(frozen=True)
class Spring:
    """m x'' + c x' + k x + k3 x^3 = dead_zone(u); the state is (x, x')."""

    name: str = "spring"
    mass: float = 1.0
    damping: float = 1.0
    stiffness: float = 10.0
    cubic: float = 0.0
    zone: float = 0.0
    noise: float = 1e-3
    inputs: int = 1
    outputs: int = 1
    sensors: int = 0
    tick_s: float = 0.05
    limits: tuple[float, float] = (-8.0, 8.0)
    measured: bool = True

    def rest(self) -> Array:
        return np.zeros(2)

    def advance(self, state: Array, u: Array) -> Array:
        force = dead_zone(u, self.zone)[0]

        def slope(x: Array) -> Array:
            pull = self.stiffness * x[0] + self.cubic * x[0] ** 3 + self.damping * x[1]
            return np.array([x[1], (force - pull) / self.mass])

        return runge_kutta(slope, state, self.tick_s, 4)

    def position(self, state: Array) -> Array:
        return state[:1]

    def sense(self, state: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        return state[:1] + self.noise * rng.standard_normal(1), np.zeros(0)


@dataclass(frozen=True)
class Tendon:
    """Two tendons bend a segment; the state is (held by the play, bend), each two angles in radians."""

    name: str = "tendon"
    length: float = 0.12
    gain: float = 0.8
    coupling: float = 0.08
    half_play: float = 0.02
    lag_s: float = 0.03
    noise: float = 2e-3
    inputs: int = 2
    outputs: int = 3
    sensors: int = 11
    tick_s: float = 2 / 250
    limits: tuple[float, float] = (float(np.deg2rad(-100)), float(np.deg2rad(50)))
    measured: bool = False
    laces: Array = field(default_factory=lambda: _laces(11))

    def rest(self) -> Array:
        return np.zeros(4)

    def advance(self, state: Array, u: Array) -> Array:
        mixed = u + self.coupling * u[::-1] + 0.05 * u * u
        held = play(state[:2], self.gain * mixed, self.half_play)
        return np.concatenate([held, lag(state[2:], held, self.tick_s, self.lag_s)])

    def position(self, state: Array) -> Array:
        return constant_curvature(state[2:], self.length)

    def sense(self, state: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        along = self.laces[:, :2] @ state[2:]
        clean = np.tanh(self.laces[:, 2] * along + self.laces[:, 3])
        return self.position(state), clean + self.noise * rng.standard_normal(self.sensors)


def _laces(count: int) -> Array:
    """Directions in the plane of bending, gains and offsets of the laces, (count, 4)."""
    rng = np.random.default_rng(18)
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False) + rng.uniform(-0.2, 0.2, count)
    gains, offsets = rng.uniform(0.6, 1.4, count), rng.uniform(-0.5, 0.5, count)
    return np.stack([np.cos(angle), np.sin(angle), gains, offsets], axis=1)


def constant_curvature(bend: Array, length: float) -> Array:
    """The tip (x, y, z) of an arc of `length` bent by the angles `bend` (..., 2), from where it is unbent.

    x, y = length (1 - cos a) / a in the direction of the bend, z = length (sin a / a - 1), a = |bend|.
    """
    angle = np.linalg.norm(bend, axis=-1)
    small = angle < 1e-4
    safe = np.where(small, 1.0, angle)
    out = np.where(small, 0.5 - angle**2 / 24, (1 - np.cos(safe)) / safe**2)
    along = np.where(small, -(angle**2) / 6, np.sin(safe) / safe - 1)
    return length * np.concatenate([bend * out[..., None], along[..., None]], axis=-1)


def bend_for(sideways: Array, length: float) -> Array:
    """The bend whose tip stands at `sideways` (..., 2) metres: `constant_curvature` turned around, by
    Newton."""
    distance = np.linalg.norm(sideways, axis=-1)
    angle = 2 * distance / length
    for _ in range(20):
        safe = np.maximum(angle, 1e-6)
        value = (1 - np.cos(safe)) / safe
        slope = np.sin(safe) / safe - (1 - np.cos(safe)) / safe**2
        angle = np.maximum(angle - (value - distance / length) / slope, 0)
    direction = sideways / np.maximum(distance, 1e-12)[..., None]
    return direction * angle[..., None]


@dataclass(frozen=True)
class Plate:
    """Six actuators in a circle of `radius` under a plate; the state is their strokes in metres."""

    name: str = "plate"
    radius: float = 0.03
    stroke: float = 6e-3
    mast: float = 0.06
    lag_s: float = 0.02
    noise: float = 5e-4
    inputs: int = 6
    outputs: int = 3
    sensors: int = 18
    tick_s: float = 2 / 250
    limits: tuple[float, float] = (-0.5, 0.5)
    measured: bool = False

    def rest(self) -> Array:
        return np.full(6, self.stroke / 4)

    def advance(self, state: Array, u: Array) -> Array:
        return lag(state, self.stroke * (u + 0.5) ** 2, self.tick_s, self.lag_s)

    def pose(self, state: Array) -> tuple[float, Array]:
        """Height of the plate's middle above neutral, and its two tilts in radians (least squares)."""
        angle = np.arange(6) * np.pi / 3
        tilts = np.array([np.cos(angle) @ state, np.sin(angle) @ state]) / (3 * self.radius)
        return float(state.mean() - self.stroke / 4), tilts

    def position(self, state: Array) -> Array:
        height, tilts = self.pose(state)
        return np.array([*(-self.mast * np.sin(tilts)), height + self.mast * (np.cos(tilts).prod() - 1)])

    def sense(self, state: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        height, tilts = self.pose(state)
        magnet = np.array([*(0.01 * np.sin(tilts)), 0.012 + height])
        angle = np.arange(6) * np.pi / 3
        probes = 0.5 * self.radius * np.stack([np.cos(angle), np.sin(angle), np.zeros(6)], axis=1)
        field_at = dipole(magnet - probes, np.array([*(-np.sin(tilts)), 1.0])) * 0.012**3
        return self.position(state), field_at.ravel() + self.noise * rng.standard_normal(18)


def dipole(offset: Array, moment: Array) -> Array:
    """The field 3 (m.r) r / |r|^5 - m / |r|^3 of a magnet at `offset` (..., 3) from the probe, without mu0 /
    4 pi."""
    distance = np.linalg.norm(offset, axis=-1, keepdims=True)
    return 3 * (offset @ moment)[..., None] * offset / distance**5 - moment / distance**3


PLANTS = ("spring", "spring-cubic", "tendon", "plate")


def plant(name: str) -> Plant:
    """The plant of this name. Raises UserError, naming the nearest, for another."""
    if name == "spring":
        return Spring()
    if name == "spring-cubic":
        return Spring(name=name, cubic=40.0, zone=0.5, limits=(-20.0, 20.0))
    if name == "tendon":
        return Tendon()
    if name == "plate":
        return Plate()
    raise unknown_name("plant", name, PLANTS)


@dataclass(frozen=True)
class Log:
    """What a plant did: inputs (ticks, m), positions (ticks, n) as measured, sensors (ticks, s); row k was
    there when input k began."""

    inputs: Array
    positions: Array
    sensors: Array
    tick_s: float


def excite(which: Plant, seconds: float, seed: int, *, amplitude: float = 1.0) -> Log:
    """A log of `seconds` under random inputs: levels drawn evenly, held or approached for random times.

    `amplitude` is the share of the input's range that is drawn from, about the middle of what is reachable.
    """
    rng = np.random.default_rng(seed)
    ticks = round(seconds / which.tick_s)
    low, high = which.limits
    state = which.rest()
    current = np.clip(np.zeros(which.inputs), low, high)
    u = np.empty((ticks, which.inputs))
    for each in range(which.inputs):
        at, level = 0, current[each]
        while at < ticks:
            count = int(rng.integers(2, 40))
            goal = amplitude * rng.uniform(low, high)
            ramp = np.linspace(0, 1, count) if rng.random() < 0.6 else np.ones(count)
            piece = level + (goal - level) * ramp
            u[at : at + count, each] = piece[: ticks - at]
            at, level = at + count, goal
    y, s = np.empty((ticks, which.outputs)), np.empty((ticks, which.sensors))
    for tick in range(ticks):
        y[tick], s[tick] = which.sense(state, rng)
        state = which.advance(state, u[tick])
    return Log(u, y, s, which.tick_s)
