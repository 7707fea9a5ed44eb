"""What the stages found about a clip, as columns of an episode: states, actions, hands, camera, verbs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.collect._camera import Camera
from haversack.collect.bundle import Manifest
from haversack.collect.lerobot_v3 import Feature
from haversack.collect.stages.c3_trajectory import CAMERA, POSES
from haversack.collect.stages.c4_hands import HANDS
from haversack.collect.stages.c5_actions import SIDES, VERBS
from haversack.collect.stages.c6_captions import CAPTION

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
LABELLED = ("c3-trajectory", "c4-hands", "c6-captions")
TIPS = (4, 8, 12, 16, 20)
_FINGERS = ("thumb", "index", "middle", "ring", "little")
_STATE = (
    *("wrist_x", "wrist_y", "wrist_z", "r11", "r21", "r31", "r12", "r22", "r32"),
    *(f"{finger}_{axis}" for finger in _FINGERS for axis in "xyz"),
)


def features() -> dict[str, Feature]:
    """The columns: lengths in metres, the world's z up, of both hands the left one first. Arrays of several
    axes stand in one, last axis fastest: hand_joints is [2, 21, 3], mano_pose [2, 48]."""
    names = tuple(f"{side}_{part}" for side in SIDES for part in _STATE)
    return {
        "observation.state": Feature("float32", (48,), names),
        "action": Feature("float32", (48,), names),
        "observation.camera_pose": Feature("float32", (7,), ("x", "y", "z", "qw", "qx", "qy", "qz")),
        "observation.camera_intrinsics": Feature("float32", (4,), ("fx", "fy", "cx", "cy")),
        "observation.hand_joints": Feature("float32", (126,)),
        "observation.mano_pose": Feature("float32", (96,)),
        "observation.mano_betas": Feature("float32", (20,)),
        "observation.mano_trans": Feature("float32", (6,)),
        "observation.hand_confidence": Feature("float32", (2,), SIDES),
        "observation.hand_known": Feature("bool", (2,), SIDES),
        "observation.gripper": Feature("float32", (2,), SIDES),
        "annotation.action_id": Feature("int64", (2,), SIDES),
    }


def labelled(stages: Mapping[str, Path]) -> bool:
    """Whether a clip's stages found all of it."""
    return all(name in stages for name in LABELLED)


