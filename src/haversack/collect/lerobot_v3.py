"""Writes LeRobot v3.0 data sets: many episodes in a Parquet file, many in a video, found by their metadata.

The layout is that of the public `lerobot` package (Apache-2.0), as the specification of AoE states it.
`meta/info.json` says features, rate and paths; `meta/episodes/` where each episode's rows and frames
are; `meta/tasks.parquet` the sentences; `meta/stats.json` statistics. A frame of an episode is found in its
video at from_timestamp + timestamp.

Episodes lie on the grid of their rate: timestamp = frame / fps. Videos are H.264 with a key frame every
second frame, for quick random access, and the codec is named in the features. A file ends when it passes
`data_mib` or `video_mib`; after 1000 files the next folder begins. Everything is written beside its goal and
takes its name when it is complete, so that no reader meets a Parquet file without its end.

Limits: features are vectors (one axis) or videos; quantiles of the whole are means of the episodes'.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.collect import _statistics
from haversack.collect._extra import need
from haversack.core._files import (
    explain_write_errors,
    partial_path,
    put_in_place,
    remove,
    remove_stale_partials,
)
from haversack.core.errors import UserError

U8 = npt.NDArray[np.uint8]
SYSTEM = 1
VERSION = "v3.0"
CHUNK = 1000
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DTYPES = {"float32": np.float32, "int64": np.int64, "bool": np.bool_}
ALWAYS = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True)
class Feature:
    """A column: `dtype` float32, int64 or bool with shape (n,), or `video` with shape (height, width, 3);
    `names` of its axis or axes."""

    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] | None = None

    def check(self, name: str) -> None:
        """Raises UserError for what no data set may have."""
        if not _NAME.fullmatch(name) or name in ALWAYS:
            raise UserError(
                f"feature {name!r} is no name (letters, digits, _ . and -, no slash; not "
                f"{', '.join(ALWAYS)}).",
                field="features",
                given=name,
            )
        axes = 3 if self.dtype == "video" else 1
        if self.dtype not in (*DTYPES, "video") or len(self.shape) != axes or min(self.shape) < 1:
            raise UserError(
                f"feature {name} is {self.dtype} {list(self.shape)}; allowed are vectors of "
                f"{', '.join(DTYPES)}, and video [height, width, 3].",
                field="features",
                given=name,
            )


class _Video:
    """The open video of one camera: the file, its frames so far."""

    def __init__(self, path: Path, fps: int, feature: Feature) -> None:
        self._av = need("av", "haversack collect export")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.frames = path, 0
        self._container = self._av.open(str(path), "w", format="mp4")
        self._stream = self._container.add_stream("libx264", rate=fps)
        self._stream.height, self._stream.width = feature.shape[:2]
        self._stream.pix_fmt = "yuv420p"
        self._base = Fraction(1, fps)
        self._stream.codec_context.time_base = self._stream.time_base = self._base
        self._stream.options = {
            **{"crf": "23", "preset": "veryfast", "g": "2", "bf": "0", "forced-idr": "1", "sc_threshold": "0"}
        }

    def push(self, picture: U8, *, first: bool = False) -> None:
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame.pts, frame.time_base = self.frames, self._base
        if first:  # an episode can be cut out without being encoded again
            frame.pict_type = self._av.video.frame.PictureType.I
        self._container.mux(self._stream.encode(frame))
        self.frames += 1

    def close(self) -> None:
        self._container.mux(self._stream.encode())
        self._container.close()


class DatasetWriter:
    """Writes a data set at `goal`; a context manager: leaving it without `finish` leaves nothing.

    >>> with DatasetWriter(Path("set"), 10, {"observation.state": Feature("float32", (2,))}) as writer:
    ...     writer.add_episode({"observation.state": np.zeros((5, 2), np.float32)}, "wipe the table")
    ...     writer.finish()
    """

    def __init__(
        self,
        goal: Path,
        fps: int,
        features: Mapping[str, Feature],
        *,
        robot_type: str = "human_hands",
        data_mib: float = 100,
        video_mib: float = 200,
    ) -> None:
        if not isinstance(fps, int) or not 0 < fps <= 1000:
            raise UserError(
                f"fps={fps} is not supported (allowed whole numbers above 0).", field="fps", given=fps
            )
        for name, feature in features.items():
            feature.check(name)
        if goal.exists():
            raise UserError(f"{goal} exists already; choose another --out.", field="out", given=str(goal))
        self._pa, self._parquet = need("pyarrow"), need("pyarrow.parquet")
        self.goal, self.fps, self.features, self.robot_type = goal, fps, dict(features), robot_type
        self._data_mib, self._video_mib = data_mib, video_mib
        with explain_write_errors(goal):
            goal.parent.mkdir(parents=True, exist_ok=True)
            remove_stale_partials(goal)
            self._root = partial_path(goal)
            self._root.mkdir()
        self._videos: dict[str, _Video] = {}
        self._video_files = dict.fromkeys(self._cameras, 0)
        self._data: Any = None
        self._data_path = Path()
        self._data_files = 0
        self._tasks: dict[str, int] = {}
        self._episodes: list[dict[str, Any]] = []
        self._stats: dict[str, list[dict[str, Any]]] = {}
        self._frames = 0
        self._finished = False

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._finished:
            self._close_files()
            remove(self._root)

    @property
    def _cameras(self) -> list[str]:
        return [name for name, feature in self.features.items() if feature.dtype == "video"]

    def add_episode(
        self,
        columns: Mapping[str, npt.NDArray[Any]],
        task: str,
        videos: Mapping[str, Iterable[U8]] | None = None,
    ) -> int:
        """Add an episode; its number. `columns` [frames, n] of every feature that is no video, `videos` RGB
        frames [height, width, 3] of every one that is. Raises UserError for lengths that differ, numbers
        that are none, and pictures of another size."""
        vectors = {name: feature for name, feature in self.features.items() if feature.dtype != "video"}
        if set(columns) != set(vectors) or set(videos or {}) != set(self._cameras):
            raise UserError("an episode has every feature, and no other.", field="features")
        number = len(self._episodes)
        row: dict[str, Any] = {"episode_index": number, "tasks": [task]}
        stats: dict[str, dict[str, Any]] = {}
        length: int | None = None
        for camera in self._cameras:
            place, stats[camera], frames = self._add_video(camera, (videos or {})[camera])
            row |= place
            if length not in (None, frames):
                raise UserError(
                    f"episode {number}: cameras have {length} and {frames} frames.", field="videos"
                )
            length = frames
        for name, feature in vectors.items():
            values = np.asarray(columns[name])
            if values.shape != (length if length is not None else len(values), *feature.shape):
                raise UserError(
                    f"episode {number}: {name} is {list(values.shape)}, not {[length, *feature.shape]}.",
                    field=name,
                )
            if feature.dtype == "float32" and not np.isfinite(values).all():
                raise UserError(f"episode {number}: {name} holds numbers that are none.", field=name)
            length = len(values)
        if not length:
            raise UserError(f"episode {number} has no frame.", field="length", given=0)
        row |= self._add_rows(number, length, task, columns, stats)
        for name, found in stats.items():
            self._stats.setdefault(name, []).append(found)
            row |= {f"stats/{name}/{stat}": value for stat, value in _statistics.plain(found).items()}
        row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        self._episodes.append(row)
        self._frames += length
        return number

    def _add_video(self, camera: str, pictures: Iterable[U8]) -> tuple[dict[str, Any], dict[str, Any], int]:
        feature = self.features[camera]
        video = self._videos.get(camera)
        if video is None or video.path.stat().st_size > self._video_mib * 2**20:
            if video is not None:
                video.close()
                self._video_files[camera] += 1
            place = _places(self._video_files[camera])
            video = _Video(self._root / VIDEO_PATH.format(video_key=camera, **place), self.fps, feature)
            self._videos[camera] = video
        begin, kept, count = video.frames, [], 0
        for picture in pictures:
            if picture.shape != feature.shape:
                raise UserError(
                    f"a picture of {camera} is {list(picture.shape)}, not {list(feature.shape)}.",
                    field=camera,
                )
            video.push(picture, first=not count)
            kept.append(picture[::4, ::4].copy())
            count += 1
        if not count:
            raise UserError(f"an episode has no frame of {camera}.", field=camera)
        stats = _statistics.of_pictures([kept[at] for at in _statistics.sample_indices(count)])
        found: dict[str, Any] = {
            f"videos/{camera}/{name}": value for name, value in _places(self._video_files[camera]).items()
        }
        found[f"videos/{camera}/from_timestamp"] = begin / self.fps
        found[f"videos/{camera}/to_timestamp"] = video.frames / self.fps
        return found, stats, count

    def _add_rows(
        self,
        number: int,
        length: int,
        task: str,
        columns: Mapping[str, npt.NDArray[Any]],
        stats: dict[str, dict[str, Any]],
    ) -> dict[str, Any]:
        pa = self._pa
        frames = np.arange(length, dtype=np.int64)
        always: dict[str, npt.NDArray[Any]] = {
            "timestamp": (frames / self.fps).astype(np.float32),
            "frame_index": frames,
            "episode_index": np.full(length, number, np.int64),
            "index": frames + self._frames,
            "task_index": np.full(length, self._tasks.setdefault(task, len(self._tasks)), np.int64),
        }
        made: dict[str, Any] = {}
        for name, feature in self.features.items():
            if feature.dtype == "video":
                continue
            vector: npt.NDArray[Any] = np.ascontiguousarray(columns[name], DTYPES[feature.dtype])
            stats[name] = _statistics.of_values(vector)
            made[name] = pa.FixedSizeListArray.from_arrays(pa.array(vector.ravel()), feature.shape[0])
        for name, column in always.items():
            stats[name] = _statistics.of_values(column[:, None])
            made[name] = pa.array(column)
        table = pa.table(made)
        if self._data is not None and self._data_path.stat().st_size > self._data_mib * 2**20:
            self._data.close()
            self._data, self._data_files = None, self._data_files + 1
        place = _places(self._data_files)
        if self._data is None:
            self._data_path = self._root / DATA_PATH.format(**place)
            self._data_path.parent.mkdir(parents=True, exist_ok=True)
            self._data = self._parquet.ParquetWriter(self._data_path, table.schema, compression="snappy")
        self._data.write_table(table)
        return {
            "length": length,
            **{f"data/{name}": value for name, value in place.items()},
            **{"dataset_from_index": self._frames, "dataset_to_index": self._frames + length},
        }

    def finish(self, splits: Mapping[str, tuple[int, int]] | None = None, **notes: Any) -> Path:
        """Close every file, write the metadata, and give the set its name. `splits`: name -> (from, to) of
        episodes, to exclusive; `notes` are written to `meta/NAME.json`. Raises UserError for no episode."""
        if not self._episodes:
            raise UserError("there is no episode to export.", field="episodes", given=0)
        with explain_write_errors(self.goal):
            self._close_files()
            meta = self._root / "meta"
            episodes = self._root / EPISODES_PATH.format(chunk_index=0, file_index=0)
            episodes.parent.mkdir(parents=True)
            self._parquet.write_table(
                self._pa.Table.from_pylist(self._episodes), episodes, compression="snappy"
            )
            write_tasks(meta / "tasks.parquet", self._tasks)
            stats = {
                name: _statistics.plain(_statistics.joined(parts)) for name, parts in self._stats.items()
            }
            _write_json(meta / "stats.json", stats)
            for name, note in notes.items():
                _write_json(meta / f"{name}.json", note)
            _write_json(meta / "info.json", self._info(splits or {"train": (0, len(self._episodes))}))
            put_in_place(self._root, self.goal)
        self._finished = True
        return self.goal

    def _info(self, splits: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
        features: dict[str, Any] = {}
        for name, feature in self.features.items():
            features[name] = {
                "dtype": feature.dtype,
                "shape": list(feature.shape),
                "names": None if feature.names is None else list(feature.names),
            }
            if feature.dtype == "video":
                features[name]["info"] = {
                    **{"video.height": feature.shape[0], "video.width": feature.shape[1]},
                    **{"video.fps": self.fps, "video.codec": "h264", "video.pix_fmt": "yuv420p"},
                    **{"video.is_depth_map": False, "has_audio": False},
                }
        features |= {name: {"dtype": kind, "shape": [1], "names": None} for name, kind in ALWAYS.items()}
        return {
            "codebase_version": VERSION,
            "robot_type": self.robot_type,
            "total_episodes": len(self._episodes),
            "total_frames": self._frames,
            "total_tasks": len(self._tasks),
            "chunks_size": CHUNK,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": self.fps,
            "splits": {name: f"{begin}:{end}" for name, (begin, end) in splits.items()},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if self._cameras else None,
            "features": features,
        }

    def _close_files(self) -> None:
        for video in self._videos.values():
            video.close()
        self._videos = {}
        if self._data is not None:
            self._data.close()
            self._data = None


def write_tasks(path: Path, tasks: Mapping[str, int]) -> None:
    """A table whose index, for pandas, is the sentence."""
    pa, parquet = need("pyarrow"), need("pyarrow.parquet")
    columns = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
        for name, kind, numpy in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    ]
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": columns,
        "pandas_version": "2.0.0",
    }
    table = pa.table({"task_index": list(tasks.values()), "task": list(tasks)})
    parquet.write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), path)


def _places(file: int) -> dict[str, int]:
    """The folder and the file of the `file`-th file."""
    return {"chunk_index": file // CHUNK, "file_index": file % CHUNK}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
