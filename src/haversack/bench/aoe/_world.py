"""A synthetic day seen from a neck: a room, two hands at work, walks and idle stretches, with exact truth.

The camera turns on an analytic path inside a panorama of procedural textures (pinhole, no distortion; its own
focal length for each phone). Hands are 21 joints of capsules with shaded skin that reach, grasp, lift,
transport and place boxes; somebody's face passes now and then. The motion samples come from the same path,
with noise (0.02 m/s^2, 0.002 rad/s) and a gyroscope's bias. 320 x 180 at 15 frames a second. Rendering is
numpy; about ten milliseconds a frame.

Not modelled yet: lens distortion, rolling shutter, depth of the room (the camera turns, and bounces only in
its motion samples), motion blur.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from haversack.bench.aoe._hand import PARENT, joints
from haversack.collect._rotations import exp, log

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
WIDTH, HEIGHT, FPS = 320, 180, 15
IMU_HZ = 100
SECOND = 1_000_000_000
FOCALS = (0.72, 0.78, 0.85, 0.92, 1.0)
"""Of five phones, as shares of the width."""
G = 9.81


@dataclass(frozen=True)
class Stretch:
    """A part of a day: `kind` is rest, sit, walk or work; from, to in seconds; `phase` draws its details."""

    kind: str
    begin: float
    end: float
    phase: int


def script(seed: int, seconds: float) -> list[Stretch]:
    """A day: work takes 10 to 30 % of it, in stretches of 15 to 50 s."""
    rng = np.random.default_rng([seed, 1])
    found, at = [Stretch("sit", 0.0, 8.0, 0)], 8.0
    while at < seconds:
        kind = str(rng.choice(["work", "sit", "walk", "rest"], p=[0.3, 0.3, 0.25, 0.15]))
        long = {"work": (15, 50), "sit": (20, 80), "walk": (20, 60), "rest": (45, 100)}[kind]
        end = min(seconds, at + float(rng.uniform(*long)))
        found.append(Stretch(kind, at, end, int(rng.integers(1 << 30))))
        at = end
    return found


@dataclass(frozen=True)
class Shown:
    """The truth of one moment: rotation of the camera in the room, both hands' joints in camera axes (None
    when away), whether each holds something, the object in camera axes (None when out of the picture)."""

    R_wc: F64
    hands: tuple[F64 | None, F64 | None]
    contact: tuple[bool, bool]
    box: F64 | None


class Day:
    """A day of `seconds` under a seed; the same seed is always the same day."""

    def __init__(self, seed: int, seconds: float) -> None:
        self.seed, self.seconds = seed, seconds
        self.stretches = script(seed, seconds)
        rng = np.random.default_rng([seed, 2])
        self.focal = float(FOCALS[int(rng.integers(len(FOCALS)))]) * WIDTH
        self.K = np.array([[self.focal, 0, (WIDTH - 1) / 2], [0, self.focal, (HEIGHT - 1) / 2], [0, 0, 1.0]])
        self._waves = rng.uniform(0.05, 0.35, (6, 2)), rng.uniform(0, 6.28, (6, 2))
        self._panorama = panorama(rng)
        self._skin = np.array([205, 150, 120], np.float32) * float(rng.uniform(0.65, 1.05))
        self._size = float(rng.uniform(0.92, 1.08))
        rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
        pixels = np.stack([columns.ravel(), rows.ravel(), np.ones(rows.size)])
        rays = np.linalg.inv(self.K) @ pixels
        self._rays = rays / np.linalg.norm(rays, axis=0)
        self._at = 0

    # ---- truth

    def stretch(self, t: float) -> Stretch:
        """The part of the day at a time; asked in rising order it is found at once."""
        if self._at >= len(self.stretches) or self.stretches[self._at].begin > t:
            self._at = 0
        while self._at + 1 < len(self.stretches) and self.stretches[self._at].end <= t:
            self._at += 1
        return self.stretches[self._at]

    def interactions(self) -> list[tuple[float, float]]:
        """Times (from, to) in which a hand is in the picture at work: what is to be kept."""
        return [(part.begin + 1.0, part.end - 1.0) for part in self.stretches if part.kind == "work"]

    def rotation(self, t: float) -> F64:
        """Camera axes (x right, y down, z forward) to the room's (the same when it looks straight ahead)."""
        yaw, pitch, roll = self._angles(t)
        return (
            exp(np.array([0.0, yaw, 0.0]))
            @ exp(np.array([pitch, 0.0, 0.0]))
            @ exp(np.array([0.0, 0.0, roll]))
        )

    def _angles(self, t: float) -> tuple[float, float, float]:
        """Yaw, pitch, roll: slow waves whose size is the stretch's, eased in and out; a walk's bounce."""
        part = self.stretch(t)
        ease = float(np.clip(min(t - part.begin, part.end - t) / 1.5, 0, 1))
        size = (
            ease * ease * (3 - 2 * ease) * {"rest": 0.0, "sit": 0.15, "walk": 0.25, "work": 0.08}[part.kind]
        )
        hz, start = self._waves
        local = t - part.begin
        waves = np.sin(2 * np.pi * hz * local + start) - np.sin(start)
        yaw, pitch, roll = size * waves[0].sum(), 0.5 * size * waves[1].sum(), 0.3 * size * waves[2].sum()
        if part.kind == "walk":
            yaw += ease * 0.012 * np.sin(2 * np.pi * 1.0 * local)
            pitch += ease * 0.010 * np.sin(2 * np.pi * 2.0 * local)
        return float(yaw), float(pitch) - 0.35, float(roll)

    def shown(self, t: float) -> Shown:
        """What there is to see at a time."""
        part, R = self.stretch(t), self.rotation(t)
        if part.kind != "work":
            return Shown(R, (None, None), (False, False), None)
        rng = np.random.default_rng(part.phase)
        period, side = float(rng.uniform(3.5, 5.5)), float(rng.uniform(0.10, 0.16))
        local = t - part.begin
        inside = np.clip(min(local, part.end - t) / 1.0, 0, 1)
        hands: list[F64 | None] = []
        contacts = []
        box = None
        for right in (False, True):
            wrist, closed, held, thing = at_work(local + (0.0 if right else period / 2), period, side, right)
            wrist = wrist + np.array([0.0, 0.30 * (1 - inside), 0.0])  # they come from below
            turn = exp(np.array([0.5, 0.0, 0.0])) @ exp(np.array([0.0, 0.0, -0.35 if right else 0.35]))
            pose = joints(closed, right, self._size) @ _HAND_AXES.T @ turn.T + wrist
            hands.append(R.T @ _LOOK_DOWN @ pose.T)
            contacts.append(held)
            if right:
                box = R.T @ _LOOK_DOWN @ (thing + np.array([0.0, 0.30 * (1 - inside), 0.0]))
        return Shown(R, (_rows(hands[0]), _rows(hands[1])), (contacts[0], contacts[1]), box)

    # ---- sensors

    def imu(self, begin: float = 0.0, end: float | None = None) -> tuple[npt.NDArray[np.int64], F64]:
        """Times ns [n] and samples [n, 6] in camera axes: specific force m/s^2, turning rad/s."""
        rng = np.random.default_rng([self.seed, 3])
        times = (
            np.arange(round(begin * IMU_HZ), round((self.seconds if end is None else end) * IMU_HZ)) / IMU_HZ
        )
        bias = rng.normal(0, 0.002, 3) + np.cumsum(rng.normal(0, 2e-5, (len(times), 3)), axis=0)
        samples = np.empty((len(times), 6))
        step = 1.0 / IMU_HZ
        now = self.rotation(float(times[0])) if len(times) else np.eye(3)
        for at, t in enumerate(times.tolist()):
            after = self.rotation(t + step)
            up = np.array([0.0, -G, 0.0])
            part = self.stretch(t)
            if part.kind == "walk":
                up = up + np.array([0.0, 2.0 * np.sin(2 * np.pi * 2.0 * (t - part.begin)), 0.0])
            samples[at, :3] = now.T @ up
            samples[at, 3:] = log(now.T @ after) / step
            now = after
        samples[:, :3] += rng.normal(0, 0.02, (len(times), 3))
        samples[:, 3:] += rng.normal(0, 0.002, (len(times), 3)) + bias
        return np.round(times * SECOND).astype(np.int64), samples

    def frames(self, begin: float = 0.0, end: float | None = None) -> Iterator[tuple[int, U8]]:
        """(t_ns, RGB u8 [180, 320, 3])."""
        last = self.seconds if end is None else end
        for at in range(round(begin * FPS), round(last * FPS)):
            yield round(at * SECOND / FPS), self.picture(at / FPS)

    def picture(self, t: float) -> U8:
        """The camera's picture at a time, with sensor noise."""
        shown = self.shown(t)
        image = self._background(shown.R_wc)
        self._passer(image, t)
        if shown.box is not None:
            draw_box(image, self.K, shown.box, t)
        for hand in shown.hands:
            if hand is not None:
                draw_hand(image, self.K, hand, self._skin)
        rng = np.random.default_rng([self.seed, 4, round(t * 1000)])
        noise = rng.integers(-4, 5, image.shape, dtype=np.int16)
        light = 1.0 + 0.06 * np.sin(0.4 * t)
        return np.clip(image * light + noise, 0, 255).astype(np.uint8)

    def _background(self, R: F64) -> F32:
        x, y, z = R @ self._rays
        height, width = self._panorama.shape[:2]
        column = ((np.arctan2(x, z) / (2 * np.pi) + 0.5) * width).astype(np.int64) % width
        row = ((np.arcsin(np.clip(y, -1, 1)) / np.pi + 0.5) * height).astype(np.int64)
        return self._panorama[np.clip(row, 0, height - 1), column].reshape(HEIGHT, WIDTH, 3).copy()

    def _passer(self, image: F32, t: float) -> None:
        """A face in the upper part, some seconds of every other stretch of sitting."""
        part = self.stretch(t)
        if part.kind != "sit" or part.phase % 2 or not 3 < t - part.begin < 11:
            return
        x, y = WIDTH * (t - part.begin - 3) / 8, 40 + 4 * np.sin(3 * t)
        rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
        face = ((columns - x) / 14) ** 2 + ((rows - y) / 19) ** 2 < 1
        image[face] = (200, 150, 125)
        body = ((columns - x) / 34) ** 2 + ((rows - y - 62) / 44) ** 2 < 1
        image[body] = (70, 80, 120)


