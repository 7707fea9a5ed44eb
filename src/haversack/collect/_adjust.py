"""Structure from motion over a clip: positions from known rotations, bundle adjustment, scale from the IMU.

`positions` is linear: with rotations known (the gyroscope's), every observation is a direction d in the world
and wants (I - d d^T)(X - p) = 0; points are eliminated, and the smallest eigenvector of what is left are the
positions, up to scale. It is one start; the other is no motion and all points at one distance, from which
small motions unfold (a gyroscope's bias spoils the first in clips of more than ten seconds, the second asks
for more steps). `begun` takes the better. `adjust` is Levenberg-Marquardt on poses, points and, where asked,
f and k1: Huber on reprojection, and a residual of each key frame's turn against the gyroscope's with one bias
for the clip; points are eliminated by the Schur complement. `metric` is the linear fit of scale, gravity,
velocities and the accelerometer's bias to the doubly integrated accelerometer.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from haversack.collect._camera import Camera
from haversack.collect._rotations import exp, log

BIAS, SHIFT = 0.05, 0.05
"""Priors of the gyroscope's bias, rad/s, and of its clock, s."""
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


@dataclass
class Problem:
    """Key frames with rotations R [k, 3, 3] and places p [k, 3] in the world, points X [m, 3], and the
    observations: key frame and point of each i64 [n], pixels [n, 2]. `turns` [k - 1, 3, 3]: the
    gyroscope's, from each key frame to the next, over `gaps` seconds, `rates` [k, 3] its reading at each
    of them; empty without one. `bias` is its error, `shift` what its clock is ahead beyond what was
    allowed for, s."""

    camera: Camera
    R: F64
    p: F64
    X: F64
    key: I64
    point: I64
    at: F64
    turns: F64 = field(default_factory=lambda: np.zeros((0, 3, 3)))
    gaps: F64 = field(default_factory=lambda: np.zeros(0))
    rates: F64 = field(default_factory=lambda: np.zeros((0, 3)))
    bias: F64 = field(default_factory=lambda: np.zeros(3))
    shift: float = 0.0

    def local(self) -> F64:
        """The observed points in the axes of their key frames [n, 3]."""
        found: F64 = np.einsum("nji,nj->ni", self.R[self.key], self.X[self.point] - self.p[self.key])
        return found

    def errors(self) -> F64:
        """Reprojection errors [n, 2], px; large for points behind the camera."""
        local = self.local()
        behind = local[:, 2] < 0.02
        local[:, 2] = np.where(behind, 0.02, local[:, 2])
        return np.where(behind[:, None], 50.0, self.camera.project(local) - self.at)


def positions(R: F64, key: I64, point: I64, rays: F64) -> tuple[F64, F64]:
    """Places [k, 3] (the first at 0, together of length 1) and points [m, 3] from rotations and unit rays [n,
    3] in camera axes."""
    keys, points = len(R), int(point.max()) + 1
    d = np.einsum("nij,nj->ni", R[key], rays)
    P = np.eye(3) - d[:, :, None] * d[:, None, :]
    V = np.zeros((points, 3, 3))
    np.add.at(V, point, P)
    V += 1e-9 * np.eye(3)
    inverse = np.linalg.inv(V)
    W = np.zeros((points, keys, 3, 3))
    W[point, key] = P
    wide = W.transpose(0, 2, 1, 3).reshape(points, 3, 3 * keys)
    reduced = -np.einsum("mia,mij,mjb->ab", wide, inverse, wide, optimize=True)
    U = np.zeros((keys, 3, 3))
    np.add.at(U, key, P)
    for at in range(keys):
        reduced[3 * at : 3 * at + 3, 3 * at : 3 * at + 3] += U[at]
    _, vectors = np.linalg.eigh(reduced[3:, 3:])
    p = np.concatenate([np.zeros(3), vectors[:, 0]]).reshape(keys, 3)
    X = np.einsum("mij,mja,a->mi", inverse, wide, p.ravel(), optimize=True)
    depth = np.einsum("ni,ni->n", X[point] - p[key], d)
    return (-p, -X) if np.median(depth) < 0 else (p, X)


def adjust(
    problem: Problem,
    *,
    lens: bool = False,
    iterations: int = 15,
    huber_px: float = 1.0,
    gyro_rad: float = 0.002,
    k1_prior: float = 0.1,
) -> float:
    """Refine everything in place; `lens` frees f and k1. The RMS of the inliers' reprojection errors, px."""
    damping, cost = 1e-3, _cost(problem, huber_px, gyro_rad, k1_prior)
    for _ in range(iterations):
        system = _System(problem, huber_px, gyro_rad, lens, k1_prior)
        for _ in range(6):
            trial = system.stepped(damping)
            after = _cost(trial, huber_px, gyro_rad, k1_prior)
            if after < cost:
                break
            damping *= 5
        else:
            break
        gain = (cost - after) / max(cost, 1e-12)
        problem.camera, problem.bias, problem.shift = trial.camera, trial.bias, trial.shift
        problem.R, problem.p, problem.X, cost = trial.R, trial.p, trial.X, after
        damping = max(damping / 5, 1e-8)
        if gain < 1e-5:
            break
    lengths = np.linalg.norm(problem.errors(), axis=1)
    inside = lengths < 3.0
    return float(np.sqrt((lengths[inside] ** 2).mean())) if inside.any() else float("inf")


