"""Least squares over a smoothing kernel and a map between periods, both learned, from moments alone.

MixLinear and SparseTSF compute y = M u for each phase of the period, with u = x + (x * kernel) and one map M
[periods ahead, periods back] for all phases; they differ in how M is made of parameters. The mean square
error is a polynomial in kernel and M whose coefficients are small tensors of the moments. It is lowered here
by damped Gauss-Newton steps (Levenberg-Marquardt), which need no learning rate, no batches and no random
order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from haversack.models.series._moments import Moments

F64 = NDArray[np.float64]
ROUNDS = 30
PATIENCE = 1e-5
"""The share of the error that a step must win, three times in a row, for another to follow."""


class Map(Protocol):
    """How a map between periods is made of `parameters` (a flat array)."""

    parameters: F64

    def matrix(self, parameters: F64) -> F64:
        """The map [periods ahead, periods back]."""

    def slopes(self, parameters: F64) -> F64:
        """Its derivative by every parameter [parameters, periods ahead, periods back]."""


@dataclass(frozen=True)
class Tensors:
    """The moments as kernel and map see them.

    `inputs[k, l]` [back, back]: mean product of the input shifted by k and by l, summed over the phases of a
    period; `cut` is the same over the phases of the last period ahead, which the horizon may cut. `cross[k]`
    [ahead, back]: of what is to be forecast and the input shifted by k. `power`: of what is to be forecast.
    """

    inputs: F64
    cut: F64
    cross: F64
    power: float
    horizon: int

    @classmethod
    def of(cls, moments: Moments, period: int) -> Tensors:
        """Of windows whose own mean was taken away; seq is a multiple of the period."""
        inner, cross, power = moments.centred()
        back, ahead = moments.seq // period, -(-moments.horizon // period)
        taps, half = period + 1, (period + 1) // 2
        left = moments.horizon - (ahead - 1) * period
        size = moments.seq + taps - 1
        padded = np.zeros((size + period, size + period))
        padded[half : half + moments.seq, half : half + moments.seq] = inner
        sums = []
        total = np.zeros((size, size))
        for phase in range(period):
            total += padded[phase : phase + size, phase : phase + size]
            if phase + 1 in (left, period):
                sums.append(total.copy())
        reach = np.arange(back)[None, :] * period + np.arange(taps)[:, None]
        pick = (reach[:, None, :, None], reach[None, :, None, :])
        wide = np.zeros((ahead * period, size + period))
        wide[: moments.horizon, half : half + moments.seq] = cross
        across = np.zeros((taps, ahead, back))
        rows = np.arange(ahead) * period
        for phase in range(period):
            across += wide[rows + phase][:, reach + phase].transpose(1, 0, 2)
        return cls(sums[-1][pick], sums[0][pick], across, power, moments.horizon)

    def seen(self, kernel: F64) -> tuple[F64, F64, F64]:
        """Products of the smoothed input with itself (whole periods, the cut one) and with what is ahead."""
        taps = centred_taps(kernel)
        whole = np.einsum("k,l,klij->ij", taps, taps, self.inputs, optimize=True)
        cut = np.einsum("k,l,klij->ij", taps, taps, self.cut, optimize=True)
        return whole, cut, np.einsum("k,kij->ij", taps, self.cross)

    def error(self, kernel: F64, matrix: F64) -> float:
        """Mean square error of a step."""
        whole, cut, cross = self.seen(kernel)
        explained = np.sum(matrix * (through(matrix, whole, cut) - 2 * cross))
        return float((self.power + explained) / self.horizon)


def centred_taps(kernel: F64) -> F64:
    """Kernel and the input itself in one: what is added to x is smoothed, x stays."""
    taps = kernel.copy()
    taps[len(taps) // 2] += 1.0
    return taps


def through(maps: F64, whole: F64, cut: F64) -> F64:
    """maps [..., ahead, back] times the inputs' products, those of the cut period for the last row."""
    out = maps @ whole
    out[..., -1, :] = maps[..., -1, :] @ cut
    return out


