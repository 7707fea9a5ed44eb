"""How large a hand is, from a hand at rest before a camera that moves.

One picture knows a hand's size only from people in general (a prior of 1, 95 mm from wrist to middle
knuckle). But the camera's path is in metres: where the palm rests in the world for a while, its rays from
several places meet in one point, whose distance is metric, and the ratio to the distance of a hand of size 1
is the size. [inferred]

Every stretch of SPAN_S seconds is tried: the point nearest to its rays, the ratio, and how far the rays miss
it. A stretch counts where they meet within REST_M, from a base of at least BASE_M across them, at a ratio
that a hand may have; its weight is base^2 over error^2. The weighted median and the prior, by their
precisions, give the size.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]
PALM = [0, 5, 9, 13, 17]
SPAN_S, REST_M, BASE_M = 0.8, 0.004, 0.012
NOISE_M, ALIKE = 0.003, 4
"""Of the palm's place across a ray, and how many frames on end share it."""
PRIOR, NARROWEST = 0.06, 0.01
"""Standard deviations: of people's hands, and of the best estimate."""
SMALLEST, LARGEST = 0.85, 1.15


def ratio(rays: F64, places: F64, distance: F64) -> tuple[float, float, float]:
    """Of unit rays [n, 3] from places [n, 3]: the distance of the point where they meet over `distance` [n],
    the RMS of how far they miss it, and the RMS of the places' spread across the rays (m)."""
    across = np.eye(3) - rays[:, :, None] * rays[:, None, :]
    M = across.sum(0)
    if np.linalg.cond(M) > 1e6:
        return float("nan"), float("inf"), 0.0
    point = np.linalg.solve(M, np.einsum("nij,nj->i", across, places))
    miss = np.einsum("nij,nj->ni", across, point - places)
    spread = np.einsum("nij,nj->ni", across, places - places.mean(0))
    away = np.einsum("ni,ni->n", rays, point - places)
    return (
        float(np.median(away / distance)),
        float(np.sqrt((miss**2).sum(1).mean())),
        float(np.sqrt((spread**2).sum(1).mean())),
    )


def hand_size(joints: F64, valid: Bool, R_wc: F64, p_wc: F64, t_s: F64) -> tuple[float, float]:
    """The size of a person's hands and its standard deviation, from joints [n, 2, 21, 3] in camera axes of
    hands of size 1, and the camera's poses."""
    found, weights = [], []
    for side in (0, 1):
        palm = joints[:, side][:, PALM].mean(1)
        distance = np.linalg.norm(palm, axis=1)
        rays = np.einsum("nij,nj->ni", R_wc, palm / np.maximum(distance, 1e-9)[:, None])
        ends = np.searchsorted(t_s, t_s + SPAN_S)
        for begin in range(0, len(t_s), 2):
            part = slice(begin, int(ends[begin]))
            if ends[begin] >= len(t_s) or not valid[part, side].all() or part.stop - begin < 6:
                continue
            s, miss, base = ratio(rays[part], p_wc[part], distance[part])
            if miss < REST_M and base > BASE_M and SMALLEST < s < LARGEST:
                found.append(s)
                weights.append(base**2 / (miss**2 + NOISE_M**2))
    if not found:
        return 1.0, PRIOR
    order = np.argsort(found)
    ratios, w = np.asarray(found)[order], np.asarray(weights)[order]
    middle = float(ratios[min(int(np.searchsorted(np.cumsum(w), w.sum() / 2)), len(w) - 1)])
    # every second frame begins a stretch, and of a stretch's frames every fourth has noise of its own
    deviation = max(NARROWEST, 1.25 / float(np.sqrt(w.sum() * 2 / ALIKE)))
    mean = (middle / deviation**2 + 1 / PRIOR**2) / (1 / deviation**2 + 1 / PRIOR**2)
    return mean, float(1 / np.sqrt(1 / deviation**2 + 1 / PRIOR**2))
