"""Reads and checks LeRobot v3.0 data sets: written from the layout alone, shares nothing with the writer.

info -> all episodes -> a global index i is found by binary search in `dataset_from_index`, its data file by
data/chunk_index and data/file_index, its row by i minus the first index in that file; its picture in the
video at from_timestamp + timestamp, where a frame must lie within 1e-4 s.

`validate_dataset` names what is wrong: a Parquet file without its end, a rate that is no whole number, times
off the grid, slashes in names, lengths of videos and rows that differ, indices with holes.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.collect._extra import need
from haversack.core.errors import DamagedFileError, UserError

U8 = npt.NDArray[np.uint8]
SYSTEM = 1
NEAR_S = 1e-4


class LeRobotV3:
    """A data set on the disk. Raises UserError for a folder that is none or of another version,
    DamagedFileError for metadata that cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        info = path / "meta" / "info.json"
        if not info.is_file():
            raise UserError(
                f"{path} is no LeRobot data set: it has no meta/info.json.", field="path", given=str(path)
            )
        try:
            self.info: dict[str, Any] = json.loads(info.read_text(encoding="utf-8"))
            version = self.info["codebase_version"]
            self.fps, self.features = self.info["fps"], dict(self.info["features"])
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedFileError(info, f"it does not say what it must ({error})") from error
        if version != "v3.0":
            raise UserError(f"{path} is of version {version} (allowed v3.0).", field="path", given=version)
        self.cameras = [name for name, feature in self.features.items() if feature["dtype"] == "video"]
        self.episodes: list[dict[str, Any]] = []
        for file in sorted((path / "meta" / "episodes").glob("*/*.parquet")):
            self.episodes += _table(file).to_pylist()
        self.episodes.sort(key=lambda row: row["episode_index"])
        self._starts = [row["dataset_from_index"] for row in self.episodes]
        self._tables: dict[Path, Any] = {}
        tasks = _table(path / "meta" / "tasks.parquet").to_pydict()
        self.tasks = dict(zip(tasks["task_index"], tasks["task"], strict=True))

    def __len__(self) -> int:
        return int(self.episodes[-1]["dataset_to_index"]) if self.episodes else 0

    def row(self, index: int) -> dict[str, Any]:
        """Every column of a frame but its pictures."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        episode = self.episodes[bisect.bisect_right(self._starts, index) - 1]
        table = self.data(episode)
        found = {name: table[name][index - table["index"][0].as_py()].as_py() for name in table.column_names}
        return {
            name: np.asarray(value) if isinstance(value, list) else value for name, value in found.items()
        }

    def picture(self, index: int, camera: str) -> U8:
        """A frame's picture, RGB. Raises UserError where the video has none at its time."""
        row = self.row(index)
        episode = self.episodes[bisect.bisect_right(self._starts, index) - 1]
        wanted = episode[f"videos/{camera}/from_timestamp"] + float(row["timestamp"])
        av = need("av")
        with av.open(str(self.video(episode, camera)), "r") as container:
            stream = container.streams.video[0]
            container.seek(max(0, int((wanted - 1.0) / stream.time_base)), stream=stream)
            for frame in container.decode(stream):
                at = float(frame.pts * stream.time_base)
                if abs(at - wanted) <= NEAR_S:
                    found: U8 = frame.to_ndarray(format="rgb24")
                    return found
                if at > wanted + NEAR_S:
                    break
        raise UserError(f"{camera} has no frame at {wanted:.4f} s.", field=camera, given=wanted)

    def data(self, episode: dict[str, Any]) -> Any:
        """The table of the file that holds an episode."""
        path = self.path / self.info["data_path"].format(
            chunk_index=episode["data/chunk_index"], file_index=episode["data/file_index"]
        )
        if path not in self._tables:
            self._tables = {path: _table(path)}  # one at a time: sets are larger than memory
        return self._tables[path]

    def table(self, episode: dict[str, Any]) -> Any:
        """The rows of an episode."""
        whole = self.data(episode)
        first = whole["index"][0].as_py()
        begin, end = episode["dataset_from_index"] - first, episode["dataset_to_index"] - first
        return whole.slice(begin, end - begin)

    def values(self, episode: dict[str, Any], name: str) -> npt.NDArray[Any]:
        """A column of an episode [frames, ...]."""
        return np.asarray(self.table(episode)[name].to_pylist())

    def pictures(self, episode: dict[str, Any], camera: str) -> Iterator[U8]:
        """An episode's pictures in order, RGB. Raises UserError where there are too few."""
        av = need("av")
        begin = round(episode[f"videos/{camera}/from_timestamp"] * self.fps)
        count = 0
        with av.open(str(self.video(episode, camera)), "r") as container:
            stream = container.streams.video[0]
            container.seek(max(0, int((begin / self.fps - 1.0) / stream.time_base)), stream=stream)
            for frame in container.decode(stream):
                at = round(float(frame.pts * stream.time_base) * self.fps)
                if at >= begin + episode["length"]:
                    break
                if at >= begin:
                    count += 1
                    yield frame.to_ndarray(format="rgb24")
        if count != episode["length"]:
            raise UserError(f"{camera} has {count} frames for {episode['length']} rows.", field=camera)

    def video(self, episode: dict[str, Any], camera: str) -> Path:
        """The video that holds an episode's pictures."""
        name: str = self.info["video_path"].format(
            video_key=camera,
            chunk_index=episode[f"videos/{camera}/chunk_index"],
            file_index=episode[f"videos/{camera}/file_index"],
        )
        return self.path / name


