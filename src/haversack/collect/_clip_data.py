"""A clip as the stages see it: grey pictures at the working size with what moves masked, motion samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from haversack.collect._camera import Camera
from haversack.collect._rotations import exp, integrated
from haversack.collect._tables import Hand, read_table
from haversack.collect._video import decoded
from haversack.collect.bundle import Manifest
from haversack.collect.detector import SkinLimits, opened

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]
WORKING = 480
"""Pixels of the longer side that tracking works on, at most."""
GROWN = 0.15


@dataclass(frozen=True)
class ClipData:
    """Times of the frames ns [n] and of the motion samples, accelerometer and gyroscope [m, 3], the device's
    looks; pictures are read as they are asked for, stored upright or not (`rotation` is the manifest's)."""

    path: Path
    manifest: Manifest
    t_ns: I64
    imu_ns: I64
    accel: F64
    gyro: F64
    looks_ns: I64
    looks: list[list[Hand]] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path, manifest: Manifest) -> ClipData:
        """The tables of a bundle."""
        imu, edge = read_table(path / "imu.parquet"), read_table(path / "edge.parquet")
        samples = {axis: imu[axis].astype(np.float64) for axis in imu if axis != "t_ns"}
        return cls(
            path,
            manifest,
            read_table(path / "frames.parquet")["t_ns"],
            imu["t_ns"] - manifest.clock_offset_ns,
            np.stack([samples[axis] for axis in ("ax", "ay", "az")], 1),
            np.stack([samples[axis] for axis in ("gx", "gy", "gz")], 1),
            edge["t_ns"],
            edge["hands"],
        )

    @property
    def has_motion(self) -> bool:
        """Whether the motion sensors cover the frames."""
        if len(self.imu_ns) < 10:
            return False
        slack = 100_000_000
        return bool(self.imu_ns[0] <= self.t_ns[0] + slack and self.imu_ns[-1] >= self.t_ns[-1] - slack)

    @property
    def step(self) -> int:
        """Every so many pixels of the picture are one of the working size."""
        return max(1, round(max(self.manifest.width, self.manifest.height) / WORKING))

    @property
    def working(self) -> tuple[int, int]:
        """Width and height that tracking works on."""
        return self.manifest.width // self.step, self.manifest.height // self.step

    def pictures(self) -> Iterator[U8]:
        """RGB [height, width, 3] at the working size, means of squares."""
        step, (width, height) = self.step, self.working
        for frame in decoded(self.path / "video.mp4"):
            whole: U8 = frame.to_ndarray(format="rgb24")
            if step > 1:
                parts = whole[: height * step, : width * step].reshape(height, step, width, step, 3)
                whole = parts.mean((1, 3)).astype(np.uint8)
            yield whole

    def greys(self, *, masked: bool = True) -> Iterator[tuple[F32, Bool]]:
        """Grey pictures, and where nothing of a hand is."""
        for number, picture in enumerate(self.pictures()):
            grey = picture.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
            yield grey, self.free(number, picture) if masked else np.ones(grey.shape, bool)

    def free(self, number: int, picture: U8) -> Bool:
        """Where neither skin is nor a box of a hand that the device saw within 0.15 s, grown by 15 %."""
        taken = grown(skin(picture), max(3, picture.shape[1] // 60))
        height, width = taken.shape
        if len(self.looks_ns):
            near = int(np.abs(self.looks_ns - self.t_ns[number]).argmin())
            if abs(int(self.looks_ns[near] - self.t_ns[number])) <= 150_000_000:
                for hand in self.looks[near]:
                    dx, dy = GROWN * (hand.x1 - hand.x0), GROWN * (hand.y1 - hand.y0)
                    rows = slice(max(0, int((hand.y0 - dy) * height)), int((hand.y1 + dy) * height) + 1)
                    columns = slice(max(0, int((hand.x0 - dx) * width)), int((hand.x1 + dx) * width) + 1)
                    taken[rows, columns] = True
        return ~taken

    def turned(self, begin: int, end: int, offset_s: float = 0.0, bias: F64 | None = None) -> F64:
        """The gyroscope's turn of the camera from frame to frame; its axes are the camera's. A sample stands
        for the half periods about it."""
        period = (self.imu_ns[-1] - self.imu_ns[0]) / max(1, len(self.imu_ns) - 1)
        shift = round(offset_s * 1e9 + period / 2)
        return integrated(
            self.imu_ns, self.gyro, int(self.t_ns[begin]) + shift, int(self.t_ns[end]) + shift, bias
        )

    def flow(self, camera: Camera, offset_s: float = 0.0) -> Flow:
        """Where points of a frame are in the next if the camera only turns."""
        return Flow(self, camera, offset_s)


@dataclass(frozen=True)
class Flow:
    """x' = K R^T K^-1 x with the gyroscope's R; the same place without one."""

    clip: ClipData
    camera: Camera
    offset_s: float

    def __call__(self, frame: int, at: F64) -> F64:
        if not self.clip.has_motion:
            return at
        R = self.clip.turned(frame - 1, frame, self.offset_s)
        return self.camera.project(self.camera.rays(at) @ R)


def skin(picture: U8, limits: SkinLimits | None = None) -> Bool:
    """Pixels with a skin's chroma, without what is thinner than three."""
    limits = limits or SkinLimits()
    red, green, blue = (picture[..., at].astype(np.float32) for at in range(3))
    cb = 128 - 0.168736 * red - 0.331264 * green + 0.5 * blue
    cr = 128 + 0.5 * red - 0.418688 * green - 0.081312 * blue
    return opened((cb > limits.cb[0]) & (cb < limits.cb[1]) & (cr > limits.cr[0]) & (cr < limits.cr[1]))


def grown(mask: Bool, by: int) -> Bool:
    """With everything within `by` pixels (in a square)."""
    total = np.pad(mask, by + 1).astype(np.int32).cumsum(0).cumsum(1)
    side = 2 * by + 1
    found = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    return np.asarray(found[: mask.shape[0], : mask.shape[1]] > 0)


def small_turn(rays_one: F64, rays_two: F64, rounds: int = 4) -> F64:
    """The turn w [3] of the camera between two frames that explains the rays of far points best: rays_two =
    exp(-w) rays_one, by least squares of absolute size."""
    w = np.zeros(3)
    weight = np.ones(len(rays_one))
    for _ in range(rounds):
        moved = rays_one @ exp(w)
        # exp(-dw) moved = moved + moved x dw
        J = np.zeros((len(moved), 3, 3))
        J[:, 0, 1], J[:, 0, 2] = -moved[:, 2], moved[:, 1]
        J[:, 1, 0], J[:, 1, 2] = moved[:, 2], -moved[:, 0]
        J[:, 2, 0], J[:, 2, 1] = -moved[:, 1], moved[:, 0]
        r = rays_two - moved
        H = np.einsum("n,nri,nrj->ij", weight, J, J) + 1e-9 * np.eye(3)
        w = w + np.linalg.solve(H, np.einsum("n,nri,nr->i", weight, J, r))
        off = np.linalg.norm(rays_two - rays_one @ exp(w), axis=1)
        weight = 1 / np.maximum(off, 1e-4)
    return w
