"""A data set as HDF5, in the way of EgoDex: for each episode a file of transforms and a video beside it.

`part1/<task>/<i>.hdf5` holds `camera/intrinsic` [3, 3], `transforms/camera` [n, 4, 4] (camera to world),
`transforms/<joint>` [n, 4, 4] in the world, `confidences/<joint>` [n], and the task as attribute
`llm_description`; `<i>.mp4` is the episode's video, its packets as they were. Names of joints are those of
that data set [recalled]. The wrist's transform carries its turn, other joints only their place. Beyond it:
`state`, `action`, `gripper`.

Limits: lengths are those of our estimate; a frame whose hand is not known has confidence 0 and the identity.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.collect._rotations import from_rot6d
from haversack.collect.lerobot_reader import LeRobotV3
from haversack.collect.lerobot_v21 import cut_video, written
from haversack.core.errors import MissingExtraError, UserError

F64 = npt.NDArray[np.float64]
SYSTEM = 1
NEEDED = ("observation.state", "observation.hand_joints", "observation.camera_pose")
_PARTS = ("Knuckle", "IntermediateBase", "IntermediateTip", "Tip")
_FINGERS = ("Thumb", "IndexFinger", "MiddleFinger", "RingFinger", "LittleFinger")
JOINTS = ("Hand", *(f"{finger}{part}" for finger in _FINGERS for part in _PARTS))


def to_hdf5(source: Path, goal: Path) -> Path:
    """Write the labelled v3.0 set at `source`. Raises UserError for a set without hands, MissingExtraError
    without h5py."""
    try:
        import h5py
    except ImportError as error:
        raise MissingExtraError("collect export --format hdf5", "h5py", "embed") from error
    data = LeRobotV3(source)
    require(data)
    with written(goal) as root:
        counts: dict[str, int] = {}
        for episode in data.episodes:
            task = str(episode["tasks"][0])
            folder = re.sub(r"[^a-z0-9]+", "_", task.lower()).strip("_")[:80] or "task"
            number = counts[folder] = counts.get(folder, -1) + 1
            place = root / "part1" / folder
            place.mkdir(parents=True, exist_ok=True)
            with h5py.File(place / f"{number}.hdf5", "w") as file:
                _fill(file, data, episode)
                file.attrs["llm_description"] = task
                file.attrs["fps"] = data.fps
            for camera in data.cameras[:1]:
                cut_video(data, episode, camera, place / f"{number}.mp4")
    return goal


def require(data: LeRobotV3) -> None:
    """Raises UserError for a set without labels."""
    missing = [name for name in NEEDED if name not in data.features]
    if missing:
        raise UserError(
            f"{data.path} has no {missing[0]}; process the store with all stages and export again.",
            field="format",
        )


def camera_poses(rows: F64) -> F64:
    """[n, 4, 4] of places and quaternions [n, 7]."""
    w, x, y, z = rows[:, 3:].T
    T = np.tile(np.eye(4), (len(rows), 1, 1))
    T[:, :3, 0] = np.stack([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)], 1)
    T[:, :3, 1] = np.stack([2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)], 1)
    T[:, :3, 2] = np.stack([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)], 1)
    T[:, :3, 3] = rows[:, :3]
    return T


def _fill(file: Any, data: LeRobotV3, episode: dict[str, Any]) -> None:
    values = {
        name: data.values(episode, name) for name in data.features if data.features[name]["dtype"] != "video"
    }
    n = int(episode["length"])
    fx, fy, cx, cy = values["observation.camera_intrinsics"][0]
    file["camera/intrinsic"] = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float32)
    file["transforms/camera"] = camera_poses(values["observation.camera_pose"].astype(np.float64)).astype(
        np.float32
    )
    joints = values["observation.hand_joints"].reshape(n, 2, 21, 3)
    known = values["observation.hand_known"]
    state = values["observation.state"].reshape(n, 2, 24).astype(np.float64)
    for side, hand in enumerate(("left", "right")):
        sure = (values["observation.hand_confidence"][:, side] * known[:, side]).astype(np.float32)
        for number, name in enumerate(JOINTS):
            T = np.tile(np.eye(4, dtype=np.float32), (n, 1, 1))
            T[:, :3, 3] = joints[:, side, number]
            if number == 0:
                for frame in np.flatnonzero(known[:, side]).tolist():
                    T[frame, :3, :3] = from_rot6d(state[frame, side, 3:9])
            file[f"transforms/{hand}{name}"] = T
            file[f"confidences/{hand}{name}"] = sure
    for name, column in (
        ("state", "observation.state"),
        ("action", "action"),
        ("gripper", "observation.gripper"),
    ):
        file[name] = values[column]
