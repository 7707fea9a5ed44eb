"""C2, self-calibration: focal length, distortion and the clocks' offset of a phone nobody has measured.

Paper: AoE (arXiv 2602.23893); the method is [inferred]: f starts at 0.85 of the longer side.

Points are followed through the clip. With the gyroscope's turns known, 31 values of f are tried: the one
under which 20 pairs of frames leave the least epipolar error. Bundle adjustment over key frames then refines
f and k1 with poses, points, the gyroscope's bias and the offset of its clock, twice, the gyroscope integrated
again in between (collect/_adjust.py).

What we changed: the offset is part of the adjustment, since the flow of near things spoils a correlation of
the turns by tens of milliseconds; the centre stays at the picture's middle, since clips of seconds do not fix
it. A clip without motion samples, with less than 6 degrees of turning, or with an RMS above 2 px gives no
estimate: it is not dropped, the registry answers for it.

The registry is what the stage wrote for all clips of one device model, lens and size: `pooled` takes the
median of those that hold. So it forgets a clip when the store does. Cost: about 60 ms a frame.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.collect._adjust import Problem, adjust, begun, positions
from haversack.collect._camera import Camera
from haversack.collect._clip_data import ClipData
from haversack.collect._rotations import log
from haversack.collect._stages import Clip, Outcome, Stage
from haversack.collect._tracks import Tracks, track
from haversack.collect.bundle import Manifest

F64 = npt.NDArray[np.float64]
SYSTEM = 1
RESULT, TRACKS = "calibration.json", "tracks.npz"
RMS_MOST_PX = 2.0
TURN_LEAST_DEG = 6.0
SCAN = np.geomspace(0.5, 1.6, 31)


# ---- the maths


def epipolar_error(camera: Camera, pairs: list[tuple[F64, F64, F64]]) -> float:
    """Median over pairs (points in one frame, in the other, the turn R between) of the error that the best
    direction of travel leaves, px."""
    found = []
    for one, two, R in pairs:
        normal = np.cross(camera.rays(one), camera.rays(two) @ R.T)
        _, vectors = np.linalg.eigh(normal.T @ normal)
        off = np.abs(normal @ vectors[:, 0])
        found.append(camera.f * float(np.median(off)))
    return float(np.median(found))


def key_frames(tracks: Tracks, t_ns: npt.NDArray[np.int64], spacing_s: float = 0.33) -> list[int]:
    """Frames about `spacing_s` apart, at most 110 of them, first and last included."""
    seconds = float(t_ns[-1] - t_ns[0]) * 1e-9
    count = int(np.clip(round(seconds / spacing_s), 4, 110)) + 1
    wanted = np.linspace(float(t_ns[0]), float(t_ns[-1]), min(count, tracks.frames))
    return sorted({int(np.abs(t_ns - at).argmin()) for at in wanted})


def prepared(tracks: Tracks, keys: list[int], camera: Camera, R: F64, least: int = 3) -> list[Problem]:
    """Two starts of the points that at least `least` key frames see, from known rotations: linear positions,
    and no motion; none when there are fewer than 20."""
    ids, places, frames = [], [], []
    for place, frame in enumerate(keys):
        track_ids, pixels = tracks.of(frame)
        ids.append(track_ids)
        places.append(pixels)
        frames.append(np.full(len(pixels), place))
    all_ids, at, key = np.concatenate(ids), np.concatenate(places).astype(np.float64), np.concatenate(frames)
    names, inverse, counts = np.unique(all_ids, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:500]
    wanted = np.zeros(len(names), bool)
    wanted[order[counts[order] >= least]] = True
    if wanted.sum() < 20:
        return []
    number = np.cumsum(wanted) - 1
    kept = wanted[inverse]
    point, key, at = number[inverse[kept]], key[kept], at[kept]
    rays = camera.rays(at)
    p, X = positions(R, key, point, rays)
    scale = max(float(np.median(np.linalg.norm(X[point] - p[key], axis=1))), 1e-9)
    linear = Problem(camera, R.copy(), p / scale, X / scale, key, point, at)
    local = linear.local()
    first = np.unique(point, return_index=True)[1]
    away = np.einsum("nij,nj->ni", R[key[first]], rays[first])
    bad = np.unique(point[(local[:, 2] < 0.05) | (local[:, 2] > 50) | ~np.isfinite(local).all(1)])
    linear.X[bad] = linear.p[key[first[bad]]] + away[bad]
    return [linear, Problem(camera, R.copy(), np.zeros((len(R), 3)), away, key, point, at)]


def calibrate(clip: ClipData, tracks: Tracks) -> dict[str, Any]:
    """f (px of the working size), k1, offset in s, RMS in px and the turning in degrees; `why` is set when
    there is no estimate."""
    width, height = clip.working
    camera = Camera.guess(width, height)
    found: dict[str, Any] = {"width": width, "height": height, "f": None, "k1": None, "why": None}
    if not clip.has_motion:
        return found | {"why": "no motion samples", "offset_s": None, "rms_px": None, "turn_deg": 0.0}
    offset = 0.0
    keys = key_frames(tracks, clip.t_ns)
    R = [np.eye(3)]
    for one, two in pairwise(keys):
        R.append(R[-1] @ clip.turned(one, two, offset))
    turn = float(np.degrees(max(np.linalg.norm(log(one)) for one in R)))
    found |= {"offset_s": None, "turn_deg": turn, "rms_px": None}
    if turn < TURN_LEAST_DEG:
        return found | {"why": "the camera turns too little"}
    pairs: list[tuple[F64, F64, F64]] = []
    for at in range(0, len(keys) - 4, max(1, (len(keys) - 4) // 20)):
        here, there = tracks.pair(keys[at], keys[at + 4])
        if len(here) >= 25:
            pairs.append((here.astype(np.float64), there.astype(np.float64), R[at].T @ R[at + 4]))
    if len(pairs) < 3:
        return found | {"why": "too few points are followed"}
    longest = max(width, height)
    errors = [
        epipolar_error(Camera(share * longest, camera.cx, camera.cy, width, height), pairs) for share in SCAN
    ]
    first = Camera(float(SCAN[int(np.argmin(errors))]) * longest, camera.cx, camera.cy, width, height)
    starts = prepared(tracks, keys, first, np.asarray(R))
    if not starts:
        return found | {"why": "too few points are followed"}
    for start in starts:
        gyro_into(start, clip, keys, offset)
    problem, rms = begun(starts, lens=True), float("inf")
    for _ in range(2):
        offset += problem.shift
        problem.shift = 0.0
        gyro_into(problem, clip, keys, offset)
        rms = adjust(problem, lens=True, iterations=25)
    offset += problem.shift
    found |= {
        "offset_s": offset,
        "f": problem.camera.f,
        "k1": problem.camera.k1,
        "rms_px": rms,
        "scan_f": first.f,
    }
    if not 0.45 * longest < problem.camera.f < 1.8 * longest:
        return found | {"why": "a focal length that no phone has"}
    return found | ({"why": f"rms above {RMS_MOST_PX:g} px"} if rms > RMS_MOST_PX else {})


def gyro_into(problem: Problem, clip: ClipData, keys: list[int], offset: float) -> None:
    """Give a problem the gyroscope's turns between its key frames."""
    turns = [clip.turned(one, two, offset) for one, two in pairwise(keys)]
    problem.turns = np.asarray(turns)
    problem.gaps = np.diff(clip.t_ns[keys]) * 1e-9
    when = clip.t_ns[keys] + round(offset * 1e9)
    rates = [np.interp(when, clip.imu_ns, clip.gyro[:, axis]) for axis in range(3)]
    problem.rates = np.stack(rates, 1)


