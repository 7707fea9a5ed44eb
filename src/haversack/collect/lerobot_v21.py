"""LeRobot v2.1, to and from v3.0, without loss: rows are the same values, pictures the same packets.

v2.1 has a Parquet file and a video for each episode, `meta/tasks.jsonl`, `meta/episodes.jsonl` and
`meta/episodes_stats.jsonl`; v3.0 has many episodes in a file. Videos are cut and joined as packets, never
encoded again: that needs a key frame where an episode begins and no frame that waits for a later one, which
our v3.0 writer sees to; a set of other origin that lacks it is refused. Other notes of `meta/` go along.

Limits: features are vectors or videos, as in collect/lerobot_v3.py; statistics of the whole are made again
from the episodes', as they were.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from haversack.collect import _statistics
from haversack.collect._extra import need
from haversack.collect.lerobot_reader import LeRobotV3
from haversack.collect.lerobot_v3 import (
    CHUNK,
    DATA_PATH,
    EPISODES_PATH,
    VIDEO_PATH,
    write_tasks,
)
from haversack.core._files import explain_write_errors, partial_path, put_in_place, remove
from haversack.core.errors import DamagedFileError, UserError

SYSTEM = 1
VERSION = "v2.1"
DATA_21 = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_21 = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
OWN_META = {
    "info.json",
    "stats.json",
    "tasks.parquet",
    "tasks.jsonl",
    "episodes.jsonl",
    "episodes_stats.jsonl",
}


def to_v21(source: Path, goal: Path) -> Path:
    """Write the v3.0 set at `source` as v2.1. Raises UserError for one that cannot be, or a goal that is
    there."""
    data = LeRobotV3(source)
    with written(goal) as root:
        meta = root / "meta"
        meta.mkdir()
        for episode in data.episodes:
            number = int(episode["episode_index"])
            place = {"episode_chunk": number // CHUNK, "episode_index": number}
            table = data.table(episode)
            _write(need("pyarrow.parquet").write_table, table, root / DATA_21.format(**place))
            for camera in data.cameras:
                path = root / VIDEO_21.format(video_key=camera, **place)
                path.parent.mkdir(parents=True, exist_ok=True)
                cut_video(data, episode, camera, path)
        _lines(
            meta / "tasks.jsonl",
            ({"task_index": at, "task": text} for at, text in sorted(data.tasks.items())),
        )
        _lines(
            meta / "episodes.jsonl",
            ({name: row[name] for name in ("episode_index", "tasks", "length")} for row in data.episodes),
        )
        _lines(
            meta / "episodes_stats.jsonl",
            ({"episode_index": row["episode_index"], "stats": _stats_of(row)} for row in data.episodes),
        )
        _copy_notes(source, root)
        count = len(data.episodes)
        info = {name: value for name, value in data.info.items() if not name.endswith("_files_size_in_mb")}
        info |= {"codebase_version": VERSION, "data_path": DATA_21}
        info |= {"video_path": VIDEO_21 if data.cameras else None, "total_chunks": -(-count // CHUNK)}
        info["total_videos"] = count * len(data.cameras)
        (meta / "info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    return goal


def to_v3(source: Path, goal: Path, *, data_mib: float = 100, video_mib: float = 200) -> Path:
    """Write the v2.1 set at `source` as v3.0. Raises UserError for one that cannot be, DamagedFileError for
    metadata that cannot be read."""
    info, episodes, stats, tasks = read_meta(source)
    cameras = [name for name, feature in info["features"].items() if feature["dtype"] == "video"]
    pa, parquet = need("pyarrow"), need("pyarrow.parquet")
    with written(goal) as root:
        rows: list[dict[str, Any]] = []
        tables: list[Any] = []
        held, file, at = 0, 0, 0
        for episode in episodes:
            path = source / info["data_path"].format(**_place21(episode))
            table = parquet.read_table(path)
            if held > data_mib * 2**20:
                _write(
                    parquet.write_table, pa.concat_tables(tables), root / DATA_PATH.format(**_place3(file))
                )
                tables, held, file = [], 0, file + 1
            tables.append(table)
            held += path.stat().st_size
            rows.append(
                {
                    **{name: episode[name] for name in ("episode_index", "tasks", "length")},
                    **{f"data/{name}": value for name, value in _place3(file).items()},
                    **{"dataset_from_index": at, "dataset_to_index": at + episode["length"]},
                }
            )
            at += int(episode["length"])
        _write(parquet.write_table, pa.concat_tables(tables), root / DATA_PATH.format(**_place3(file)))
        for camera in cameras:
            _videos(source, root, info, episodes, rows, camera, video_mib)
        for row, found in zip(rows, stats, strict=True):
            for feature, values in found.items():
                row |= {f"stats/{feature}/{name}": value for name, value in values.items()}
            row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        meta = root / "meta"
        place = root / EPISODES_PATH.format(chunk_index=0, file_index=0)
        _write(parquet.write_table, pa.Table.from_pylist(rows), place)
        write_tasks(meta / "tasks.parquet", {text: number for number, text in tasks.items()})
        whole = {
            feature: _statistics.plain(
                _statistics.joined(
                    [
                        {name: np.asarray(value, np.float64) for name, value in one[feature].items()}
                        for one in stats
                    ]
                )
            )
            for feature in stats[0]
        }
        (meta / "stats.json").write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
        _copy_notes(source, root)
        made = {name: value for name, value in info.items() if name not in ("total_chunks", "total_videos")}
        made |= {"codebase_version": "v3.0", "data_path": DATA_PATH, "chunks_size": CHUNK}
        made |= {"video_path": VIDEO_PATH if cameras else None}
        made |= {"data_files_size_in_mb": 100, "video_files_size_in_mb": 200}
        (meta / "info.json").write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    return goal


def read_meta(
    path: Path,
) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]], dict[int, str]]:
    """info, episodes, their statistics in the same order, and tasks of a v2.1 set. Raises UserError for
    another version, DamagedFileError for metadata that cannot be read."""
    meta = path / "meta"
    try:
        info: dict[str, Any] = json.loads((meta / "info.json").read_text(encoding="utf-8"))
        if info.get("codebase_version") != VERSION:
            raise UserError(
                f"{path} is of version {info.get('codebase_version')} (allowed {VERSION}).", field="path"
            )
        read = {
            name: [
                json.loads(line) for line in (meta / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
            ]
            for name in ("episodes", "episodes_stats", "tasks")
        }
        episodes = sorted(read["episodes"], key=lambda row: int(row["episode_index"]))
        by_number = {row["episode_index"]: row["stats"] for row in read["episodes_stats"]}
        stats = [by_number[row["episode_index"]] for row in episodes]
        tasks = {int(row["task_index"]): str(row["task"]) for row in read["tasks"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedFileError(meta, f"it does not say what it must ({error})") from error
    if not episodes:
        raise UserError(f"{path} has no episode.", field="path")
    return info, episodes, stats, tasks


def validate_v21(path: Path) -> list[str]:
    """What is wrong with a v2.1 set, in sentences: files that are absent, lengths and indices that differ."""
    try:
        info, episodes, _, tasks = read_meta(path)
    except DamagedFileError as error:
        return [str(error)]
    av, pa, parquet = need("av"), need("pyarrow"), need("pyarrow.parquet")
    found, at = [], 0
    cameras = [name for name, feature in info["features"].items() if feature["dtype"] == "video"]
    for number, episode in enumerate(episodes):
        length = int(episode["length"])
        try:
            table = parquet.read_table(path / info["data_path"].format(**_place21(episode)))
        except (OSError, pa.ArrowException):
            found.append(f"episode {number}: its Parquet file cannot be read.")
            continue
        times = np.asarray(table["timestamp"].to_pylist(), np.float64)
        if table["index"].to_pylist() != list(range(at, at + length)):
            found.append(f"episode {number}: its rows are not those of its indices.")
        elif np.abs(times - np.arange(length) / info["fps"]).max() > 1e-4:
            found.append(f"episode {number}: timestamps are off the grid of {info['fps']} frames a second.")
        elif not set(table["task_index"].to_pylist()) <= set(tasks):
            found.append(f"episode {number}: a task is not in tasks.jsonl.")
        at += length
        for camera in cameras:
            video = path / info["video_path"].format(video_key=camera, **_place21(episode))
            try:
                with av.open(str(video)) as container:
                    count = sum(
                        packet.pts is not None for packet in container.demux(container.streams.video[0])
                    )
            except (av.FFmpegError, OSError, IndexError):
                count = -1
            if count != length:
                found.append(f"episode {number}: {camera} has {count} frames for {length} rows.")
    if info["total_episodes"] != len(episodes) or info["total_frames"] != at:
        found.append(f"info.json says {info['total_frames']} frames, there are {at}.")
    return found


# ---- videos as packets


def cut_video(data: LeRobotV3, episode: dict[str, Any], camera: str, goal: Path) -> None:
    """Write an episode's part of a camera's video as a file. Raises UserError where that would need
    encoding."""
    begin = round(episode[f"videos/{camera}/from_timestamp"] * data.fps)
    _join(goal, [(data.video(episode, camera), begin, begin + int(episode["length"]))], data.fps)


def _join(goal: Path, parts: list[tuple[Path, int, int]], fps: int) -> None:
    """Write the frames [begin, end) of several files one after another, as packets. Raises UserError where
    that would need encoding."""
    av = need("av")
    base = Fraction(1, fps)
    with av.open(str(goal), "w", format="mp4") as target:
        stream, extradata, at = None, b"", 0
        for path, begin, end in parts:
            with av.open(str(path)) as source:
                own = source.streams.video[0]
                if stream is None:
                    stream = target.add_stream_from_template(own)
                    stream.time_base, extradata = base, bytes(own.codec_context.extradata or b"")
                elif bytes(own.codec_context.extradata or b"") != extradata:
                    raise UserError(f"{path} is encoded otherwise than the videos before it.", field="source")
                packets = [packet for packet in source.demux(own) if packet.pts is not None]
                if len(packets) < end or any(one.pts != one.dts for one in packets):
                    raise UserError(
                        f"{path} cannot be cut at its frames without encoding it again.", field="source"
                    )
                if not packets[begin].is_keyframe:
                    raise UserError(f"{path} has no key frame where an episode begins.", field="source")
                for packet in packets[begin:end]:
                    packet.stream = stream
                    packet.time_base = base
                    packet.pts = packet.dts = at
                    packet.duration = 1
                    target.mux(packet)
                    at += 1


def _videos(
    source: Path,
    root: Path,
    info: dict[str, Any],
    episodes: list[dict[str, Any]],
    rows: list[dict[str, Any]],
    camera: str,
    most_mib: float,
) -> None:
    """Join the episodes' videos of a camera into files of about `most_mib`, and enter where each is."""
    parts: list[tuple[Path, int, int]] = []
    held, file, frames = 0, 0, 0

    def close() -> None:
        path = root / VIDEO_PATH.format(video_key=camera, **_place3(file))
        path.parent.mkdir(parents=True, exist_ok=True)
        _join(path, parts, info["fps"])

    for episode, row in zip(episodes, rows, strict=True):
        path = source / info["video_path"].format(video_key=camera, **_place21(episode))
        if held > most_mib * 2**20:
            close()
            parts, held, frames, file = [], 0, 0, file + 1
        parts.append((path, 0, int(episode["length"])))
        held += path.stat().st_size
        row |= {f"videos/{camera}/{name}": value for name, value in _place3(file).items()}
        row[f"videos/{camera}/from_timestamp"] = frames / info["fps"]
        frames += int(episode["length"])
        row[f"videos/{camera}/to_timestamp"] = frames / info["fps"]
    close()


