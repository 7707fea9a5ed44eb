"""From the store's clips to a data set: those that passed the stages, on a grid of time, split by person.

Paper: AoE (arXiv 2602.23893); packing is [inferred]. An episode is a clip. Its frames are the nearest to each
point of the grid t0 + k / fps, turned upright; motion samples are interpolated to it; the boxes are those of
the nearest look of the device within 0.3 s. Clips that all stages labelled bring states, actions, hands, the
camera's pose and verbs (collect/_labels.py), and their captions as tasks; where there are such clips, others
are left out. Of clips that are alike one is kept (C8); `hours` keeps those that stand for all in so much
time. Splits are by contributor (the hash of the pseudonym mod 100: 90 train, 5 validation, 5 test), never by
clip, so that nobody is in two of them.

`meta/provenance.json` says for every episode its clip, the hashes of its files, the consent's policy and the
last day it may be kept, and the number of tombstones that the export respects; no pseudonym. The store notes
the export, so that `forget` finds it.

Limits: clips of another size than most are left out.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.collect import _labels
from haversack.collect._books import Books
from haversack.collect._objects import objects_of
from haversack.collect._stages import load_stages, read_settings
from haversack.collect._tables import IMU_AXES, Hand, read_table
from haversack.collect._video import decoded
from haversack.collect.bundle import Manifest, parse_manifest
from haversack.collect.lerobot_v3 import DatasetWriter, Feature
from haversack.collect.stages import c8_embedding
from haversack.collect.stages.c5_actions import VERBS
from haversack.core._files import write_atomically
from haversack.core.errors import UserError

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
SYSTEM = 1
CAMERA = "observation.images.ego"
SPLITS = (("train", 90), ("validation", 95), ("test", 100))
LOOK_NS = 300_000_000
TASK = "use the hands"
BOX = ("x0", "y0", "x1", "y1", "score", "contact")


@dataclass
class Exported:
    """What was written: the set, its episodes and frames, episodes of each split, clips left out and why."""

    path: str
    episodes: int = 0
    frames: int = 0
    splits: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)


def split_of(contributor: str) -> str:
    """The split that a contributor's clips belong to."""
    place = int.from_bytes(hashlib.sha256(contributor.encode()).digest()[:8], "big") % 100
    return next(name for name, below in SPLITS if place < below)


def features(height: int, width: int) -> dict[str, Feature]:
    """What an episode has."""
    sides = ("left", "right")
    return {
        CAMERA: Feature("video", (height, width, 3), ("height", "width", "channels")),
        "observation.imu": Feature("float32", (6,), IMU_AXES),
        "observation.hand_boxes": Feature(
            "float32", (12,), tuple(f"{side}_{part}" for side in sides for part in BOX)
        ),
        "observation.hand_valid": Feature("bool", (2,), sides),
        "observation.trigger": Feature("float32", (1,), ("a",)),
    }


@dataclass(frozen=True)
class Passed:
    """A clip that may be exported: its manifest, who wore the device, and the folders of its stages."""

    manifest: Manifest
    contributor: str
    stages: dict[str, Path]


def passed(root: Path, books: Books) -> list[Passed]:
    """The clips that passed every stage that they were given, in the versions that the store's settings make.
    Raises UserError when there is none."""
    current = {stage.name: stage.version for stage in load_stages(None, read_settings(root))}
    jobs: dict[str, list[Any]] = {}
    for row in books.rows("SELECT clip, stage, version, state, drop_reason FROM jobs"):
        if current.get(row["stage"], row["version"]) == row["version"]:
            jobs.setdefault(str(row["clip"]), []).append(row)
    found = []
    for row in books.rows(
        "SELECT uuid, manifest, contributor FROM clips WHERE state = 'complete' ORDER BY uuid"
    ):
        mine = jobs.get(str(row["uuid"]), [])
        if mine and all(job["state"] == "done" and job["drop_reason"] is None for job in mine):
            folder = root / "stages" / str(row["uuid"])
            stages = {str(job["stage"]): folder / f"{job['stage']}@{job['version']}" for job in mine}
            found.append(Passed(parse_manifest(row["manifest"]), str(row["contributor"]), stages))
    if not found:
        raise UserError(
            f"{root} has no clip that passed the stages; run: haversack collect process {root}", field="root"
        )
    return found