# ---- the registry


def family(manifest: Manifest) -> tuple[str, str, int, int]:
    """What shares a lens: the device's model, the lens, the picture's size."""
    return manifest.device.model, manifest.device.lens_id, manifest.width, manifest.height


def pooled(clip: Clip, own: dict[str, Any]) -> tuple[Camera, int]:
    """The camera of a clip at the working size, the median over its family in the store, and of how many
    clips; of none it is the guess."""
    width, height = own["width"], own["height"]
    estimates = [own, *clip.peers("c2-calibration", RESULT)]
    mine = list(family(clip.manifest))
    held = {
        each.get("clip", ""): each for each in estimates if each["why"] is None and each["family"] == mine
    }
    guess = Camera.guess(width, height)
    if not held:
        return guess, 0
    f = float(np.median([each["f"] for each in held.values()]))
    k1 = float(np.median([each["k1"] for each in held.values()]))
    return Camera(f, guess.cx, guess.cy, width, height, k1), len(held)


def run(clip: Clip, out: Path) -> Outcome:
    """Follow points and calibrate; writes `calibration.json` and `tracks.npz`, which C3 reads."""
    data = ClipData.read(clip.path, clip.manifest)
    tracks = track(data.greys(), data.flow(Camera.guess(*data.working)))
    found = calibrate(data, tracks)
    found |= {"clip": clip.manifest.clip_uuid, "family": list(family(clip.manifest))}
    (out / RESULT).write_text(json.dumps(found, indent=1), encoding="utf-8")
    np.savez_compressed(out / TRACKS, frame=tracks.frame, track=tracks.track, at=tracks.at)
    metrics = {name: found[name] for name in ("f", "k1", "offset_s", "rms_px", "turn_deg", "why")}
    return Outcome(metrics)


def read_tracks(folder: Path, frames: int) -> Tracks:
    """What `run` wrote."""
    with np.load(folder / TRACKS) as file:
        return Tracks(file["frame"], file["track"], file["at"], frames)


STAGE = Stage("c2-calibration", "1", run)
