"""From a person's hands to a robot's: a parallel gripper, or a hand with fingers of its own.

Paper: AoE (arXiv 2602.23893), whose successor publishes such a tool; the algorithms are [inferred].

Gripper: its place is between thumb and index tips, its axes are index less thumb (across) and wrist to index
knuckle (forward), made square; opening = clip((|thumb - index| - 0.02) / 0.08, 0, 1). Fingers: for each frame
the joint angles q that least sum w |a v_human - v_robot(q)|^2 + 0.01 |q - q_before|^2, v from the palm to
each fingertip, inside the joints' limits, by projected Gauss-Newton. Both go to the robot's base by a fixed
transform; a pose outside the workspace is flagged. Actions are the next frame's delta: the logarithm of the
hand's motion in SE(3), and the gripper's change.

The robot is a TOML file: `kind` = "gripper" | "fingers", `hand` = "right" | "left", `base` (x, y, z, roll,
pitch, yaw of the world in the robot's base), `workspace` = [[low], [high]] in metres; for fingers `scale` (a)
and `[[finger]]` with `tip` (thumb, index, middle, ring, little), `base` [3], `axes` [[3] per joint], `links`
[m per joint], `limits`.

Limits: the arm's own kinematics are the robot's; the result is checked by its workspace, not by its reach.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.collect._extra import need
from haversack.collect._rotations import exp, log
from haversack.collect.hdf5_export import require
from haversack.collect.lerobot_reader import LeRobotV3
from haversack.collect.lerobot_v21 import written
from haversack.core.errors import UserError, not_allowed

F64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]
SYSTEM = 1
TIPS = {"thumb": 4, "index": 8, "middle": 12, "ring": 16, "little": 20}
HANDS = ("left", "right")


@dataclass(frozen=True)
class Finger:
    """A chain: joint k turns about `axes[k]` and carries a link of `links[k]` along its own x. `tip`: whose
    it follows."""

    tip: str
    base: F64
    axes: F64
    links: F64
    low: F64
    high: F64

    def point(self, q: F64) -> F64:
        """Where the tip is in the palm's axes [3]."""
        R, at = np.eye(3), self.base.copy()
        for axis, link, angle in zip(self.axes, self.links, q, strict=True):
            R = R @ exp(axis * angle)
            at = at + R @ np.array([link, 0.0, 0.0])
        return at


@dataclass(frozen=True)
class Robot:
    """What a TOML file says; R and t bring a point of the world into the robot's base."""

    kind: str
    hand: str
    R: F64
    t: F64
    low: F64
    high: F64
    scale: float = 1.0
    fingers: tuple[Finger, ...] = ()


@dataclass
class Retargeted:
    """What was written: episodes, frames, frames outside the workspace or without a hand, mean residual of
    the fingertips in metres (0 for a gripper)."""

    path: str
    episodes: int = 0
    frames: int = 0
    outside: int = 0
    unknown: int = 0
    residual_m: float = 0.0


# ---- the maths


def gripper_pose(joints: F64) -> tuple[F64, F64, F64]:
    """Turns [n, 3, 3], places [n, 3] and openings [n] of joints [n, 21, 3]."""
    thumb, index = joints[:, 4], joints[:, 8]
    across = index - thumb
    forward = joints[:, 5] - joints[:, 0]
    apart = np.linalg.norm(across, axis=1)
    y = across / np.maximum(apart, 1e-9)[:, None]
    x = forward - (forward * y).sum(1, keepdims=True) * y
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)
    R = np.stack([x, y, np.cross(x, y)], 2)
    return R, (thumb + index) / 2, np.clip((apart - 0.02) / 0.08, 0, 1)


def palm_frame(joints: F64) -> tuple[F64, F64]:
    """Turns [n, 3, 3] and places [n, 3] of the palm: x to the middle knuckle, y to the index's side."""
    x = joints[:, 9] - joints[:, 0]
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)
    y = joints[:, 5] - joints[:, 17]
    y = y - (y * x).sum(1, keepdims=True) * x
    y = y / np.maximum(np.linalg.norm(y, axis=1, keepdims=True), 1e-9)
    return np.stack([x, y, np.cross(x, y)], 2), joints[:, 0]