# ---- files


class written:  # noqa: N801
    """A folder that takes its name when the block ends well."""

    def __init__(self, goal: Path) -> None:
        if goal.exists():
            raise UserError(f"{goal} exists already; choose another.", field="out", given=str(goal))
        self.goal = goal

    def __enter__(self) -> Path:
        with explain_write_errors(self.goal):
            self.goal.parent.mkdir(parents=True, exist_ok=True)
            self.partial = partial_path(self.goal)
            self.partial.mkdir()
        return self.partial

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if kind is None:
            put_in_place(self.partial, self.goal)
        else:
            remove(self.partial)


def _write(write: Any, table: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write(table, path, compression="snappy")


def _lines(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _stats_of(row: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, value in row.items():
        if name.startswith("stats/"):
            feature, _, stat = name[6:].rpartition("/")
            found.setdefault(feature, {})[stat] = value
    return found


def _copy_notes(source: Path, root: Path) -> None:
    (root / "meta").mkdir(parents=True, exist_ok=True)
    for path in sorted((source / "meta").glob("*.json")):
        if path.name not in OWN_META:
            shutil.copyfile(path, root / "meta" / path.name)


def _place21(episode: dict[str, Any]) -> dict[str, int]:
    number = int(episode["episode_index"])
    return {"episode_chunk": number // CHUNK, "episode_index": number}


def _place3(file: int) -> dict[str, int]:
    return {"chunk_index": file // CHUNK, "file_index": file % CHUNK}
