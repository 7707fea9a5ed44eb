"""A hand of MANO's file as our kinematic hand, and poses back in MANO's terms.

The file's joints at rest give the lengths and the palm; the pose of 21 joints becomes a turn of the wrist and
15 turns of joints [48] by the smallest turn that brings each bone from where its rest leaves it to where it
is. It is a pose of the flat hand (no mean is taken off). Of the ten shape parameters those of least size are
taken that give the bones the lengths of the person's hand.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from haversack.collect._hand_model import MANO_ORDER, Lengths
from haversack.collect._rotations import exp, log
from haversack.formats.mano import Mano

F64 = npt.NDArray[np.float64]
RIDGE = 1e-6
"""Of a shape parameter beside squared metres: a parameter of 1 for a millimetre."""


def axes(rest: F64) -> F64:
    """Our axes in the file's [3, 3] (columns) of a right hand at rest [21, 3]: x to the thumb, y along the
    fingers, z out of the palm."""
    y = rest[9] / np.linalg.norm(rest[9])
    x = rest[5] - rest[17]
    x = x - (x @ y) * y
    x /= np.linalg.norm(x)
    return np.stack([x, y, np.cross(x, y)], 1)


def right_hand(points: F64, right: bool) -> F64:
    """Joints of the file as those of a right hand."""
    return points if right else points * np.array([-1.0, 1.0, 1.0])


def lengths_of(hand: Mano) -> Lengths:
    """The kinematic hand with the file's lengths."""
    rest = right_hand(hand.rest, hand.right)
    own = rest @ axes(rest)
    chains = own[1:].reshape(5, 4, 3)
    steps = np.diff(chains, axis=1)
    return Lengths(chains[:, 0], np.linalg.norm(steps, axis=2), np.arctan2(steps[:, 0, 0], steps[:, 0, 1]))


def bones(rest: F64) -> F64:
    """Lengths [20] from the wrist to each finger's base and along the fingers."""
    chains = np.concatenate([np.broadcast_to(rest[0], (5, 1, 3)), rest[1:].reshape(5, 4, 3)], 1)
    return np.asarray(np.linalg.norm(np.diff(chains, axis=1), axis=2).ravel(), np.float64)


def betas_of(hand: Mano, size: float) -> F64:
    """Shape parameters [10] under which the bones are `size` times those at rest, by least squares."""
    wanted, found = size * bones(hand.rest), np.zeros(hand.moves.shape[2])
    for _ in range(5):
        here = bones(hand.shaped(found))
        J = np.stack(
            [(bones(hand.shaped(found + step)) - here) / 1e-4 for step in 1e-4 * np.eye(len(found))], 1
        )
        H = J.T @ J + RIDGE * np.eye(len(found))
        found = found + np.linalg.solve(H, J.T @ (wanted - here) - RIDGE * found)
    return found


def pose_of(points: F64, turn: F64, hand: Mano, right: bool) -> F64:
    """MANO's pose [48] of joints [21, 3] of the right hand or the left one, whose wrist is turned by `turn`
    [3, 3] from our axes."""
    flip = np.diag([1.0 if right else -1.0, 1.0, 1.0])
    points, turn, rest = points @ flip, flip @ turn @ flip, right_hand(hand.rest, hand.right)
    whole = turn @ axes(rest).T
    found = [log(whole)]
    for finger in MANO_ORDER:
        part, total = slice(1 + 4 * finger, 5 + 4 * finger), whole
        for here, straight in zip(np.diff(points[part], axis=0), np.diff(rest[part], axis=0), strict=True):
            w = least_turn(straight, total.T @ here)
            total = total @ exp(w)
            found.append(w)
    pose = np.concatenate(found)
    return pose if right else (pose.reshape(16, 3) * np.array([1.0, -1.0, -1.0])).ravel()


def least_turn(one: F64, other: F64) -> F64:
    """The smallest turn w [3] that brings one direction to another."""
    cross = np.cross(one, other)
    sine, cosine = float(np.linalg.norm(cross)), float(one @ other)
    if sine < 1e-12:
        return np.zeros(3)
    return np.asarray(cross / sine * np.arctan2(sine, cosine), np.float64)


def posed(pose: F64, rest: F64) -> F64:
    """Joints [21, 3] of a pose [48], as MANO poses its skeleton at rest [21, 3]."""
    whole, found = exp(pose[:3]), np.zeros((21, 3))
    for place, finger in enumerate(MANO_ORDER):
        first, total = 1 + 4 * finger, whole
        found[first] = whole @ rest[first]
        for bone in range(3):
            total = total @ exp(pose[3 + 9 * place + 3 * bone : 6 + 9 * place + 3 * bone])
            found[first + bone + 1] = found[first + bone] + total @ (
                rest[first + bone + 1] - rest[first + bone]
            )
    return found
