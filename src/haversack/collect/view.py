"""An episode as one HTML page: pictures with the hands' joints over them, the path from above, the actions.

Everything is in the page (pictures as JPEG, drawings as SVG and a canvas, no address is asked for), so it can
be sent. Joints are those of the data set in the world, brought back into the picture by the camera's pose and
K: where they lie beside the hands, something is wrong in between.

Limits: at most `most` pictures, evenly spread; distortion is not applied.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.collect import _labels
from haversack.collect._books import Books
from haversack.collect._captioner import jpeg
from haversack.collect._objects import objects_of
from haversack.collect._tables import read_table
from haversack.collect.bundle import parse_manifest
from haversack.collect.export import frames_at, grid
from haversack.collect.hdf5_export import camera_poses, require
from haversack.collect.lerobot_reader import LeRobotV3
from haversack.core._files import write_atomically
from haversack.core.errors import UserError

F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]
SYSTEM = 1
WIDE = 480
SHOWN = (
    *("observation.hand_joints", "observation.hand_known", "observation.camera_pose"),
    *("observation.camera_intrinsics", "observation.gripper"),
)


def seen(joints: F64, T_wc: F64, K: F64) -> F64:
    """Pixels [n, k, 2] of world points [n, k, 3] for poses [n, 4, 4] and (fx, fy, cx, cy); NaN behind the
    camera."""
    local = np.einsum("nji,nkj->nki", T_wc[:, :3, :3], joints - T_wc[:, None, :3, 3])
    depth = np.where(local[..., 2] > 0.02, local[..., 2], np.nan)
    return np.stack([K[0] * local[..., 0] / depth + K[2], K[1] * local[..., 1] / depth + K[3]], -1)


def record_of(data: LeRobotV3, episode: dict[str, Any], most: int) -> dict[str, Any]:
    """What the page shows of an episode of a set."""
    note = data.path / "meta" / "annotations.json"
    said: dict[str, Any] = (
        json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {"episodes": []}
    )
    captions = [one for one in said["episodes"] if one["episode_index"] == episode["episode_index"]]
    return record(
        {name: data.values(episode, name) for name in SHOWN},
        data.pictures(episode, data.cameras[0]),
        captions[0] if captions else {},
        fps=data.fps,
        task=str(episode["tasks"][0]),
        number=int(episode["episode_index"]),
        most=most,
    )


def record(
    values: Mapping[str, npt.NDArray[Any]],
    pictures: Iterator[U8],
    caption: Mapping[str, Any],
    *,
    fps: float,
    task: str,
    number: int,
    most: int,
) -> dict[str, Any]:
    """What the page shows: of columns SHOWN, an episode's pictures in order, and its caption."""
    n = len(values["observation.hand_known"])
    wanted = np.unique(np.round(np.linspace(0, n - 1, min(n, most))).astype(int))
    poses = camera_poses(values["observation.camera_pose"].astype(np.float64))
    joints = values["observation.hand_joints"].reshape(n, 42, 3).astype(np.float64)
    flat = seen(joints, poses, values["observation.camera_intrinsics"][0].astype(np.float64))
    known = np.repeat(values["observation.hand_known"].astype(bool), 21, 1)
    flat = np.where(known[..., None], flat, np.nan)
    shots, size = [], (0, 0)
    inside = set(wanted.tolist())
    for at, picture in enumerate(pictures):
        if at in inside:
            size = (picture.shape[1], picture.shape[0])
            step = max(1, round(picture.shape[1] / WIDE))
            shots.append(base64.b64encode(jpeg(picture[::step, ::step])).decode())
    wrists = np.where(known[:, [0, 21]][..., None], joints[:, [0, 21]], np.nan)
    return {
        **{"episode": number, "task": task, "fps": fps},
        **{"frames": n, "shown": wanted.tolist(), "pictures": shots, "width": size[0], "height": size[1]},
        "joints": _rounded(flat[wanted], 1),
        "path": _rounded(poses[:, :2, 3], 4),
        "wrists": _rounded(wrists[..., :2], 4),
        "grip": _rounded(values["observation.gripper"].astype(np.float64), 3),
        "actions": list(caption.get("actions", [])),
        "paraphrases": list(caption.get("paraphrases", [])),
    }


def clip_page(root: Path, books: Books, clip: str, *, most: int = 60) -> str | None:
    """The page of a clip in a store; None for one that is not there, or not labelled yet."""
    row = books.row("SELECT manifest FROM clips WHERE uuid = ? AND state = 'complete'", (clip,))
    if row is None:
        return None
    manifest = parse_manifest(row["manifest"])
    jobs = books.rows(
        "SELECT stage, version FROM jobs WHERE clip = ? AND state = 'done' ORDER BY rowid", (clip,)
    )
    stages = {job["stage"]: root / "stages" / clip / f"{job['stage']}@{job['version']}" for job in jobs}
    if not _labels.labelled(stages) or not (stages["c6-captions"] / "caption.json").is_file():
        return None
    folder = objects_of(root).fetch(manifest)
    fps = max(1, round(manifest.fps_nominal))
    _, chosen = grid(read_table(folder / "frames.parquet")["t_ns"], fps)
    values, caption = _labels.columns(stages, manifest, chosen)
    pictures = frames_at(folder / "video.mp4", chosen, manifest.rotation)
    return page(record(values, pictures, caption, fps=fps, task=caption["task"], number=0, most=most))


def _rounded(values: F64, digits: int) -> Any:
    """Nested lists, None for what is no number."""
    rounded = np.round(values, digits).astype(object)
    rounded[np.isnan(values)] = None
    return rounded.tolist()


def page(record: dict[str, Any]) -> str:
    """The page of a record; nothing in the record can end its script."""
    template = files("haversack.collect").joinpath("view.html").read_text(encoding="utf-8")
    text = json.dumps(record, allow_nan=False)
    for letter, safe in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026"), ("\u2028", "\\u2028")):
        text = text.replace(letter, safe)
    return template.replace("@RECORD@", text)


def view(source: Path, number: int, goal: Path, *, most: int = 120) -> Path:
    """Write the page of an episode of a labelled v3.0 set. Raises UserError for an episode that is none."""
    data = LeRobotV3(source)
    require(data)
    if not 0 <= number < len(data.episodes):
        raise UserError(
            f"episode={number} is not in {source} (allowed 0 to {len(data.episodes) - 1}).",
            field="episode",
            given=number,
            nearest=min(max(number, 0), len(data.episodes) - 1),
        )
    write_atomically(goal, page(record_of(data, data.episodes[number], most)).encode())
    return goal
