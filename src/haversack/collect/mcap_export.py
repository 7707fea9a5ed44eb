"""A data set as MCAP, one file an episode, for players and recorders of robots.

Channels carry JSON under a JSON Schema, times in nanoseconds from the episode's first frame: `/camera/image`
(foxglove.CompressedImage, JPEG as base64), `/camera/pose`, `/camera/calibration`, `/hands` (joints of both in
the world), `/state`, `/action`, `/imu`, and `/task` once. Written with the public `mcap` package.

Limits: pictures are encoded again, as JPEG.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np

from haversack.collect._captioner import jpeg
from haversack.collect._extra import need
from haversack.collect.hdf5_export import require
from haversack.collect.lerobot_reader import LeRobotV3
from haversack.collect.lerobot_v21 import written

SYSTEM = 1
_TIME = {"type": "object", "properties": {"sec": {"type": "integer"}, "nsec": {"type": "integer"}}}
_VALUES = {"type": "object", "properties": {"values": {"type": "array", "items": {"type": "number"}}}}
SCHEMAS: dict[str, tuple[str, dict[str, Any]]] = {
    "/camera/image": (
        "foxglove.CompressedImage",
        {
            "type": "object",
            "properties": {
                "timestamp": _TIME,
                "frame_id": {"type": "string"},
                "data": {"type": "string", "contentEncoding": "base64"},
                "format": {"type": "string"},
            },
        },
    ),
    **{
        topic: (f"haversack.{name}", _VALUES)
        for topic, name in (
            *(("/camera/pose", "CameraPose"), ("/camera/calibration", "Calibration"), ("/hands", "Hands")),
            *(("/state", "State"), ("/action", "Action"), ("/imu", "Imu")),
        )
    },
    "/task": ("haversack.Task", {"type": "object", "properties": {"task": {"type": "string"}}}),
}
COLUMNS = {
    **{"/camera/pose": "observation.camera_pose", "/camera/calibration": "observation.camera_intrinsics"},
    **{"/hands": "observation.hand_joints", "/state": "observation.state", "/action": "action"},
    "/imu": "observation.imu",
}


def to_mcap(source: Path, goal: Path) -> Path:
    """Write the labelled v3.0 set at `source`. Raises UserError for a set without hands, MissingExtraError
    without mcap."""
    writer = need("mcap.writer", "collect export --format mcap")
    data = LeRobotV3(source)
    require(data)
    with written(goal) as root:
        for episode in data.episodes:
            path = root / f"episode_{int(episode['episode_index']):06d}.mcap"
            with path.open("wb") as file:
                made = writer.Writer(file)
                made.start(profile="", library="haversack")
                _write(made, data, episode)
                made.finish()
    return goal


def _write(made: Any, data: LeRobotV3, episode: dict[str, Any]) -> None:
    channels = {}
    for topic, (name, schema) in SCHEMAS.items():
        number = made.register_schema(name=name, encoding="jsonschema", data=json.dumps(schema).encode())
        channels[topic] = made.register_channel(topic=topic, message_encoding="json", schema_id=number)

    def say(topic: str, when: int, record: dict[str, Any]) -> None:
        made.add_message(
            channel_id=channels[topic], log_time=when, publish_time=when, data=json.dumps(record).encode()
        )

    values = {topic: data.values(episode, column) for topic, column in COLUMNS.items()}
    say("/task", 0, {"task": str(episode["tasks"][0])})
    for frame, picture in enumerate(data.pictures(episode, data.cameras[0])):
        when = round(frame * 1e9 / data.fps)
        stamp = {"sec": when // 10**9, "nsec": when % 10**9}
        shot = base64.b64encode(jpeg(picture)).decode()
        say("/camera/image", when, {"timestamp": stamp, "frame_id": "ego", "data": shot, "format": "jpeg"})
        for topic, rows in values.items():
            say(topic, when, {"values": np.round(rows[frame].astype(np.float64), 7).tolist()})
