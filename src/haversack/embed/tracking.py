"""Closed loops on simulated plants: references, the controllers that follow them, and how far off they were.

Paper: Toward smart composites (arXiv 2205.10940). References are the released targets' shapes: a figure eight
of 25 mm in 150 samples, a circle, a diagonal; sine and steps for the spring. Sizes on the plate are 2 mm,
what its strokes reach [inferred]. Errors are those of the true position, not of the measured one, from the
first tick after `settle` on (the way from the neutral posture to the start of a shape is ramped).

The other controller is a PID with a filtered derivative and an integral that stops where the input is at its
limit, tuned on the same cost as the predictive one: a grid over three decades of each gain, then Nelder and
Mead.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError, unknown_name
from haversack.embed.plants import Plant, Tendon, bend_for, constant_curvature

Array = npt.NDArray[Any]
SYSTEM = 18

SHAPES = ("figure-eight", "circle", "diagonal", "sine", "steps")
SAMPLES = 150


class Follows(Protocol):
    """What closes a loop."""

    def step(self, measurement: Array, wish: Array) -> Array: ...


def reference(name: str, which: Plant, *, laps: int = 3, samples: int = SAMPLES) -> Array:
    """The named shape as (ticks, n) metres, entered from the neutral point by a ramp of `samples` // 3
    ticks."""
    if name not in SHAPES:
        raise unknown_name("reference", name, SHAPES)
    turn = 2 * np.pi * np.arange(laps * samples) / samples
    if which.outputs == 1:
        if name not in ("sine", "steps"):
            raise UserError(f"{name} needs a plant that moves in a plane; {which.name} takes sine or steps.")
        amplitude = 0.4
        if name == "sine":
            return amplitude * np.sin(turn)[:, None]
        levels = np.array([0.5, -0.5, 1.0, 0.0, -1.0, 0.75]) * amplitude
        return np.repeat(levels, laps * samples // len(levels))[:, None]
    if name in ("sine", "steps"):
        raise UserError(f"{name} is a reference of the spring; {which.name} takes {', '.join(SHAPES[:3])}.")
    half = 0.0125 if which.name == "tendon" else 0.001
    if name == "figure-eight":
        flat = half * np.stack([np.sin(turn), np.sin(2 * turn) / 2], axis=1)
    elif name == "circle":
        flat = half * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    else:
        flat = half * np.sin(turn)[:, None] * np.array([1.0, 1.0]) / np.sqrt(2)
    ramp = np.linspace(0, 1, samples // 3, endpoint=False)[:, None] * flat[:1]
    flat = np.concatenate([ramp, flat])
    if isinstance(which, Tendon):
        return constant_curvature(bend_for(flat, which.length), which.length)
    return np.hstack([flat, np.zeros((len(flat), 1))])


def outside(wish: Array, low: Array | None, high: Array | None) -> str | None:
    """What to warn of when a reference leaves the box that the model was trained in; None when it stays."""
    if low is None or high is None:
        return None
    beyond = np.maximum(low - wish, wish - high).max(axis=0)
    if (beyond <= 0).all():
        return None
    axis = int(beyond.argmax())
    return (
        f"the reference leaves what the training log reached by {beyond[axis]:.4g} m (axis {axis}: "
        f"{low[axis]:.4g} "
        f"to {high[axis]:.4g} m)"
    )


@dataclass(frozen=True)
class Track:
    """One closed loop: wishes and true positions (ticks, n), inputs (ticks, m), ticks before errors count."""

    wish: Array
    positions: Array
    inputs: Array
    settle: int

    @property
    def distances(self) -> Array:
        """Metres between wish and position, tick by tick, after settling."""
        return np.linalg.norm((self.positions - self.wish)[self.settle :], axis=1)

    @property
    def rmse(self) -> float:
        return float(np.sqrt((self.distances**2).mean()))

    @property
    def effort(self) -> float:
        """Mean square of the input's moves."""
        return float((np.diff(self.inputs, axis=0) ** 2).sum(axis=1).mean())

    def record(self) -> dict[str, float]:
        far = self.distances
        return {
            "max_m": float(far.max()),
            "mean_m": float(far.mean()),
            "rmse_m": self.rmse,
            "effort": self.effort,
        }


