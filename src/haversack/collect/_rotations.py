"""Rotations as the field writes them: exponential and logarithm, six numbers, integrated gyroscope."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
_SMALL = 1e-6


def skew(w: F64) -> F64:
    """[w]x, so that skew(w) v = w x v."""
    return np.array([[0, -w[2], w[1]], [w[2], 0, -w[0]], [-w[1], w[0], 0]], np.float64)


def exp(w: F64) -> F64:
    """The rotation [3, 3] about w [3] by |w| radians: I + sin t / t [w]x + (1 - cos t) / t^2 [w]x^2."""
    t = float(np.linalg.norm(w))
    cross = skew(w)
    if t < _SMALL:
        a, b = 1 - t * t / 6, 0.5 - t * t / 24
    else:
        a, b = float(np.sin(t)) / t, (1 - float(np.cos(t))) / t**2
    return np.asarray(np.eye(3) + a * cross + b * cross @ cross, np.float64)


def log(R: F64) -> F64:
    """The inverse of `exp`, |w| in [0, pi]; near pi the axis is read from the symmetric part."""
    t = float(np.arccos(np.clip((np.trace(R) - 1) / 2, -1.0, 1.0)))
    axis = np.array([R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1]], np.float64)
    if t < _SMALL:
        return np.asarray(0.5 * axis, np.float64)
    if np.pi - t > 1e-4:
        return np.asarray(t / (2 * np.sin(t)) * axis, np.float64)
    outer = (R + np.eye(3)) / 2
    at = int(np.argmax(np.diag(outer)))
    found = outer[:, at] / np.sqrt(max(outer[at, at], 1e-12))
    sign = 1.0 if float(found @ axis) >= 0 else -1.0
    return np.asarray(sign * t / float(np.linalg.norm(found)) * found, np.float64)


def rot6d(R: F64) -> F64:
    """The first two columns, stacked: [6]."""
    return np.concatenate([R[:, 0], R[:, 1]])


def from_rot6d(six: F64) -> F64:
    """The rotation whose first two columns are nearest, by Gram-Schmidt."""
    first = six[:3] / np.linalg.norm(six[:3])
    second = six[3:] - (first @ six[3:]) * first
    second = second / np.linalg.norm(second)
    return np.stack([first, second, np.cross(first, second)], axis=1)


def integrated(
    t_ns: npt.NDArray[np.int64], gyro: F64, begin_ns: int, end_ns: int, bias: F64 | None = None
) -> F64:
    """The rotation of the body from `begin_ns` to `end_ns`, R = prod exp((gyro - bias) dt): what a vector in
    the body's axes at the end is in those at the beginning. `gyro` [n, 3] rad/s, each sample held until
    the next; identity without samples."""
    R = np.eye(3)
    if not len(t_ns) or end_ns <= begin_ns:
        return R
    first = max(0, int(np.searchsorted(t_ns, begin_ns, side="right")) - 1)
    last = int(np.searchsorted(t_ns, end_ns, side="left"))
    for at in range(first, max(last, first + 1)):
        begin = max(int(t_ns[at]), begin_ns) if at > first else begin_ns
        end = min(int(t_ns[at + 1]), end_ns) if at + 1 < len(t_ns) else end_ns
        rate = gyro[at] if bias is None else gyro[at] - bias
        R = R @ exp(rate * (max(0, end - begin) / 1e9))
    return R