@dataclass
class Fit:
    """Kernel and parameters of the map as fitted; `error` on what it was fitted to, `rounds` of the
    solver."""

    kernel: F64
    parameters: F64
    error: float
    rounds: int = 0
    held_out: float = field(default=float("nan"))


def solve(
    tensors: Tensors, map_: Map, kernel: F64, parameters: F64, ridge: float, *, smooth: bool = True
) -> Fit:
    """Lower error + ridge * (|M|^2 + |kernel|^2), scaled by the input's mean power, from a first guess.

    Every step solves for the kernel and all parameters at once; a step that does not help is damped more.
    `smooth=False` leaves the kernel as it is.
    """
    scale = float(np.trace(tensors.inputs[len(kernel) // 2, len(kernel) // 2]) / tensors.inputs.shape[2])
    weight = ridge * scale
    kernel, parameters = kernel.copy(), parameters.copy()

    def cost(taps: F64, values: F64) -> float:
        matrix = map_.matrix(values)
        return tensors.error(taps, matrix) * tensors.horizon + weight * float(
            np.sum(matrix**2) + np.sum(taps**2)
        )

    best, damping, stale = cost(kernel, parameters), 1e-3, 0
    done = 0
    for done in range(1, ROUNDS + 1):  # noqa: B007
        normal, slope = _system(tensors, map_, kernel, parameters, weight, smooth)
        diagonal = np.diag(normal).copy()
        diagonal = np.maximum(diagonal, 1e-9 * max(diagonal.max(), 1e-30))
        won = 0.0
        for _ in range(12):
            step = np.linalg.solve(normal + np.diag(damping * diagonal), -slope)
            taps = kernel + step[: len(kernel)] if smooth else kernel
            values = parameters + step[len(kernel) if smooth else 0 :]
            found = cost(taps, values)
            if np.isfinite(found) and found < best:
                won = best - found
                kernel, parameters, best = taps, values, found
                damping = max(damping / 5, 1e-12)
                break
            damping *= 5
        stale = stale + 1 if won <= PATIENCE * abs(best) else 0
        if stale == 3 or won == 0.0:
            break
    return Fit(kernel, parameters, tensors.error(kernel, map_.matrix(parameters)), done)


def _system(
    tensors: Tensors, map_: Map, kernel: F64, parameters: F64, weight: float, smooth: bool
) -> tuple[F64, F64]:
    """Gauss-Newton's matrix and slope for (kernel, parameters)."""
    taps = centred_taps(kernel)
    half = np.einsum("l,klij->kij", taps, tensors.inputs)
    half_cut = np.einsum("l,klij->kij", taps, tensors.cut)
    whole, cut = np.einsum("k,kij->ij", taps, half), np.einsum("k,kij->ij", taps, half_cut)
    cross = np.einsum("k,kij->ij", taps, tensors.cross)
    matrix, slopes = map_.matrix(parameters), map_.slopes(parameters)
    flat = slopes.reshape(len(slopes), -1)
    pushed = (through(slopes, whole, cut) + weight * slopes).reshape(len(slopes), -1)
    inner = flat @ pushed.T
    missed = through(matrix, whole, cut) - cross + weight * matrix
    slope = flat @ missed.ravel()
    if not smooth:
        return inner, slope
    # What the map makes of the input shifted by k, against each slope and against every other shift.
    made = np.einsum("hi,kij->khj", matrix, half)
    made[:, -1] = np.einsum("i,kij->kj", matrix[-1], half_cut.transpose(0, 2, 1))
    mixed = made.reshape(len(kernel), -1) @ flat.T
    body = matrix[:-1].T @ matrix[:-1]
    last = np.outer(matrix[-1], matrix[-1])
    shifts = np.einsum("klij,ij->kl", tensors.inputs, body) + np.einsum("klij,ij->kl", tensors.cut, last)
    own = shifts + weight * np.eye(len(kernel))
    pull = shifts @ taps - np.einsum("kij,ij->k", tensors.cross, matrix) + weight * kernel
    return np.block([[own, mixed], [mixed.T, inner]]), np.concatenate([pull, slope])