def curated(clips: list[Passed], done: Exported, *, hours: float | None, eps: float) -> list[Passed]:
    """Without clips that are not labelled where others are, without twins, and within `hours`."""
    if any(_labels.labelled(clip.stages) for clip in clips):
        whole = [clip for clip in clips if _labels.labelled(clip.stages)]
        _count(done, "not labelled yet", len(clips) - len(whole))
        clips = whole
    if clips and all("c8-embedding" in clip.stages for clip in clips):
        vectors = np.stack([np.load(clip.stages["c8-embedding"] / c8_embedding.VECTOR) for clip in clips])
        kept = c8_embedding.chosen(vectors.astype(np.float64), eps)
        _count(done, "duplicate", len(kept) - sum(kept))
        clips = [clip for clip, keep in zip(clips, kept, strict=True) if keep]
        vectors = vectors[np.asarray(kept, bool)]
        if hours is not None:
            seconds = np.array([clip.manifest.n_frames / clip.manifest.fps_nominal for clip in clips])
            wanted = set(c8_embedding.spread(vectors.astype(np.float64), seconds, 3600 * hours))
            _count(done, "over the hours", len(clips) - len(wanted))
            clips = [clip for at, clip in enumerate(clips) if at in wanted]
    elif hours is not None:
        raise UserError("hours needs the stage c8-embedding; run collect process first.", field="hours")
    return clips


def _count(done: Exported, why: str, clips: int) -> None:
    if clips:
        done.left_out[why] = done.left_out.get(why, 0) + clips


def export(
    root: Path,
    out: Path,
    *,
    fps: int | None = None,
    task: str | None = None,
    hours: float | None = None,
    eps: float = c8_embedding.EPS,
) -> Exported:
    """Write the store's clips that passed every stage as a LeRobot v3.0 set; `task` is every episode's
    sentence (default: its caption's). Raises UserError when there is none."""
    books, objects = Books(root), objects_of(root)
    done, provenance = Exported(str(out)), []
    found = curated(passed(root, books), done, hours=hours, eps=eps)
    if not found:
        raise UserError(f"{root} has no clip that is left to export.", field="root")
    names = [name for name, _ in SPLITS]
    found.sort(key=lambda one: (names.index(split_of(one.contributor)), one.manifest.clip_uuid))
    sizes = Counter(upright(one.manifest) for one in found)
    size = sizes.most_common(1)[0][0]
    rate = fps if fps is not None else round(float(np.median([one.manifest.fps_nominal for one in found])))
    whole = _labels.labelled(found[0].stages)
    captions: list[dict[str, Any]] = []
    made = features(*size) | (_labels.features() if whole else {})
    with DatasetWriter(out, rate, made) as writer:
        for one in found:
            manifest = one.manifest
            if upright(manifest) != size:
                _count(done, "another size", 1)
                continue
            folder = objects.fetch(manifest)
            columns, chosen = episode(folder, manifest, rate)
            said: dict[str, Any] = {}
            if whole:
                more, said = _labels.columns(one.stages, manifest, chosen)
                columns |= more
            video = frames_at(folder / "video.mp4", chosen, manifest.rotation)
            number = writer.add_episode(columns, task or said.get("task") or TASK, {CAMERA: video})
            split = split_of(one.contributor)
            done.splits[split] = done.splits.get(split, 0) + 1
            done.episodes, done.frames = done.episodes + 1, done.frames + len(chosen)
            provenance.append(_origin(number, manifest, split) | {"stages": _versions(one.stages)})
            captions += [{"episode_index": number, **said}] if said else []
        tombstones = books.number("SELECT count(*) FROM tombstones")
        notes: dict[str, Any] = {"provenance": {"tombstones": tombstones, "episodes": provenance}}
        if whole:
            notes["annotations"] = {"verbs": list(VERBS), "episodes": captions}
        notes["yield"] = yields(books, done)
        writer.finish(_ranges(done.splits), **notes)
    note_export(root, str(out.resolve()), [entry["clip_uuid"] for entry in provenance])
    books.close()
    return done


def note_of(root: Path, place: str) -> Path:
    """Where the store notes the export at `place`, a whole path or a URL."""
    return root / "exports" / f"{hashlib.sha256(place.encode()).hexdigest()[:16]}.json"


def note_export(root: Path, place: str, clips: list[str], *, whole: bool = True) -> None:
    """Note which clips an export holds, so that `forget` finds it; `whole` false: it is not all there yet."""
    note = note_of(root, place)
    note.parent.mkdir(exist_ok=True)
    write_atomically(note, json.dumps({"path": place, "clips": clips, "whole": whole}).encode())


def _versions(stages: dict[str, Path]) -> list[str]:
    return sorted(folder.name for folder in stages.values())