_HAND_AXES = np.array([[-1.0, 0, 0], [0, 0, 1.0], [0, 1.0, 0]])
"""The hand's axes in the camera's: fingers forward, its palm downward."""
_LOOK_DOWN = exp(np.array([-0.35, 0.0, 0.0]))
"""The camera around a neck looks down by so much; hands are placed in front of that."""


def _rows(points: F64 | None) -> F64 | None:
    return None if points is None else np.ascontiguousarray(points.T)


def at_work(t: float, period: float, side: float, right: bool) -> tuple[F64, float, bool, F64]:
    """One hand's cycle: reach, grasp, lift and transport, place, back. Wrist [3] (camera axes when it looks
    at the hands), how closed it is, whether it holds the object, and where the object is."""
    u = (t / period) % 2.0
    back = u >= 1.0
    u %= 1.0
    sign = 1.0 if right else -1.0
    near, far = np.array([sign * side, 0.10, 0.42]), np.array([-sign * 0.02, 0.06, 0.52])
    begin, goal = (far, near) if back else (near, far)
    ready = np.array([sign * (side + 0.03), 0.14, 0.38])
    offset = np.array([0.0, 0.02, 0.10])

    def eased(a: float, b: float) -> float:
        s = float(np.clip((u - a) / (b - a), 0, 1))
        return s * s * (3 - 2 * s)

    if u < 0.25:
        return ready + (begin - ready) * eased(0, 0.25), 0.15, False, begin + offset
    if u < 0.35:
        return begin, 0.15 + 0.5 * eased(0.25, 0.35), u > 0.31, begin + offset
    if u < 0.75:
        s = eased(0.35, 0.75)
        lift = np.array([0.0, -0.07 * np.sin(np.pi * s), 0.0])
        wrist = begin + (goal - begin) * s + lift
        return wrist, 0.65, True, wrist + offset
    if u < 0.82:
        return goal, 0.65 - 0.5 * eased(0.75, 0.82), u < 0.78, goal + offset
    return goal + (ready - goal) * eased(0.82, 1.0), 0.15, False, goal + offset


