"""A hand of 21 joints for pictures: wrist, then thumb to little finger, four joints each.

Lengths in metres of an average adult. The hand's own axes: x towards the thumb of a right hand, y along the
fingers, z out of the palm.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from haversack.collect._rotations import exp

F64 = npt.NDArray[np.float64]
BASES = np.array(
    [(0.030, 0.025, 0.010), (0.026, 0.092, 0), (0.002, 0.095, 0), (-0.020, 0.090, 0), (-0.040, 0.080, 0)]
)
BONES = np.array(
    [
        (0.045, 0.034, 0.028),
        (0.042, 0.026, 0.022),
        (0.047, 0.029, 0.023),
        (0.043, 0.028, 0.023),
        (0.034, 0.021, 0.02),
    ]
)
SPREAD = np.radians([55.0, 8.0, 0.0, -8.0, -16.0])
CLOSED = np.radians([(25.0, 40.0, 35.0), *[(62.0, 75.0, 40.0)] * 4])
"""Flexion of a finger's three joints when the hand is closed."""
PARENT = np.array([-1, 0, 1, 2, 3, 0, 5, 6, 7, 0, 9, 10, 11, 0, 13, 14, 15, 0, 17, 18, 19])


def joints(closed: float, right: bool, size: float = 1.0) -> F64:
    """Joints [21, 3] in the hand's axes, wrist at 0; `closed` from 0 (flat) to 1 (fist)."""
    found = np.zeros((21, 3))
    for finger in range(5):
        at = BASES[finger]
        found[1 + 4 * finger] = at
        direction = exp(np.array([0.0, 0.0, -SPREAD[finger]]))
        bend = 0.12
        for bone in range(3):
            bend += closed * CLOSED[finger, bone]
            step = direction @ exp(np.array([bend, 0.0, 0.0])) @ np.array([0.0, 1.0, 0.0])
            at = at + BONES[finger, bone] * step
            found[2 + 4 * finger + bone] = at
    if not right:
        found[:, 0] *= -1
    return found * size