def begun(starts: list[Problem], *, lens: bool, iterations: int = 10) -> Problem:
    """The start whose cost is least after some steps of `adjust`."""
    costs = []
    for problem in starts:
        adjust(problem, lens=lens, iterations=iterations)
        costs.append(_cost(problem, 1.0, 0.002, 0.1))
    return starts[int(np.argmin(costs))]


def _turns(problem: Problem) -> F64:
    """Residuals of the key frames' turns against the gyroscope's, less the bias [k - 1, 3]."""
    if not len(problem.turns):
        return np.zeros((0, 3))
    found, s = [], problem.shift
    for k, (turn, gap) in enumerate(zip(problem.turns, problem.gaps, strict=True)):
        moved = exp(-problem.rates[k] * s) @ turn @ exp(problem.rates[k + 1] * s - problem.bias * gap)
        found.append(log(moved.T @ problem.R[k].T @ problem.R[k + 1]))
    return np.asarray(found)


def _cost(problem: Problem, huber: float, gyro: float, k1: float) -> float:
    length = np.linalg.norm(problem.errors(), axis=1)
    robust = np.where(length < huber, 0.5 * length**2, huber * (length - huber / 2)).sum()
    turned = 0.5 * float(((_turns(problem) / gyro) ** 2).sum())
    turned += 0.5 * float(((problem.bias / BIAS) ** 2).sum() + (problem.shift / SHIFT) ** 2)
    return float(robust) + turned + 0.5 * (problem.camera.k1 / k1) ** 2