def columns(
    stages: Mapping[str, Path], manifest: Manifest, chosen: I64
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The columns of the frames `chosen`, and the caption."""
    with np.load(stages["c3-trajectory"] / POSES) as file:
        R, p, valid = file["R"][chosen], file["p"][chosen], file["valid"][chosen]
    with np.load(stages["c4-hands"] / HANDS) as file:
        hands = {name: file[name][chosen] if name != "betas" else file[name] for name in file.files}
    said = json.loads((stages["c3-trajectory"] / CAMERA).read_text(encoding="utf-8"))
    caption: dict[str, Any] = json.loads((stages["c6-captions"] / CAPTION).read_text(encoding="utf-8"))
    n, known = len(chosen), hands["valid"]
    camera = Camera(*(said[name] for name in ("f", "cx", "cy", "width", "height", "k1")))
    whole = camera.scaled(manifest.width, manifest.height)
    upright, centre = turned(whole, manifest.rotation)
    state = states(hands["world"], hands["turn"], known)
    seconds = (hands["t_ns"] - hands["t_ns"][0]) * 1e-9
    pose = np.concatenate([p, quaternions(R @ upright.T)], 1)
    found = {
        **{"observation.state": state, "action": actions(state, known), "observation.camera_pose": pose},
        "observation.camera_intrinsics": np.tile([whole.f, whole.f, *centre], (n, 1)),
        "observation.hand_joints": hands["world"].reshape(n, 126),
        "observation.mano_pose": hands["mano_pose"].reshape(n, 96),
        "observation.mano_betas": np.tile(hands["betas"].ravel(), (n, 1)),
        "observation.mano_trans": (hands["joints"][:, :, 0] * known[..., None]).reshape(n, 6),
        "observation.hand_confidence": hands["confidence"],
        "observation.hand_known": known & valid[:, None],
        "observation.gripper": hands["grip"] * known,
        "annotation.action_id": action_ids(caption["actions"], seconds),
    }
    return found, caption


def turned(camera: Camera, rotation: int) -> tuple[F64, tuple[float, float]]:
    """The turn of a camera's axes, and its centre, when its pictures are turned clockwise by `rotation`
    degrees."""
    M, cx, cy, height, width = np.eye(3), camera.cx, camera.cy, camera.height, camera.width
    for _ in range(rotation // 90):
        M = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]) @ M
        cx, cy, height, width = height - 1 - cy, cx, width, height
    return M, (cx, cy)


def states(world: F64, turn: F64, known: npt.NDArray[np.bool_]) -> F64:
    """[n, 48] of joints [n, 2, 21, 3] and wrists' turns [n, 2, 3, 3] in the world; 0 for a hand that is not
    known."""
    n = len(world)
    six = turn[..., :2].swapaxes(-1, -2).reshape(n, 2, 6)
    parts = [world[:, :, 0], six, world[:, :, TIPS].reshape(n, 2, 15)]
    return np.asarray((np.concatenate(parts, 2) * known[..., None]).reshape(n, 48), np.float64)


def actions(state: F64, known: npt.NDArray[np.bool_]) -> F64:
    """The next state less this one, rotations as the six numbers of R_t^T R_t+1; where either is unknown, and
    at the last frame, nothing moves."""
    n = len(state)
    hands = state.reshape(n, 2, 24)
    made = np.zeros((n, 2, 24))
    made[:, :, [3, 7]] = 1.0
    both = known[:-1] & known[1:]
    move = hands[1:] - hands[:-1]
    columns = hands[..., 3:9].reshape(n, 2, 2, 3)
    third = np.cross(columns[:, :, 0], columns[:, :, 1])
    R = np.stack([columns[:, :, 0], columns[:, :, 1], third], -1)
    relative = R[:-1].swapaxes(-1, -2) @ R[1:]
    move[..., 3:9] = relative[..., :2].swapaxes(-1, -2).reshape(n - 1, 2, 6)
    made[:-1] = np.where(both[..., None], move, made[:-1])
    return made.reshape(n, 48)


def quaternions(R: F64) -> F64:
    """(w, x, y, z) [n, 4] with w >= 0."""
    m = R
    w = np.sqrt(np.maximum(0, 1 + m[:, 0, 0] + m[:, 1, 1] + m[:, 2, 2])) / 2
    x = np.sqrt(np.maximum(0, 1 + m[:, 0, 0] - m[:, 1, 1] - m[:, 2, 2])) / 2
    y = np.sqrt(np.maximum(0, 1 - m[:, 0, 0] + m[:, 1, 1] - m[:, 2, 2])) / 2
    z = np.sqrt(np.maximum(0, 1 - m[:, 0, 0] - m[:, 1, 1] + m[:, 2, 2])) / 2
    q = np.stack(
        [
            w,
            np.copysign(x, m[:, 2, 1] - m[:, 1, 2]),
            np.copysign(y, m[:, 0, 2] - m[:, 2, 0]),
            np.copysign(z, m[:, 1, 0] - m[:, 0, 1]),
        ],
        1,
    )
    return np.asarray(q / np.linalg.norm(q, axis=1, keepdims=True), np.float64)


def action_ids(rows: list[dict[str, Any]], seconds: F64) -> I64:
    """The place in VERBS of what each hand does at each moment [n, 2], -1 for nothing."""
    found = np.full((len(seconds), 2), -1, np.int64)
    for row in rows:
        inside = (seconds >= row["t0"] - 1e-6) & (seconds < row["t1"] - 1e-6)
        for side in (0, 1) if row["hand"] == "both" else (SIDES.index(row["hand"]),):
            found[inside, side] = VERBS.index(row["verb"])
    return found