def yields(books: Books, done: Exported) -> list[dict[str, Any]]:
    """What every stage took, and dropped for which reason; the export itself last."""
    rows = books.rows(
        "SELECT stage, version, state, coalesce(drop_reason, '') AS reason, count(*) AS clips, "
        "coalesce(sum(cpu_s), 0.0) AS cpu_s FROM jobs GROUP BY stage, version, state, drop_reason "
        "ORDER BY stage, version, state, drop_reason"
    )
    found = [dict(row) for row in rows]
    own = {"stage": "export", "version": "", "cpu_s": 0.0}
    found.append({**own, "state": "done", "reason": "", "clips": done.episodes})
    return found + [
        {**own, "state": "done", "reason": why, "clips": count} for why, count in done.left_out.items()
    ]


def upright(manifest: Manifest) -> tuple[int, int]:
    """Height and width of a clip's pictures once they are turned."""
    sides = (manifest.height, manifest.width)
    return (sides[1], sides[0]) if manifest.rotation in (90, 270) else sides


def grid(t_ns: I64, fps: int) -> tuple[I64, I64]:
    """The grid's times ns [n] from the first frame to the last, and the frame nearest to each."""
    count = int((t_ns[-1] - t_ns[0]) * fps // 1_000_000_000) + 1
    times = t_ns[0] + np.round(np.arange(count) * 1e9 / fps).astype(np.int64)
    return times, nearest(t_ns, times)


def nearest(t_ns: I64, wanted: I64) -> I64:
    """For each wanted time the index of the nearest of `t_ns` (rising, not empty); the earlier of two."""
    after = np.clip(np.searchsorted(t_ns, wanted), 0, len(t_ns) - 1)
    before = np.maximum(after - 1, 0)
    return np.where(wanted - t_ns[before] <= t_ns[after] - wanted, before, after).astype(np.int64)


def episode(folder: Path, manifest: Manifest, fps: int) -> tuple[dict[str, npt.NDArray[Any]], I64]:
    """The columns of a clip on the grid, and the frame of each row."""
    times, chosen = grid(read_table(folder / "frames.parquet")["t_ns"], fps)
    imu, edge = read_table(folder / "imu.parquet"), read_table(folder / "edge.parquet")
    motion = np.zeros((len(times), 6), np.float32)
    if len(imu["t_ns"]):
        for at, axis in enumerate(IMU_AXES):
            motion[:, at] = np.interp(times + manifest.clock_offset_ns, imu["t_ns"], imu[axis])
    boxes, valid = np.zeros((len(times), 12), np.float32), np.zeros((len(times), 2), bool)
    trigger = np.zeros((len(times), 1), np.float32)
    if len(edge["t_ns"]):
        looks = nearest(edge["t_ns"], times)
        trigger[:, 0] = edge["a"][looks]
        for row, look in enumerate(looks):
            if abs(int(edge["t_ns"][look]) - int(times[row])) <= LOOK_NS:
                _enter(edge["hands"][look], boxes[row], valid[row])
    columns = {
        **{"observation.imu": motion, "observation.hand_boxes": boxes},
        **{"observation.hand_valid": valid, "observation.trigger": trigger},
    }
    return columns, chosen


def _enter(hands: list[Hand], boxes: F32, valid: npt.NDArray[np.bool_]) -> None:
    """The best hand of each side."""
    for hand in sorted(hands, key=lambda one: one.score):
        boxes[6 * hand.side : 6 * hand.side + 6] = [getattr(hand, part) for part in BOX]
        valid[hand.side] = True


def frames_at(path: Path, chosen: I64, rotation: int) -> Iterator[U8]:
    """The pictures of a clip by rising frame numbers, upright; one may come several times."""
    at, number = 0, -1
    for number, frame in enumerate(decoded(path)):
        if at < len(chosen) and chosen[at] == number:
            picture = np.rot90(frame.to_ndarray(format="rgb24"), -(rotation // 90))
            while at < len(chosen) and chosen[at] == number:
                yield picture
                at += 1
    if at < len(chosen):
        raise UserError(
            f"{path} has {number + 1} frames and should have more; run the stages again.", field="root"
        )


def _origin(number: int, manifest: Manifest, split: str) -> dict[str, Any]:
    day = 86_400 * 1_000_000_000
    return {
        "episode_index": number,
        "clip_uuid": manifest.clip_uuid,
        "split": split,
        "device_model": manifest.device.model,
        "policy_version": manifest.consent.policy_version,
        "keep_until_ns": manifest.t0_wall_ns + manifest.consent.retention_days * day,
        "faces_blurred": manifest.privacy.faces_blurred,
        "files": {file.name: file.sha256 for file in manifest.files},
    }


def _ranges(counts: dict[str, int]) -> dict[str, tuple[int, int]]:
    found, at = {}, 0
    for name, _ in SPLITS:
        if counts.get(name):
            found[name] = (at, at + counts[name])
            at += counts[name]
    return found
