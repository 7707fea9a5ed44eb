"""C3, the camera's trajectory: where it was at every frame, in metres, z up.

Paper: AoE (arXiv 2602.23893), which has such a stage in its successor; the method is [inferred].

Rotations start as the gyroscope's, positions as the linear solution under them, and bundle adjustment over
key frames refines both with the gyroscope's bias (collect/_adjust.py). Points on hands were never followed.
Each frame's pose is then fitted to the points. Scale and gravity are a linear fit: over spans of about a
second, the second difference of the seen positions is the accelerometer's reading, turned into the world,
weighted by a triangle and integrated, plus gravity; unknowns are scale, gravity (of known length) and the
sensor's bias.

A frame with fewer than 15 points that fit within 3 px is not valid; where that lasts for 0.5 s tracking
counts as lost. Without motion samples, or where the fit leaves the scale open by more than a fifth,
`scale_source` is `none`: lengths are then in units of the median depth.

Bring your own: `[c3-trajectory] npz = "/folder/{clip}.npz"` in `pipeline.toml` reads T_wc [n, 4, 4] of the
frames (metres, z up) and K [3, 3] in pixels of the picture, as DROID-SLAM, ViPE and the like are converted
to.

What we changed: one adjustment of the whole clip, of at most 110 key frames, instead of a window; the
accelerometer enters after it, not in it. Limits: no loop closure, no rolling shutter, one camera. Cost: about
20 ms a frame.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.collect._adjust import Problem, adjust, begun, jacobians
from haversack.collect._camera import Camera
from haversack.collect._clip_data import ClipData, small_turn
from haversack.collect._rotations import exp, log
from haversack.collect._stages import Clip, Outcome, Stage
from haversack.collect._tracks import Tracks
from haversack.collect.stages.c2_calibration import (
    RESULT as CALIBRATION,
)
from haversack.collect.stages.c2_calibration import (
    gyro_into,
    key_frames,
    pooled,
    prepared,
    read_tracks,
)
from haversack.core.errors import UserError

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
SYSTEM = 1
POSES, CAMERA = "trajectory.npz", "camera.json"
STANDARD_GRAVITY = 9.81
INLIERS_LEAST, INLIER_PX, LOST_S = 15, 3.0, 0.5


@dataclass(frozen=True)
class Trajectory:
    """T_wc of every frame as R [n, 3, 3] and p [n, 3]; which are valid; the camera at the working size."""

    R: F64
    p: F64
    valid: Bool
    camera: Camera
    scale_source: str
    rms_px: float


# ---- the maths


def metric(t_s: F64, p: F64, R: F64, imu_s: F64, accel: F64, span_s: float = 1.0) -> tuple[float, F64, float]:
    """Metres a unit of `p`, gravity [3] in its axes, and the share by which the scale is open. `t_s` [k], `p`
    [k, 3], `R` [k, 3, 3] of key frames; `accel` [m, 3] at `imu_s`, specific force in the camera's axes."""
    inside = (imu_s >= t_s[0]) & (imu_s <= t_s[-1])
    when, force = imu_s[inside], accel[inside]
    turned = between(t_s, R, when)
    world = np.einsum("nij,nj->ni", turned, force)
    dt = np.gradient(when)
    step = max(1, round(span_s / float(np.median(np.diff(t_s)))))
    rows, wanted = [], []
    for i in range(0, len(t_s) - 2 * step):
        a, b, c = t_s[i], t_s[i + step], t_s[i + 2 * step]
        weight = np.clip(np.minimum((when - a) / (b - a), (c - when) / (c - b)), 0, None) * dt
        seen = (p[i + 2 * step] - p[i + step]) / (c - b) - (p[i + step] - p[i]) / (b - a)
        row = np.zeros((3, 7))
        row[:, 0] = seen
        row[:, 1:4] = -weight.sum() * np.eye(3)
        row[:, 4:7] = np.einsum("n,nij->ij", weight, turned)
        rows.append(row)
        wanted.append(weight @ world)
    if len(rows) < 4:
        return 1.0, np.array([0.0, 0.0, -STANDARD_GRAVITY]), float("inf")
    A, y = np.concatenate(rows), np.concatenate(wanted)
    bias = np.concatenate([np.zeros((3, 4)), np.eye(3) * 2.0], 1)
    A, y = np.concatenate([A, bias]), np.concatenate([y, np.zeros(3)])
    x = np.linalg.lstsq(A, y, rcond=None)[0]
    for _ in range(4):  # gravity's length is known
        g = x[1:4]
        length = float(np.linalg.norm(g))
        row = np.zeros((1, 7))
        row[0, 1:4] = 50 * g / length
        A2, y2 = np.concatenate([A, row]), np.append(y, 50 * STANDARD_GRAVITY)
        x = np.linalg.lstsq(A2, y2, rcond=None)[0]
    left = A2 @ x - y2
    noise = float(left @ left) / max(1, len(y2) - 7)
    spread = float(np.sqrt(max(0.0, noise * np.linalg.inv(A2.T @ A2 + 1e-12 * np.eye(7))[0, 0])))
    return float(x[0]), x[1:4], spread * np.sqrt(2 * step) / max(abs(float(x[0])), 1e-9)


