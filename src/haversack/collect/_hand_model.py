"""The house's own hand: 21 joints, 20 angles, lengths of an average adult in `hand.json`; MANO's parameters
out.

Joints are wrist, then thumb to little finger, four each (base to tip). A right hand's axes: x towards the
thumb, y along the fingers, z out of the palm; a left hand is its mirror image in x. A finger has two angles
at its base (spread about z, flexion about x) and one at each of the next two joints. `mano` gives the same
pose as MANO has it: a turn of the wrist and 15 turns of joints (index, middle, little, ring, thumb; three
each) as axis-angle, [48].
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from haversack.collect._rotations import exp, log

F64 = npt.NDArray[np.float64]
ANGLES = 20
SPREAD, FLEX = 0, 1
"""Of a finger's four angles: spread, then flexion at the base and the two joints after it."""
LOW = np.tile(np.radians([-25.0, -20.0, -5.0, -5.0]), 5)
HIGH = np.tile(np.radians([25.0, 95.0, 110.0, 85.0]), 5)
MANO_ORDER = (1, 2, 4, 3, 0)
"""MANO's fingers, as ours."""


class Lengths(NamedTuple):
    """Of a hand: bases of the fingers [5, 3] and bones [5, 3] in metres, resting spread [5] in radians."""

    bases: F64
    bones: F64
    rest: F64


@cache
def lengths() -> Lengths:
    """Those of an average adult."""
    record = json.loads(files("haversack.collect").joinpath("hand.json").read_text(encoding="utf-8"))
    return Lengths(
        np.asarray(record["bases_m"], np.float64),
        np.asarray(record["bones_m"], np.float64),
        np.radians(np.asarray(record["spread_deg"], np.float64)),
    )


def joints(angles: F64, size: float | F64 = 1.0, hand: Lengths | None = None) -> F64:
    """Joints [n, 21, 3] of right hands in their own axes, wrist at 0, for `angles` [n, 20]; of an average
    adult without a `hand`."""
    bases, bones, rest = hand or lengths()
    four = angles.reshape(-1, 5, 4)
    turn = -rest + four[..., SPREAD]
    bend = np.cumsum(four[..., FLEX:], axis=-1)
    along = np.stack(
        [
            -np.sin(turn)[..., None] * np.cos(bend),
            np.cos(turn)[..., None] * np.cos(bend),
            np.sin(bend),
        ],
        -1,
    )
    chain = bases[None, :, None, :] + np.concatenate(
        [np.zeros((len(four), 5, 1, 3)), np.cumsum(along * bones[None, :, :, None], axis=2)], 2
    )
    found = np.concatenate([np.zeros((len(four), 1, 3)), chain.reshape(len(four), 20, 3)], 1)
    return np.asarray(found * np.asarray(size, np.float64).reshape(-1, 1, 1), np.float64)


def mirrored(points: F64, right: bool) -> F64:
    """A right hand's points as those of the side."""
    return points if right else points * np.array([-1.0, 1.0, 1.0])


def mano(R: F64, angles: F64, right: bool) -> F64:
    """MANO's pose [48]: the wrist's turn R [3, 3] and the fingers' [20] as axis-angle."""
    _, _, rest = lengths()
    found = [log(R)]
    for finger in MANO_ORDER:
        spread, *flex = angles.reshape(5, 4)[finger]
        own = exp(np.array([0.0, 0.0, -rest[finger]]))
        turns = [np.array([0.0, 0.0, spread]), np.zeros(3), np.zeros(3)]
        for bone in range(3):
            local = exp(turns[bone]) @ exp(np.array([flex[bone], 0.0, 0.0]))
            w = log(own @ local @ own.T)
            found.append(w if right else w * np.array([1.0, -1.0, -1.0]))
    return np.concatenate(found)


def grip(points: F64) -> F64:
    """How far thumb and index tips [..., 21, 3] are apart: 0 at 20 mm, 1 at 100 mm."""
    apart = np.linalg.norm(points[..., 4, :] - points[..., 8, :], axis=-1)
    return np.asarray(np.clip((apart - 0.02) / 0.08, 0, 1), np.float64)