def finger_angles(finger: Finger, wanted: F64, before: F64, rounds: int = 12) -> tuple[F64, float]:
    """Angles that bring the tip to `wanted` [3], near `before` and inside the limits; what is left in
    metres."""
    q = before.copy()
    for _ in range(rounds):
        here = finger.point(q)
        J = np.stack([(finger.point(q + step) - here) / 1e-5 for step in 1e-5 * np.eye(len(q))], 1)
        H = J.T @ J + (0.01 * 1e-2 + 1e-9) * np.eye(len(q))
        g = J.T @ (here - wanted) + 0.01 * 1e-2 * (q - before)
        free = ~(((q <= finger.low + 1e-9) & (g > 0)) | ((q >= finger.high - 1e-9) & (g < 0)))
        if not free.any():
            break
        step = np.zeros(len(q))
        step[free] = -np.linalg.solve(H[np.ix_(free, free)], g[free])
        new = np.clip(q + np.clip(step, -0.5, 0.5), finger.low, finger.high)
        if np.abs(new - q).max() < 1e-7:
            break
        q = new
    return q, float(np.linalg.norm(finger.point(q) - wanted))


def deltas(R: F64, p: F64, known: Bool) -> F64:
    """The motion to the next frame [n, 6] in the hand's own axes, (translation, rotation vector) of the SE(3)
    logarithm; 0 at the last one and where either is unknown."""
    found = np.zeros((len(R), 6))
    for at in range(len(R) - 1):
        if known[at] and known[at + 1]:
            w = log(R[at].T @ R[at + 1])
            found[at] = np.concatenate([_left_inverse(w) @ (R[at].T @ (p[at + 1] - p[at])), w])
    return found


def _left_inverse(w: F64) -> F64:
    """The inverse of SE(3)'s V matrix at a rotation vector."""
    t = float(np.linalg.norm(w))
    cross = np.array([[0, -w[2], w[1]], [w[2], 0, -w[0]], [-w[1], w[0], 0]])
    if t < 1e-5:
        return np.asarray(np.eye(3) - cross / 2 + cross @ cross / 12, np.float64)
    factor = 1 / t**2 - (1 + np.cos(t)) / (2 * t * np.sin(t))
    return np.asarray(np.eye(3) - cross / 2 + factor * cross @ cross, np.float64)


# ---- robots and sets


def read_robot(path: Path) -> Robot:
    """The robot of a TOML file. Raises UserError for one that does not hold."""
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path} is no robot ({error}).", field="robot", given=str(path)) from error
    kind, hand = said.get("kind"), said.get("hand", "right")
    if kind not in ("gripper", "fingers"):
        raise not_allowed("kind", kind, ("gripper", "fingers"))
    if hand not in HANDS:
        raise not_allowed("hand", hand, HANDS)
    base = _numbers(said, "base", (6,), np.zeros(6))
    workspace = _numbers(said, "workspace", (2, 3), np.array([[-10.0] * 3, [10.0] * 3]))
    roll, pitch, yaw = base[3:]
    R = exp(np.array([0, 0, yaw])) @ exp(np.array([0, pitch, 0])) @ exp(np.array([roll, 0, 0]))
    fingers = []
    for one in said.get("finger", []):
        if one.get("tip") not in TIPS:
            raise not_allowed("tip", one.get("tip"), tuple(TIPS))
        count = len(one.get("links", []))
        axes = _numbers(one, "axes", (count, 3))
        limits = _numbers(one, "limits", (count, 2))
        if count < 1 or (limits[:, 0] > limits[:, 1]).any() or (np.linalg.norm(axes, axis=1) < 1e-6).any():
            raise UserError(f"finger {one['tip']}: links, axes or limits do not hold.", field="finger")
        axes = axes / np.linalg.norm(axes, axis=1, keepdims=True)
        links, place = _numbers(one, "links", (count,)), _numbers(one, "base", (3,))
        fingers.append(Finger(one["tip"], place, axes, links, limits[:, 0], limits[:, 1]))
    if kind == "fingers" and not fingers:
        raise UserError(f"{path} has no [[finger]].", field="finger", given=str(path))
    return Robot(
        kind, hand, R, base[:3], workspace[0], workspace[1], float(said.get("scale", 1.0)), tuple(fingers)
    )