def close_loop(
    which: Plant,
    controller: Follows,
    wish: Array,
    *,
    horizon: int = 1,
    seed: int = 0,
    settle: int = 0,
    preview: bool = True,
    each: Callable[[Array, Array, Array], None] | None = None,
) -> Track:
    """Run `controller` on `which` along `wish`. Without `preview` it is told the wish of the next tick only.

    `each` is called with every tick's measurement, wishes and input.
    """
    rng = np.random.default_rng(seed)
    state = which.rest()
    padded = np.concatenate([wish, np.tile(wish[-1:], (horizon, 1))])
    inputs, positions = [], []
    for tick in range(len(wish)):
        y, sensors = which.sense(state, rng)
        ahead = padded[tick : tick + horizon] if preview else np.tile(padded[tick : tick + 1], (horizon, 1))
        measurement = y if which.measured else sensors
        u = controller.step(measurement, ahead)
        if each is not None:
            each(measurement, ahead, u)
        state = which.advance(state, u)
        inputs.append(u)
        positions.append(which.position(state))
    return Track(wish, np.array(positions), np.array(inputs), settle)


@dataclass
class Pid:
    """u = Kp e + Ki sum e dt + Kd de/dt, the derivative filtered over `filter_s`, within limits."""

    gains: tuple[float, float, float]
    tick_s: float
    limits: tuple[float, float]
    filter_s: float = 0.05

    def __post_init__(self) -> None:
        self._sum, self._slope, self._before = 0.0, 0.0, None

    _before: float | None = None

    def step(self, measurement: Array, wish: Array) -> Array:
        error = float(wish[0, 0] - measurement[0])
        before = error if self._before is None else self._before
        share = self.tick_s / (self.tick_s + self.filter_s)
        self._slope += share * ((error - before) / self.tick_s - self._slope)
        self._before = error
        grown = self._sum + error * self.tick_s
        kp, ki, kd = self.gains
        u = kp * error + ki * grown + kd * self._slope
        low, high = self.limits
        if low < u < high:
            self._sum = grown
        return np.array([min(max(u, low), high)])


def tracking_cost(track: Track, Q: Array, L: Array) -> float:
    """The controllers' common cost: mean |error|^2_Q + |du|^2_L."""
    miss = (track.wish - track.positions)[track.settle :]
    du = np.diff(track.inputs, axis=0)
    return float(np.einsum("tn,nk,tk->t", miss, Q, miss).mean() + np.einsum("tm,mk,tk->t", du, L, du).mean())


def tune_pid(which: Plant, wishes: Sequence[Array], Q: Array, L: Array) -> tuple[Pid, float]:
    """The PID of least cost over `wishes`, and that cost."""

    def score(logs: Array) -> float:
        gains = tuple(float(10**each) for each in logs)
        controller = Pid((gains[0], gains[1], gains[2]), which.tick_s, which.limits)
        tracks = [close_loop(which, replace(controller), wish, seed=7) for wish in wishes]
        return float(np.mean([tracking_cost(track, Q, L) for track in tracks]))

    grid = itertools.product((0.0, 1.0, 2.0), (0.0, 1.0, 2.0), (-1.0, 0.0, 1.0))
    best = min((np.array(point) for point in grid), key=score)
    found = nelder_mead(score, best, 0.3, 60)
    gains = 10**found
    pid = Pid((float(gains[0]), float(gains[1]), float(gains[2])), which.tick_s, which.limits)
    return pid, score(found)


def nelder_mead(score: Callable[[Array], float], start: Array, size: float, evaluations: int) -> Array:
    """The simplex method of Nelder and Mead from `start` with edges of `size`."""
    points = [start, *(start + size * edge for edge in np.eye(len(start)))]
    values = [score(point) for point in points]
    used = len(points)
    while used < evaluations:
        order = np.argsort(values)
        points, values = [points[at] for at in order], [values[at] for at in order]
        middle = np.mean(points[:-1], axis=0)
        tried = middle + (middle - points[-1])
        value = score(tried)
        used += 1
        if value < values[0]:
            further = middle + 2 * (middle - points[-1])
            other = score(further)
            used += 1
            tried, value = (further, other) if other < value else (tried, value)
        elif value >= values[-2]:
            tried = middle + 0.5 * ((tried if value < values[-1] else points[-1]) - middle)
            value = score(tried)
            used += 1
            if value >= values[-1]:
                points = [points[0], *(points[0] + 0.5 * (point - points[0]) for point in points[1:])]
                values = [values[0], *(score(point) for point in points[1:])]
                used += len(points) - 1
                continue
        points[-1], values[-1] = tried, value
    return points[int(np.argmin(values))]