def _table(path: Path) -> Any:
    pa, parquet = need("pyarrow"), need("pyarrow.parquet")
    try:
        return parquet.read_table(path)
    except FileNotFoundError as error:
        raise DamagedFileError(path, "it is absent") from error
    except (pa.ArrowException, OSError) as error:
        what = " ".join(str(error).split())[:160]
        raise DamagedFileError(path, f"it is no whole Parquet file ({what})") from error


def validate_dataset(path: Path) -> list[str]:
    """Everything that is wrong with a data set, in sentences; empty when it is whole. Raises UserError for a
    folder that is none."""
    found: list[str] = []
    try:
        if version_of(path) == "v2.1":
            from haversack.collect.lerobot_v21 import validate_v21

            return validate_v21(path)
        data = LeRobotV3(path)
        if isinstance(data.fps, bool) or not isinstance(data.fps, int) or data.fps <= 0:
            return [f"fps is {data.fps}, not a whole number above 0."]
        found += [f"the feature {name!r} has a slash." for name in data.features if "/" in name]
        found += _indices(data)
        for episode in data.episodes:
            found += _episode(data, episode)
        for camera in data.cameras:
            found += _videos(data, camera)
    except DamagedFileError as error:
        found.append(str(error))
    return found


def version_of(path: Path) -> str:
    """The version that a set's info.json names; empty where it names none."""
    try:
        return str(json.loads((path / "meta" / "info.json").read_text(encoding="utf-8"))["codebase_version"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _indices(data: LeRobotV3) -> list[str]:
    found, at = [], 0
    for number, episode in enumerate(data.episodes):
        if episode["episode_index"] != number:
            found.append(f"episode {number} is missing.")
        if episode["dataset_from_index"] != at or episode["dataset_to_index"] != at + episode["length"]:
            found.append(f"episode {number} does not follow on the one before it.")
        at = episode["dataset_to_index"]
    for name, here in (
        ("total_episodes", len(data.episodes)),
        ("total_frames", at),
        ("total_tasks", len(data.tasks)),
    ):
        if data.info[name] != here:
            found.append(f"info.json says {name} {data.info[name]}, there are {here}.")
    return found


def _episode(data: LeRobotV3, episode: dict[str, Any]) -> list[str]:
    number, begin, end = (
        episode[name] for name in ("episode_index", "dataset_from_index", "dataset_to_index")
    )
    table = data.data(episode)
    missing = [
        name
        for name, feature in data.features.items()
        if feature["dtype"] != "video" and name not in table.column_names
    ]
    if missing:
        return [f"episode {number} has no column {missing[0]}."]
    first = table["index"][0].as_py() if len(table) else 0
    rows = table.slice(begin - first, end - begin)
    if len(rows) != end - begin or rows["index"].to_pylist() != list(range(begin, end)):
        return [f"episode {number}: its rows are not those of its indices."]
    found = []
    times = np.asarray(rows["timestamp"].to_pylist(), np.float64)
    if np.abs(times - np.arange(len(times)) / data.fps).max() > NEAR_S:
        found.append(f"episode {number}: timestamps are off the grid of {data.fps} frames a second.")
    if rows["frame_index"].to_pylist() != list(range(len(rows))):
        found.append(f"episode {number}: frame_index does not count from 0.")
    if set(rows["episode_index"].to_pylist()) != {number}:
        found.append(f"episode {number}: episode_index is another.")
    if not set(rows["task_index"].to_pylist()) <= set(data.tasks):
        found.append(f"episode {number}: a task is not in tasks.parquet.")
    for name, feature in data.features.items():
        if feature["dtype"] == "float32" and name != "timestamp":
            values = np.asarray(rows[name].to_pylist(), np.float64)
            if values.shape[1:] != tuple(feature["shape"]) or not np.isfinite(values).all():
                found.append(f"episode {number}: {name} is of another shape, or holds numbers that are none.")
    for camera in data.cameras:
        seconds = episode[f"videos/{camera}/to_timestamp"] - episode[f"videos/{camera}/from_timestamp"]
        if abs(seconds - len(rows) / data.fps) > NEAR_S:
            found.append(f"episode {number}: {camera} lasts {seconds:.4f} s for {len(rows)} rows.")
    return found


def _videos(data: LeRobotV3, camera: str) -> list[str]:
    """Whether every video has a frame on the grid for every row that needs one."""
    av = need("av")
    wanted: dict[Path, int] = {}
    for episode in data.episodes:
        path = data.video(episode, camera)
        wanted[path] = max(wanted.get(path, 0), round(episode[f"videos/{camera}/to_timestamp"] * data.fps))
    found = []
    for path, frames in wanted.items():
        try:
            with av.open(str(path), "r") as container:
                stream = container.streams.video[0]
                times = sorted(
                    float(packet.pts * stream.time_base)
                    for packet in container.demux(stream)
                    if packet.pts is not None
                )
        except (av.FFmpegError, IndexError, OSError) as error:
            found.append(f"{path.name} of {camera} cannot be read ({' '.join(str(error).split())[:120]}).")
            continue
        if len(times) != frames:
            found.append(f"{path.name} of {camera} has {len(times)} frames for {frames} rows.")
        elif np.abs(np.asarray(times) - np.arange(frames) / data.fps).max() > NEAR_S:
            found.append(f"{path.name} of {camera} has frames off the grid.")
    return found
