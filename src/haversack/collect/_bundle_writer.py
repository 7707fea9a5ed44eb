"""Writes a bundle: whole under its name, or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.collect._tables import IMU_AXES, Hand, write_table
from haversack.collect._video import look
from haversack.collect.bundle import (
    FILES,
    MANIFEST,
    SCHEMA_VERSION,
    Consent,
    DeviceRecord,
    FileRecord,
    Manifest,
    Privacy,
    Trigger,
    parse_manifest,
    sha256_of,
)
from haversack.core._files import (
    explain_write_errors,
    flush_folder,
    partial_path,
    put_in_place,
    remove,
    remove_stale_partials,
)

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ClipInfo:
    """What of a manifest does not follow from the files; its fields are the manifest's."""

    device: DeviceRecord
    session: str
    consent: Consent
    fps_nominal: float
    t0_wall_ns: int
    clock_offset_ns: int = 0
    rotation: int = 0
    trigger: Trigger = field(default_factory=lambda: Trigger(reason="manual", thresholds={}))
    faces_blurred: bool = False
    gaps: tuple[tuple[int, int], ...] = ()
    clip_uuid: str = field(default_factory=lambda: str(uuid.uuid4()))


@dataclass(frozen=True)
class EdgeRows:
    """What the device saw: times ns [n], the trigger's average a, sharpness, residual motion in px f32 [n],
    and the hands of each row."""

    t_ns: I64
    a: F32
    sharpness: F32
    residual_px: F32
    hands: Sequence[Sequence[Hand]]

    @classmethod
    def none(cls) -> EdgeRows:
        """Nothing was looked at."""
        empty = np.zeros(0, np.float32)
        return cls(np.zeros(0, np.int64), empty, empty, empty, [])


def write_bundle(
    root: Path,
    clip: ClipInfo,
    video: Callable[[Path], None],
    t_ns: I64,
    imu: npt.NDArray[Any] | None = None,
    imu_t_ns: I64 | None = None,
    edge: EdgeRows | None = None,
) -> Path:
    """Write a bundle under `root` and return its folder. `video` writes the file it is given (MP4 without
    sound); `t_ns` i64 [frames]; `imu` [n, 6] in m/s^2 and rad/s at `imu_t_ns`.

    The manifest it writes is one that it would accept. Raises UserError for a full disk, BundleError for
    what no bundle may hold.
    """
    goal = root / clip.device.id / clip.session / clip.clip_uuid
    with explain_write_errors(goal):
        goal.parent.mkdir(parents=True, exist_ok=True)
        remove_stale_partials(goal)
        partial = partial_path(goal)
        partial.mkdir()
        try:
            _write(partial, clip, video, t_ns, imu, imu_t_ns, edge or EdgeRows.none())
            put_in_place(partial, goal)
        except BaseException:
            remove(partial)
            raise
    return goal


def _write(
    folder: Path,
    clip: ClipInfo,
    video: Callable[[Path], None],
    t_ns: I64,
    imu: npt.NDArray[Any] | None,
    imu_t_ns: I64 | None,
    edge: EdgeRows,
) -> None:
    video(folder / "video.mp4")
    seen = look(folder / "video.mp4")
    write_table(folder / "frames.parquet", {"t_ns": t_ns, "key": seen.key})
    samples = np.zeros((0, 6), np.float32) if imu is None else np.asarray(imu, np.float32)
    times = np.zeros(0, np.int64) if imu_t_ns is None else imu_t_ns
    write_table(
        folder / "imu.parquet",
        {"t_ns": times, **{axis: samples[:, at] for at, axis in enumerate(IMU_AXES)}},
    )
    hands = [[vars(hand) for hand in row] for row in edge.hands]
    write_table(
        folder / "edge.parquet",
        {
            **{"t_ns": edge.t_ns, "a": edge.a, "sharpness": edge.sharpness},
            **{"residual_px": edge.residual_px, "hands": hands},
        },
    )
    files = tuple(
        FileRecord(name=name, bytes=(folder / name).stat().st_size, sha256=sha256_of(folder / name))
        for name in FILES
    )
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        clip_uuid=clip.clip_uuid,
        device=clip.device,
        session=clip.session,
        t0_wall_ns=clip.t0_wall_ns,
        clock_offset_ns=clip.clock_offset_ns,
        fps_nominal=clip.fps_nominal,
        width=seen.width,
        height=seen.height,
        rotation=clip.rotation,
        n_frames=len(t_ns),
        trigger=clip.trigger,
        consent=clip.consent,
        privacy=Privacy(faces_blurred=clip.faces_blurred),
        files=files,
        gaps=clip.gaps,
    )
    parse_manifest(manifest.encode())
    (folder / MANIFEST).write_bytes(manifest.encode())
    for name in (*FILES, MANIFEST):
        descriptor = os.open(folder / name, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    flush_folder(folder)
