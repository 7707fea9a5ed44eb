"""Capture for the edge agent: a video file with its motion samples, or a camera, played into `EdgeAgent`.

Paper: AoE (arXiv 2602.23893). A file is replayed with its own presentation times, so that the same file
always gives the same clips, however fast it is read. `cam0` is the first camera of a Linux machine (V4L2),
whose frames are stamped with the monotonic clock when they arrive.

Motion samples come as CSV with the columns t_ns, ax, ay, az, gx, gy, gz on the clock of the video (its first
frame is at `video_t0_ns`, 0 unless given). Limits: sound is never read.
"""

from __future__ import annotations

import csv
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.collect._bundle_writer import ClipInfo
from haversack.collect._extra import need
from haversack.collect._policy import Policy
from haversack.collect._tables import IMU_AXES
from haversack.collect.agent import EdgeAgent, Faces
from haversack.collect.bundle import Consent, DeviceRecord
from haversack.collect.detector import make_detector
from haversack.core.errors import DamagedFileError, UserError

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
SYSTEM = 1
SECOND = 1_000_000_000
_CAMERA = re.compile(r"cam(\d{1,2})")


@dataclass
class Watched:
    """What a run did: seconds of the stream and of the clock, frames, looks, bundles, and the states."""

    seconds: float = 0.0
    clock_s: float = 0.0
    frames: int = 0
    looks: int = 0
    detections: int = 0
    clips: list[str] = field(default_factory=list)
    clip_bytes: int = 0
    states: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Imu:
    """Motion samples: times i64 [n] ns, samples f64 [n, 6] in m/s^2 and rad/s."""

    t_ns: I64
    samples: F64


def read_imu(path: Path) -> Imu:
    """Read a CSV of motion samples. Raises DamagedFileError for columns or numbers that are none, and for
    times that do not rise."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if rows.fieldnames is None or not {"t_ns", *IMU_AXES} <= set(rows.fieldnames):
                raise DamagedFileError(path, f"it needs the columns t_ns, {', '.join(IMU_AXES)}", field="imu")
            found = [(int(row["t_ns"]), *(float(row[axis]) for axis in IMU_AXES)) for row in rows]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.", field="imu", given=str(path)) from error
    except (ValueError, TypeError, UnicodeDecodeError) as error:
        raise DamagedFileError(path, f"a row holds no numbers ({error})", field="imu") from error
    times = np.asarray([row[0] for row in found], np.int64)
    samples = np.asarray([row[1:] for row in found], np.float64).reshape(-1, 6)
    if (np.diff(times) <= 0).any() or not np.isfinite(samples).all():
        raise DamagedFileError(path, "its times do not rise, or a number is none", field="imu")
    return Imu(times, samples)


def frames_of(source: str) -> tuple[float, Iterator[tuple[int, U8]]]:
    """Nominal rate and (t_ns, RGB) of a video file or of `camN`. Raises UserError for what is neither."""
    av = need("av", "haversack collect edge")
    camera = _CAMERA.fullmatch(source)
    try:
        if camera is not None:
            container = av.open(f"/dev/video{camera[1]}", "r", format="v4l2", options={"framerate": "30"})
        else:
            if not Path(source).is_file():
                raise UserError(
                    f"{source} is no file and no camera; give a video, or cam0.", field="source", given=source
                )
            container = av.open(source, "r")
        if not container.streams.video:
            raise UserError(f"{source} holds no video.", field="source", given=source)
        stream = container.streams.video[0]
        fps = float(stream.average_rate or stream.guessed_rate or 30)
    except (av.FFmpegError, OSError) as error:
        what = " ".join(str(error).split())[:160]
        raise UserError(
            f"{source} cannot be opened as video ({what}).", field="source", given=source
        ) from error
    if not 0 < fps <= 240:
        raise UserError(f"{source} says {fps} frames a second.", field="source", given=source)
    return fps, _frames(av, container, stream, camera is not None)


def _frames(av: Any, container: Any, stream: Any, live: bool) -> Iterator[tuple[int, U8]]:
    stream.thread_type = "NONE" if live else "AUTO"
    with container:
        try:
            for frame in container.decode(stream):
                if frame.pts is None:
                    continue
                stamp = time.monotonic_ns() if live else int(frame.pts * frame.time_base * SECOND)
                yield stamp, frame.to_ndarray(format="rgb24")
        except av.FFmpegError as error:
            what = " ".join(str(error).split())[:160]
            raise UserError(
                f"the video ends early: it cannot be decoded on ({what}).", field="source"
            ) from error


def identity(
    spool: Path, contributor: str | None, policy_version: str, days: int
) -> tuple[DeviceRecord, Consent]:
    """Whose clips these are: as the spool was enrolled, or as given by hand. Raises UserError without
    either: nothing is recorded without consent."""
    from haversack.collect.push import IDENTITY, identity_of

    if contributor is not None:
        device = DeviceRecord(id="local", model="computer", os="linux", lens_id="0")
        return device, Consent(
            contributor_pseudonym=contributor, policy_version=policy_version, retention_days=days
        )
    if not (spool / IDENTITY).is_file():
        raise UserError(
            "nothing is recorded without consent; enrol the spool (haversack collect push SPOOL --to URL "
            "--enrol CODE), or name who agreed with --contributor.",
            field="contributor",
        )
    found = identity_of(spool)
    agreed = found["consent"]
    return DeviceRecord(id=found["device"], model="computer", os="linux", lens_id="0"), Consent(
        contributor_pseudonym=str(agreed["contributor_pseudonym"]),
        policy_version=str(agreed["policy_version"]),
        retention_days=int(agreed["retention_days"]),
    )


def watch(
    source: str,
    spool: Path,
    device: DeviceRecord,
    consent: Consent,
    *,
    session: str,
    policy: Policy | None = None,
    imu: Imu | None = None,
    detector: str = "skin",
    faces: Faces | None = None,
    video_t0_ns: int = 0,
    wall_t0_ns: int | None = None,
    seconds: float | None = None,
) -> Watched:
    """Play `source` into an agent that keeps clips in `spool`; at most `seconds` of it."""
    fps, frames = frames_of(source)
    wall = time.time_ns() if wall_t0_ns is None else wall_t0_ns
    clip = ClipInfo(device=device, session=session, consent=consent, fps_nominal=fps, t0_wall_ns=wall)
    agent = EdgeAgent(spool, clip, make_detector(detector), policy, faces=faces)
    done, begun, first, last = Watched(), time.monotonic(), None, 0
    at = 0
    for t, picture in frames:
        t_ns = t + video_t0_ns
        if first is None:
            first = t_ns
            agent.tick(wall, t_ns)
        if seconds is not None and t_ns - first > seconds * SECOND:
            break
        while imu is not None and at < len(imu.t_ns) and imu.t_ns[at] <= t_ns:
            agent.push_imu(int(imu.t_ns[at]), tuple(imu.samples[at].tolist()))
            at += 1
        done.clips += [str(path) for path in agent.push_frame(t_ns, picture)]
        last = t_ns
    done.clips += [str(path) for path in agent.finish()]
    done.clips = [path for path in done.clips if Path(path).is_dir()]
    account = agent.account
    done.seconds = 0.0 if first is None else (last - first) / SECOND
    done.clock_s = time.monotonic() - begun
    done.frames, done.looks, done.detections = account.frames, account.looks, account.detections
    done.clip_bytes, done.states = account.clip_bytes, account.states
    return done