def between(t: F64, R: F64, wanted: F64) -> F64:
    """Rotations [n, 3, 3] at `wanted` times, slerped."""
    after = np.clip(np.searchsorted(t, wanted), 1, len(t) - 1)
    turns = np.stack([log(one.T @ two) for one, two in pairwise(R)])
    share = np.clip((wanted - t[after - 1]) / (t[after] - t[after - 1]), 0, 1)
    return np.stack([R[k - 1] @ exp(s * turns[k - 1]) for k, s in zip(after, share, strict=True)])


def upright(g: F64, R0: F64) -> F64:
    """The rotation of the world after which gravity points along -z and the first camera looks along y."""
    z = -g / np.linalg.norm(g)
    y = R0[:, 2] - (R0[:, 2] @ z) * z
    y = y / max(float(np.linalg.norm(y)), 1e-9)
    return np.stack([np.cross(y, z), y, z])


def resected(
    camera: Camera, R: F64, p: F64, X: F64, frame: I64, point: I64, at: F64, rounds: int = 6
) -> tuple[F64, F64, I64, F64]:
    """Poses of all frames fitted to known points, Gauss-Newton with Huber 1 px and a light pull to where they
    start; also inliers of each frame [n] and the errors' lengths [obs]."""
    count = len(R)
    start_R, start_p = R.copy(), p.copy()
    for _ in range(rounds):
        problem = Problem(camera, R, p, X, frame, point, at)
        local = problem.local()
        local[:, 2] = np.maximum(local[:, 2], 0.02)
        error = problem.errors()
        length = np.linalg.norm(error, axis=1)
        weight = 1.0 / np.maximum(length, 1.0)
        weight[length > 10] = 0
        A = jacobians(problem, local)[0]
        H = np.zeros((count, 6, 6))
        g = np.zeros((count, 6))
        np.add.at(H, frame, np.einsum("n,nri,nrj->nij", weight, A, A))
        np.add.at(g, frame, np.einsum("n,nri,nr->ni", weight, A, error))
        pull = np.array([100.0] * 3 + [100.0] * 3)
        off = np.concatenate(
            [np.stack([log(a.T @ b) for a, b in zip(start_R, R, strict=True)]), p - start_p], 1
        )
        H += np.diag(pull)
        g += pull * off
        step = -np.linalg.solve(H, g[..., None])[..., 0]
        R = np.stack([one @ exp(move[:3]) for one, move in zip(R, step, strict=True)])
        p = p + step[:, 3:]
    length = np.linalg.norm(Problem(camera, R, p, X, frame, point, at).errors(), axis=1)
    inliers = np.bincount(frame[length < INLIER_PX], minlength=count)
    return R, p, inliers, length


def trajectory(
    clip: ClipData, tracks: Tracks, camera: Camera, offset_s: float, *, gyro: bool = True
) -> Trajectory | None:
    """The camera's path; None where too few points were followed. `gyro` false goes without the gyroscope."""
    keys = key_frames(tracks, clip.t_ns)
    R = [np.eye(3)]
    gyro = gyro and clip.has_motion
    for one, two in pairwise(keys):
        R.append(R[-1] @ (clip.turned(one, two, offset_s) if gyro else _seen(tracks, camera, one, two)))
    starts = prepared(tracks, keys, camera, np.asarray(R))
    if not starts:
        return None
    for start in starts if gyro else []:
        gyro_into(start, clip, keys, offset_s)
    problem = begun(starts, lens=False)
    rms = adjust(problem, iterations=25)
    R_all, p_all, inliers = _every_frame(clip, tracks, problem, keys, offset_s, gyro)
    t_s = (clip.t_ns[keys] - clip.t_ns[0]) * 1e-9
    scale, g, open_ = 1.0, np.array([0.0, 0.0, -1.0]), float("inf")
    if clip.has_motion:
        imu_s = (clip.imu_ns - clip.t_ns[0]) * 1e-9 - offset_s
        scale, g, open_ = metric(t_s, problem.p, problem.R, imu_s, clip.accel)
    source = "imu" if open_ < 0.2 and scale > 0 else "none"
    scale = scale if source == "imu" else 1.0
    turn = upright(g, R_all[0])
    moved = (p_all - p_all[0]) @ turn.T * scale
    return Trajectory(turn @ R_all, moved, inliers >= INLIERS_LEAST, camera, source, rms)


def _seen(tracks: Tracks, camera: Camera, one: int, two: int) -> F64:
    R = np.eye(3)
    for frame in range(one, two):
        here, there = tracks.pair(frame, frame + 1)
        if len(here) >= 12:
            one_rays, two_rays = camera.rays(here.astype(np.float64)), camera.rays(there.astype(np.float64))
            R = R @ exp(small_turn(one_rays, two_rays))
    return R


