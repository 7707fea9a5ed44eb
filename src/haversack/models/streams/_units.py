"""Which units a window has: frames that are evenly spaced, chunks of samples, the share of them at a
checkpoint."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def planned_frames(sensed: int, wanted: int) -> NDArray[np.int64]:
    """Numbers of the `wanted` frames out of `sensed`: evenly spaced from the first to the last, truncated.

    >>> planned_frames(29, 20)[:6].tolist()
    [0, 1, 2, 4, 5, 7]
    """
    return np.linspace(0, sensed - 1, wanted).astype(np.int64)


def chunk_count(samples: int, size: int) -> int:
    """Chunks of `size` that hold `samples`; the last is padded with zeros.

    >>> [chunk_count(18_560, size) for size in (800, 1000, 1200)]
    [24, 19, 16]
    """
    return -(-samples // size)


def checkpoints(
    plan: NDArray[np.int64], period_s: float, ready_s: float, shares: tuple[float, ...]
) -> tuple[int, ...]:
    """How many of the planned frames are there when the gate may stop the rest: `shares` of them rounded up,
    but not before the fast sense has ended (`ready_s` from the window's begin), and never all.

    >>> checkpoints(planned_frames(30, 30), 1 / 30, 0.5, (0.5, 0.7, 0.9))
    (15, 21, 27)
    """
    arrive = (plan + 1) * period_s
    ready = int(np.searchsorted(arrive, ready_s - 1e-9)) + 1
    found = {max(math.ceil(share * len(plan) - 1e-9), ready) for share in shares}
    return tuple(sorted(count for count in found if count < len(plan)))