class _System:
    """The normal equations at one state: cameras first (six a key frame, but none of the first), then the
    gyroscope's bias and its clock, then f and k1."""

    def __init__(self, problem: Problem, huber: float, gyro: float, lens: bool, k1_prior: float) -> None:
        self.problem, self.lens = problem, lens
        keys, points = len(problem.R), len(problem.X)
        self.biased = len(problem.turns) > 0
        self.size = 6 * keys + 4 * self.biased + 2 * lens
        local = problem.local()
        local[:, 2] = np.maximum(local[:, 2], 0.02)
        error = problem.errors()
        length = np.linalg.norm(error, axis=1)
        weight = np.where(length < huber, 1.0, huber / np.maximum(length, 1e-9))
        A, B, C = jacobians(problem, local)
        root = np.sqrt(weight)[:, None]
        r = error * root
        A, B, C = A * root[..., None], B * root[..., None], C * root[..., None]
        H = np.zeros((self.size, self.size))
        g = np.zeros(self.size)
        blocks = np.zeros((keys, 6, 6))
        np.add.at(blocks, problem.key, np.einsum("nri,nrj->nij", A, A))
        for at in range(keys):
            H[6 * at : 6 * at + 6, 6 * at : 6 * at + 6] = blocks[at]
        wanted = np.zeros((keys, 6))
        np.add.at(wanted, problem.key, np.einsum("nri,nr->ni", A, r))
        g[: 6 * keys] = wanted.ravel()
        V, b = np.zeros((points, 3, 3)), np.zeros((points, 3))
        np.add.at(V, problem.point, np.einsum("nri,nrj->nij", B, B))
        np.add.at(b, problem.point, np.einsum("nri,nr->ni", B, r))
        W = np.zeros((points, self.size, 3))
        place = 6 * problem.key[:, None] + np.arange(6)
        np.add.at(W, (problem.point[:, None], place), np.einsum("nri,nrj->nij", A, B))
        if lens:
            last = self.size - 2
            H[last:, last:] += np.einsum("nri,nrj->ij", C, C)
            H[last + 1, last + 1] += 1 / k1_prior**2
            g[last:] += np.einsum("nri,nr->i", C, r)
            g[last + 1] += problem.camera.k1 / k1_prior**2
            cross = np.zeros((keys, 6, 2))
            np.add.at(cross, problem.key, np.einsum("nri,nrj->nij", A, C))
            H[: 6 * keys, last:] += cross.reshape(-1, 2)
            H[last:, : 6 * keys] += cross.reshape(-1, 2).T
            mixed = np.zeros((points, 2, 3))
            np.add.at(mixed, problem.point, np.einsum("nri,nrj->nij", C, B))
            W[:, last:] += mixed
        if self.biased:
            self._turn(H, g, gyro)
        self.H, self.g, self.V, self.b, self.W = H, g, V, b, W

    def _turn(self, H: F64, g: F64, gyro: float) -> None:
        """The gyroscope's residuals: -R^T at the earlier key frame, I at the later, the gap at the bias, the
        change of its rate at its clock."""
        problem, weight = self.problem, 1 / gyro**2
        residual, at = _turns(problem), 6 * len(self.problem.R)
        for k, gap in enumerate(problem.gaps):
            one = -problem.R[k + 1].T @ problem.R[k]
            J = np.zeros((3, self.size))
            J[:, 6 * k : 6 * k + 3] = one
            J[:, 6 * k + 6 : 6 * k + 9] = np.eye(3)
            J[:, at : at + 3] = gap * np.eye(3)
            J[:, at + 3] = -(problem.rates[k + 1] - problem.turns[k].T @ problem.rates[k])
            used = [*range(6 * k, 6 * k + 3), *range(6 * k + 6, 6 * k + 9), *range(at, at + 4)]
            H[np.ix_(used, used)] += weight * J[:, used].T @ J[:, used]
            g[used] += weight * J[:, used].T @ residual[k]
        prior = np.array([*[1 / BIAS**2] * 3, 1 / SHIFT**2])
        H[range(at, at + 4), range(at, at + 4)] += prior
        g[at : at + 4] += prior * np.array([*problem.bias, problem.shift])

    def stepped(self, damping: float) -> Problem:
        """The state after a step."""
        problem = self.problem
        V = self.V + damping * np.eye(3) * (1e-6 + np.trace(self.V, axis1=1, axis2=2))[:, None, None]
        inverse = np.linalg.inv(V)
        WV = np.einsum("mai,mij->maj", self.W, inverse)
        flat = WV.transpose(1, 0, 2).reshape(self.size, -1)
        S = self.H - flat @ self.W.transpose(1, 0, 2).reshape(self.size, -1).T
        S = S + damping * np.diag(np.diag(self.H) + 1e-9)
        right = self.g - flat @ self.b.ravel()
        step = np.zeros(self.size)
        step[6:] = -np.linalg.solve(S[6:, 6:] + 1e-9 * np.eye(self.size - 6), right[6:])
        dX = -np.einsum("mij,mj->mi", inverse, self.b + np.einsum("mai,a->mi", self.W, step))
        keys = len(problem.R)
        moves = step[: 6 * keys].reshape(keys, 6)
        R = np.stack([one @ exp(move[:3]) for one, move in zip(problem.R, moves, strict=True)])
        bias, shift = problem.bias, problem.shift
        if self.biased:
            bias = bias + step[6 * keys : 6 * keys + 3]
            shift = float(np.clip(shift + step[6 * keys + 3], -0.1, 0.1))
        camera = problem.camera
        if self.lens:
            f, k1 = camera.f + float(step[-2]), camera.k1 + float(step[-1])
            f = float(np.clip(f, 0.3 * camera.width, 3.0 * camera.width))
            camera = Camera(
                f, camera.cx, camera.cy, camera.width, camera.height, float(np.clip(k1, -0.6, 0.6))
            )
        p, X = problem.p + moves[:, 3:], problem.X + dX
        return replace(problem, camera=camera, R=R, p=p, X=X, bias=bias, shift=shift)


def jacobians(problem: Problem, local: F64) -> tuple[F64, F64, F64]:
    """Of the pixels by (turn, place) of the key frame [n, 2, 6], by the point [n, 2, 3], by (f, k1) [n, 2,
    2]."""
    camera, n = problem.camera, len(local)
    flat = local[:, :2] / local[:, 2:]
    r2 = (flat**2).sum(1)
    bend = (1 + camera.k1 * r2)[:, None, None] * np.eye(2)
    bend = bend + 2 * camera.k1 * flat[:, :, None] * flat[:, None, :]
    drop = np.zeros((n, 2, 3))
    drop[:, 0, 0] = drop[:, 1, 1] = 1 / local[:, 2]
    drop[:, :, 2] = -flat / local[:, 2:]
    J = camera.f * bend @ drop
    cross = np.zeros((n, 3, 3))
    cross[:, 0, 1], cross[:, 0, 2] = -local[:, 2], local[:, 1]
    cross[:, 1, 0], cross[:, 1, 2] = local[:, 2], -local[:, 0]
    cross[:, 2, 0], cross[:, 2, 1] = -local[:, 1], local[:, 0]
    B = J @ problem.R[problem.key].transpose(0, 2, 1)
    A = np.concatenate([J @ cross, -B], 2)
    bent = flat * (1 + camera.k1 * r2)[:, None]
    C = np.stack([bent, camera.f * r2[:, None] * flat], 2)
    return A, B, C