def _every_frame(
    clip: ClipData, tracks: Tracks, problem: Problem, keys: list[int], offset_s: float, gyro: bool
) -> tuple[F64, F64, I64]:
    """Poses of all frames, and how many points fit each."""
    seconds = (clip.t_ns - clip.t_ns[0]) * 1e-9
    at_keys = seconds[keys]
    R = between(at_keys, problem.R, seconds)
    if gyro:
        for number, (one, two) in enumerate(pairwise(keys)):
            for frame in range(one + 1, two):
                R[frame] = problem.R[number] @ clip.turned(one, frame, offset_s, problem.bias)
    p = np.stack([np.interp(seconds, at_keys, problem.p[:, axis]) for axis in range(3)], 1)
    names = _names(tracks, keys)
    place = np.searchsorted(names, tracks.track)
    known = (place < len(names)) & (names[np.minimum(place, len(names) - 1)] == tracks.track)
    frames, point = tracks.frame[known].astype(np.int64), place[known]
    pixels = tracks.at[known].astype(np.float64)
    R, p, inliers, _ = resected(problem.camera, R, p, problem.X, frames, point, pixels)
    return R, p, inliers


def _names(tracks: Tracks, keys: list[int]) -> I64:
    """The tracks that became points, in the order of `prepared`."""
    all_ids = np.concatenate([tracks.of(key)[0] for key in keys])
    names, counts = np.unique(all_ids, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:500]
    wanted = np.zeros(len(names), bool)
    wanted[order[counts[order] >= 3]] = True
    return names[wanted].astype(np.int64)


def lost_share(valid: Bool, t_ns: I64) -> float:
    """The share of frames in runs of invalid ones of at least LOST_S."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], (~valid).astype(np.int8), [0]])))
    lost = 0
    for begin, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        if (t_ns[end - 1] - t_ns[begin]) * 1e-9 >= LOST_S or end - begin == len(valid):
            lost += end - begin
    return lost / max(1, len(valid))


# ---- a trajectory of one's own


def given_trajectory(path: Path, data: ClipData) -> Trajectory:
    """The trajectory of an npz. Raises UserError for one that does not hold."""
    try:
        with np.load(path, allow_pickle=False) as file:
            T, K = np.asarray(file["T_wc"], np.float64), np.asarray(file["K"], np.float64)
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} is no trajectory ({error}).", field="npz", given=str(path)) from error
    n = len(data.t_ns)
    if T.shape != (n, 4, 4) or K.shape != (3, 3) or not np.isfinite(T).all():
        raise UserError(
            f"{path}: T_wc is {list(T.shape)}, K {list(K.shape)}; allowed are [{n}, 4, 4] and [3, 3].",
            field="npz",
            given=str(path),
        )
    R = T[:, :3, :3]
    if np.abs(np.linalg.det(R) - 1).max() > 1e-3:
        raise UserError(f"{path}: a rotation's determinant is not 1.", field="npz", given=str(path))
    whole = Camera(K[0, 0], K[0, 2], K[1, 2], data.manifest.width, data.manifest.height)
    return Trajectory(R, T[:, :3, 3], np.ones(n, bool), whole.scaled(*data.working), "given", 0.0)


def run(clip: Clip, out: Path) -> Outcome:
    """Writes `trajectory.npz` (t_ns, R, p, valid) and `camera.json`."""
    data = ClipData.read(clip.path, clip.manifest)
    own = clip.record("c2-calibration", CALIBRATION)
    camera, pool = pooled(clip, own)
    name = clip.settings.get("npz")
    if name:
        found: Trajectory | None = given_trajectory(
            Path(str(name).format(clip=clip.manifest.clip_uuid)), data
        )
    else:
        tracks = read_tracks(clip.stages["c2-calibration"], len(data.t_ns))
        found = trajectory(data, tracks, camera, own["offset_s"] or 0.0)
    if found is None:
        return Outcome({"valid": 0.0, "pooled": pool}, "no-trajectory")
    np.savez_compressed(
        out / POSES, t_ns=data.t_ns, R=found.R, p=found.p.astype(np.float64), valid=found.valid
    )
    record: dict[str, Any] = {**vars(found.camera), "scale_source": found.scale_source, "pooled": pool}
    (out / CAMERA).write_text(json.dumps(record, indent=1), encoding="utf-8")
    path_m = float(np.linalg.norm(np.diff(found.p, axis=0), axis=1).sum())
    metrics = {
        **{"valid": float(found.valid.mean()), "lost": lost_share(found.valid, data.t_ns)},
        **{"rms_px": found.rms_px, "path_m": path_m, "scale_source": found.scale_source, "pooled": pool},
    }
    return Outcome(metrics)


STAGE = Stage("c3-trajectory", "1", run)