def panorama(rng: np.random.Generator) -> F32:
    """Walls and floor: noise of several scales and a few hundred rectangles, f32 [512, 1024, 3]."""
    height, width = 512, 1024
    image = np.zeros((height, width, 3), np.float32)
    image[: height // 2] = rng.uniform(110, 165) + np.array([-8.0, 0.0, 6.0])
    image[height // 2 :] = np.array([95, 105, 110]) * rng.uniform(0.8, 1.2)
    for scale in (4, 8, 16, 64):
        coarse = rng.normal(0, 14, (height // scale, width // scale, 1)).astype(np.float32)
        image += np.kron(coarse, np.ones((scale, scale, 1), np.float32))
    for _ in range(420):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        w, h = int(rng.integers(6, 70)), int(rng.integers(6, 50))
        colour = rng.uniform(40, 200, 3)
        colour[0] = min(colour[0], colour[1] - 5)  # rooms of cool colours: skin is warmer
        image[y : y + h, x : x + w] = colour
    return np.clip(image, 5, 250)


def draw_hand(image: F32, K: F64, points: F64, skin: F32) -> None:
    """Capsules between joints and the palm, far ones first, shaded across."""
    if points[:, 2].min() < 0.08:
        return
    flat = points @ K.T
    flat = flat[:, :2] / flat[:, 2:]
    px = K[0, 0] / points[:, 2]
    bones = [(int(PARENT[at]), at, 0.010) for at in range(1, 21)]
    bones += [(0, at, 0.018) for at in (5, 9, 13, 17)]
    for one, two, radius in sorted(bones, key=lambda bone: -(points[bone[0], 2] + points[bone[1], 2])):
        draw_capsule(image, flat[one], flat[two], radius * float(px[one] + px[two]) / 2, skin)
    forearm = flat[0] + 2.2 * (flat[0] - flat[9])
    draw_capsule(image, flat[0], forearm, 0.028 * float(px[0]), skin * 0.93)


def draw_capsule(image: F32, a: F64, b: F64, radius: float, colour: F32) -> None:
    """A thick line with round ends, darker at its rim."""
    left, right = int(min(a[0], b[0]) - radius), int(max(a[0], b[0]) + radius) + 2
    top, bottom = int(min(a[1], b[1]) - radius), int(max(a[1], b[1]) + radius) + 2
    left, right, top, bottom = max(0, left), min(WIDTH, right), max(0, top), min(HEIGHT, bottom)
    if left >= right or top >= bottom:
        return
    rows, columns = np.mgrid[top:bottom, left:right].astype(np.float32)
    along = b - a
    length = float(along @ along)
    s = np.clip(((columns - a[0]) * along[0] + (rows - a[1]) * along[1]) / max(length, 1e-9), 0, 1)
    distance = np.hypot(columns - a[0] - s * along[0], rows - a[1] - s * along[1]) / max(radius, 0.5)
    inside = distance < 1
    image[top:bottom, left:right][inside] = colour * (1.0 - 0.35 * distance[inside, None] ** 2)


def draw_box(image: F32, K: F64, centre: F64, t: float) -> None:
    """A striped cube of 6 cm, its front face."""
    if centre[2] < 0.1:
        return
    x, y = (K @ centre)[:2] / centre[2]
    half = 0.03 * K[0, 0] / centre[2]
    left, right, top, bottom = (int(v) for v in (x - half, x + half, y - half, y + half))
    left, right, top, bottom = max(0, left), min(WIDTH, right), max(0, top), min(HEIGHT, bottom)
    if left < right and top < bottom:
        rows, columns = np.mgrid[top:bottom, left:right]
        stripes = (((columns - x + rows - y) / 4).astype(np.int64) % 2)[..., None]
        image[top:bottom, left:right] = np.where(stripes, (40, 90, 180), (60, 170, 190))