def _numbers(said: Mapping[str, Any], name: str, shape: tuple[int, ...], default: F64 | None = None) -> F64:
    if name not in said and default is not None:
        return default
    try:
        found = np.asarray(said.get(name), np.float64)
    except (TypeError, ValueError):
        found = np.zeros(0)
    if found.shape != shape or not np.isfinite(found).all():
        raise UserError(f"{name} is not {list(shape)} numbers.", field=name)
    return found


def follow(robot: Robot, joints: F64, known: Bool) -> tuple[dict[str, F64], Bool, float]:
    """The robot's columns of joints [n, 21, 3] in the world, which frames are inside the workspace, and the
    mean residual of its fingertips."""
    local = joints @ robot.R.T + robot.t
    R, p, opening = gripper_pose(local)
    columns: dict[str, F64] = {}
    residuals: list[float] = []
    if robot.kind == "gripper":
        hand = opening[:, None]
    else:
        R, p = palm_frame(local)
        hand = np.zeros((len(local), sum(len(finger.links) for finger in robot.fingers)))
        q = [np.clip(np.zeros(len(f.links)), f.low, f.high) for f in robot.fingers]
        for frame in range(len(local)):
            if known[frame]:
                for at, finger in enumerate(robot.fingers):
                    v = R[frame].T @ (local[frame, TIPS[finger.tip]] - p[frame])
                    q[at], left = finger_angles(finger, robot.scale * v, q[at])
                    residuals.append(left)
            hand[frame] = np.concatenate(q)
    pose = np.stack([np.concatenate([at, log(turn)]) for at, turn in zip(p, R, strict=True)])
    columns["state"] = np.where(known[:, None], np.concatenate([pose, hand], 1), 0)
    change = np.diff(hand, axis=0, append=hand[-1:]) * known[:, None]
    columns["action"] = np.concatenate([deltas(R, p, known), change], 1)
    inside = known & (p >= robot.low).all(1) & (p <= robot.high).all(1)
    return columns, inside, float(np.mean(residuals)) if residuals else 0.0


def retarget(source: Path, robot: Robot, goal: Path) -> Retargeted:
    """Write `episode_NNNNNN.parquet` for each episode of a labelled v3.0 set, and `retarget.json`. Raises
    UserError for a set without hands."""
    data = LeRobotV3(source)
    require(data)
    pa, parquet = need("pyarrow"), need("pyarrow.parquet")
    done, lefts = Retargeted(str(goal)), []
    side = HANDS.index(robot.hand)
    with written(goal) as root:
        for episode in data.episodes:
            n = int(episode["length"])
            joints = data.values(episode, "observation.hand_joints").reshape(n, 2, 21, 3)[:, side]
            known = data.values(episode, "observation.hand_known")[:, side].astype(bool)
            columns, inside, left = follow(robot, joints.astype(np.float64), known)
            table = pa.table(
                {
                    "timestamp": pa.array(np.arange(n) / data.fps, pa.float32()),
                    **{name: _vectors(pa, values) for name, values in columns.items()},
                    **{"known": pa.array(known), "inside": pa.array(inside)},
                }
            )
            parquet.write_table(table, root / f"episode_{int(episode['episode_index']):06d}.parquet")
            done.episodes, done.frames = done.episodes + 1, done.frames + n
            done.outside += int((known & ~inside).sum())
            done.unknown += int((~known).sum())
            lefts.append(left)
        done.residual_m = float(np.mean(lefts)) if lefts else 0.0
        record = {"kind": robot.kind, "hand": robot.hand, "source": source.name, **vars(done)}
        (root / "retarget.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return done


def _vectors(pa: Any, values: F64) -> Any:
    flat = pa.array(values.astype(np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
