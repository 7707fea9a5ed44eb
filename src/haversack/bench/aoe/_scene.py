"""Clips with exact truth in a room that has depth: a moving camera around a neck, two hands at a table.

The room is a textured box with a table and boxes on it, cast ray by ray; the camera moves on an analytic path
(sway and turns of somebody at work), pinhole with radial distortion k1, focal length of one of five phones.
Hands are 21 joints of capsules that reach, grasp, lift, transport, place and release in strokes of least
jerk; a carried box goes with the hand. Motion samples come from the same path, with noise (0.02 m/s^2, 0.002
rad/s), biases, and a clock that is ahead of the camera's by a few milliseconds.

Truth of a moment: the camera's pose, K, k1, the clock's offset, both hands' joints, contact, and the list of
actions. World: metres, z up; camera: x right, y down, z forward. 320 x 180 at 15 frames a second; about 30
ms a frame. Not modelled: rolling shutter, shadows, light that changes with the place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from haversack.bench.aoe._hand import PARENT, joints
from haversack.bench.aoe._world import FOCALS, FPS, HEIGHT, IMU_HZ, SECOND, WIDTH, draw_capsule
from haversack.collect._rotations import exp, log

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
GRAVITY = np.array([0.0, 0.0, -9.81])
ROOM = np.array([[-2.6, -1.4, 0.0], [2.4, 3.1, 2.7]])
TABLE = (-0.8, 0.8, 0.16, 0.98, 0.75)
"""From and to in x, from and to in y, height of its top."""
BASE = np.array([[1.0, 0, 0], [0, 0, 1.0], [0, -1.0, 0]])
"""The camera's axes in the world's when it looks along y."""
HAND_AXES = np.array([[-1.0, 0, 0], [0, 1.0, 0], [0, 0, -1.0]])
"""The hand's axes in the world's: fingers along y, palm down."""
FORWARD = np.array([0.0, 0.10, -0.03])
"""From the wrist to what the fingers hold."""
BOX = np.array([0.05, 0.05, 0.06])
COLOURS = {"blue": (50, 90, 190), "green": (50, 150, 80), "purple": (110, 60, 150), "cyan": (60, 165, 185)}


@dataclass(frozen=True)
class Action:
    """What one hand (0 left, 1 right) does from `t0` to `t1` (seconds), with which object (-1: none)."""

    t0: float
    t1: float
    hand: int
    verb: str
    thing: int = -1


@dataclass(frozen=True)
class Stroke:
    """A movement of least jerk of one wrist, and of how closed the hand is."""

    t0: float
    t1: float
    begin: F64
    end: F64
    closed: tuple[float, float]
    thing: int
    held: bool


@dataclass
class Scene:
    """A clip of `seconds` under a seed. `person` and `phone` draw the hand and the lens, `room` the textures;
    `hands` false leaves the hands out, `motion` scales the camera's path."""

    seed: int
    seconds: float = 8.0
    person: int = 0
    phone: int = 0
    room: int = 0
    hands: bool = True
    motion: float = 1.0
    actions: list[Action] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = np.random.default_rng([self.seed, 11])
        body = np.random.default_rng([self.person, 12])
        lens = np.random.default_rng([self.phone, 13])
        self.f = FOCALS[self.phone % len(FOCALS)] * WIDTH * float(lens.uniform(0.97, 1.03))
        self.k1 = float(lens.uniform(-0.08, 0.03))
        self.K = np.array([[self.f, 0, (WIDTH - 1) / 2], [0, self.f, (HEIGHT - 1) / 2], [0, 0, 1.0]])
        self.offset_s = float(np.random.default_rng([self.phone, self.seed, 14]).uniform(-0.03, 0.03))
        self.size = float(body.uniform(0.94, 1.06))
        self.skin = np.array([205, 150, 120], np.float32) * float(body.uniform(0.72, 1.05))
        self._waves = rng.uniform(0.08, 0.42, (6, 2)), rng.uniform(0, 2 * np.pi, (6, 2))
        self._place = np.array([0.0, -0.02, 1.22]) + rng.normal(0, 0.02, 3)
        self._pitch = float(rng.uniform(0.64, 0.74))
        self._walls, self._top = textures(self.room)
        names = list(COLOURS)
        self.colours = [names[int(at)] for at in rng.permutation(len(names))[:2]]
        self._strokes: tuple[list[Stroke], list[Stroke]] = ([], [])
        self._starts = [np.array([-0.17, 0.48, 0.0]), np.array([0.17, 0.48, 0.0])]
        for side in (0, 1):
            self._starts[side] += np.array([*rng.normal(0, 0.02, 2), TABLE[4] + BOX[2] / 2])
        if self.hands:
            for side in (0, 1):
                self._script(side, rng)
        columns, rows = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
        flat = np.stack([(columns - self.K[0, 2]) / self.f, (rows - self.K[1, 2]) / self.f], -1).reshape(
            -1, 2
        )
        for _ in range(8):  # the inverse of the distortion, by iteration
            r2 = (flat**2).sum(1, keepdims=True)
            bent = np.stack([(columns - self.K[0, 2]) / self.f, (rows - self.K[1, 2]) / self.f], -1)
            flat = bent.reshape(-1, 2) / (1 + self.k1 * r2)
        self._rays = np.concatenate([flat, np.ones((len(flat), 1))], 1)

    # ---- the script

    def _script(self, side: int, rng: np.random.Generator) -> None:
        """Rest, then cycles of reach, grasp, lift, transport, place, release, back and forth."""
        sign = 1.0 if side else -1.0
        rest = np.array([sign * 0.19, 0.30, TABLE[4] + 0.06])
        place, there = self._starts[side] - FORWARD + np.array([0, 0, 0.03]), rest
        t, found = float(rng.uniform(0.6, 1.1)) + 0.9 * (1 - side), self._strokes[side]
        found.append(Stroke(0.0, t, rest, rest, (0.15, 0.15), -1, False))
        self.actions.append(Action(0.0, t, side, "idle"))
        while t < self.seconds - 1.0:
            lifted = place + np.array([0, 0, float(rng.uniform(0.08, 0.13))])
            across = np.array([-sign * 0.14, float(rng.uniform(0.02, 0.12)), 0.0])
            goal = self._starts[side] - FORWARD + np.array([0, 0, 0.03])
            goal = goal + across if np.linalg.norm(place - goal) < 0.05 else goal
            moved = goal + np.array([0, 0, lifted[2] - goal[2]])
            steps = [
                ("reach", there, place, (0.15, 0.15), False, rng.uniform(1.0, 2.4)),
                ("grasp", place, place, (0.15, 0.65), False, rng.uniform(0.6, 1.4)),
                ("lift", place, lifted, (0.65, 0.65), True, rng.uniform(0.8, 2.0)),
                ("transport", lifted, moved, (0.65, 0.65), True, rng.uniform(1.0, 3.0)),
                ("place", moved, goal, (0.65, 0.65), True, rng.uniform(0.8, 2.0)),
                ("release", goal, goal, (0.65, 0.15), False, rng.uniform(0.6, 1.4)),
                ("reach", goal, rest, (0.15, 0.15), False, rng.uniform(0.9, 2.2)),
                ("idle", rest, rest, (0.15, 0.15), False, rng.uniform(0.6, 2.4)),
            ]
            for verb, begin, end, closed, held, long in steps:
                stop = t + float(long)
                found.append(Stroke(t, stop, begin, end, closed, side, held))
                thing = side if verb != "idle" else -1
                if t < self.seconds:
                    self.actions.append(Action(t, min(stop, self.seconds), side, verb, thing))
                t, there = stop, end
            place = goal
        self.actions.sort(key=lambda action: (action.hand, action.t0))

    # ---- truth

    def pose(self, t: float) -> tuple[F64, F64]:
        """R_wc [3, 3] and the camera's place [3]."""
        hz, start = self._waves
        waves = np.sin(2 * np.pi * hz * t + start) - np.sin(start)
        yaw, pitch, roll, x, y, z = self.motion * waves.sum(1)
        breath = 2 * np.pi * t * np.array([1.7, 2.3]) + start[0]
        yaw, pitch = yaw + 0.03 * np.sin(breath[0]), pitch + 0.07 * np.sin(breath[1])
        R = exp(np.array([0, 0, -0.13 * yaw])) @ BASE
        R = R @ exp(np.array([-self._pitch + 0.06 * pitch, 0, 0])) @ exp(np.array([0, 0, 0.05 * roll]))
        return R, self._place + np.array([0.055 * x, 0.04 * y, 0.03 * z])

    def wrist(self, t: float, side: int) -> tuple[F64, float, bool, int]:
        """A wrist in the world, how closed the hand is, whether it holds its object, which one."""
        strokes = self._strokes[side]
        at = min(sum(stroke.t1 <= t for stroke in strokes), len(strokes) - 1)
        stroke = strokes[at]
        s = float(np.clip((t - stroke.t0) / max(stroke.t1 - stroke.t0, 1e-9), 0, 1))
        eased = s**3 * (10 - 15 * s + 6 * s * s)
        closed = stroke.closed[0] + (stroke.closed[1] - stroke.closed[0]) * eased
        return stroke.begin + (stroke.end - stroke.begin) * eased, closed, stroke.held, stroke.thing

    def hand(self, t: float, side: int) -> F64 | None:
        """The joints [21, 3] in the world; None without hands."""
        if not self.hands:
            return None
        wrist, closed, _, _ = self.wrist(t, side)
        turn = exp(np.array([0, 0, 0.30 if side else -0.30])) @ exp(np.array([-0.15, 0, 0]))
        found: F64 = joints(closed, bool(side), self.size) @ HAND_AXES.T @ turn.T + wrist
        return found

    def things(self, t: float) -> list[F64]:
        """Where the objects' centres are."""
        found = []
        for side in (0, 1):
            place = self._starts[side]
            for stroke in self._strokes[side]:
                if stroke.t0 > t:
                    break
                if stroke.held:
                    place = self.wrist(min(t, stroke.t1 - 1e-9), side)[0] + FORWARD - np.array([0, 0, 0.03])
            found.append(np.asarray(place))
        return found

    # ---- sensors

    def times(self) -> I64:
        """Of the frames, ns."""
        return np.round(np.arange(round(self.seconds * FPS)) * SECOND / FPS).astype(np.int64)

    def imu(self) -> tuple[I64, F64]:
        """Times ns [n] on the motion sensors' clock and samples [n, 6] in camera axes."""
        rng = np.random.default_rng([self.seed, 15])
        true = np.arange(-0.2, self.seconds + 0.2, 1 / IMU_HZ)
        samples, h = np.empty((len(true), 6)), 1e-3
        for at, t in enumerate(true):
            (R0, p0), (R1, p1), (R2, p2) = self.pose(t - h), self.pose(t), self.pose(t + h)
            samples[at, :3] = R1.T @ ((p0 - 2 * p1 + p2) / h**2 - GRAVITY)
            samples[at, 3:] = log(R0.T @ R2) / (2 * h)
        samples[:, :3] += rng.normal(0, 0.02, (len(true), 3)) + rng.normal(0, 0.02, 3)
        walk = np.cumsum(rng.normal(0, 2e-5, (len(true), 3)), 0)
        samples[:, 3:] += rng.normal(0, 0.002, (len(true), 3)) + rng.normal(0, 0.003, 3) + walk
        return np.round((true + self.offset_s) * SECOND).astype(np.int64), samples

    def project(self, points: F64, R: F64, p: F64) -> tuple[F64, F64]:
        """Pixels [n, 2] and depths [n] of world points."""
        local = (points - p) @ R
        depth = np.maximum(local[:, 2], 1e-6)
        flat = local[:, :2] / depth[:, None]
        bent = flat * (1 + self.k1 * (flat**2).sum(1, keepdims=True))
        return bent * self.f + self.K[:2, 2], local[:, 2]

    def frames(self) -> Iterator[tuple[int, U8]]:
        """(t_ns, RGB)."""
        for t_ns in self.times().tolist():
            yield t_ns, self.picture(t_ns / SECOND)

    def picture(self, t: float) -> U8:
        """The picture at a time, with sensor noise."""
        R, p = self.pose(t)
        image = self._cast(R, p, self.things(t))
        hands = [hand for side in (0, 1) if (hand := self.hand(t, side)) is not None]
        for hand in sorted(hands, key=lambda points: -float(((points[0] - p) @ R)[2])):
            self._draw_hand(image, hand, R, p)
        rng = np.random.default_rng([self.seed, 16, round(t * 1000)])
        noise = rng.integers(-3, 4, image.shape, dtype=np.int16)
        return np.clip(image * (1.0 + 0.05 * np.sin(0.7 * t)) + noise, 0, 255).astype(np.uint8)

    def _cast(self, R: F64, p: F64, things: list[F64]) -> F32:
        rays = self._rays @ R.T
        with np.errstate(divide="ignore"):
            reach = (np.where(rays > 0, ROOM[1], ROOM[0]) - p) / rays
        axis = reach.argmin(1)
        depth = reach[np.arange(len(rays)), axis]
        place = p + rays * depth[:, None]
        u = np.where(axis == 0, place[:, 1], place[:, 0])
        v = np.where(axis == 2, place[:, 1], place[:, 2])
        face = axis * 2 + (rays[np.arange(len(rays)), axis] > 0)
        image = sampled(self._walls, u * 110 + face * 171.0, v * 110 + face * 97.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            down = (TABLE[4] - p[2]) / rays[:, 2]
        at = p + rays * np.where(np.isfinite(down), down, 0)[:, None]
        on = (down > 0) & (down < depth) & (at[:, 0] > TABLE[0]) & (at[:, 0] < TABLE[1])
        on &= (at[:, 1] > TABLE[2]) & (at[:, 1] < TABLE[3])
        image[on] = sampled(self._top, at[on, 0] * 260, at[on, 1] * 260)
        depth = np.where(on, down, depth)
        for number, thing in enumerate(things):
            local = (thing - p) @ R
            if local[2] > 0.1:
                row = self.f * local[1] / local[2] + self.K[1, 2]
                half = 1.6 * self.f * BOX.max() / local[2]
                rows = slice(
                    max(0, int(row - half)) * WIDTH, max(0, min(HEIGHT, int(row + half) + 1)) * WIDTH
                )
                self._cast_box(image[rows], rays[rows], p, depth[rows], thing, number)
        return image.reshape(HEIGHT, WIDTH, 3)

    def _cast_box(self, image: F32, rays: F64, p: F64, depth: F64, centre: F64, number: int) -> None:
        with np.errstate(divide="ignore"):
            near = (centre - BOX / 2 - p) / rays
            far = (centre + BOX / 2 - p) / rays
        low, high = np.minimum(near, far), np.maximum(near, far)
        enter, leave = low.max(1), high.min(1)
        hit = (enter > 0) & (enter < leave) & (enter < depth + 1e-4)
        if hit.any():
            place = p + rays[hit] * enter[hit, None] - centre
            axis = low[hit].argmax(1)
            light = np.array([0.75, 0.9, 1.1])[axis]
            stripes = 1.0 + 0.18 * np.sign(np.sin(place.sum(1) * 160 + number))
            image[hit] = np.array(COLOURS[self.colours[number]]) * (light * stripes)[:, None]
            depth[hit] = enter[hit]

    def _draw_hand(self, image: F32, hand: F64, R: F64, p: F64) -> None:
        flat, depth = self.project(hand, R, p)
        if depth.min() < 0.08:
            return
        paint(image, flat, self.f / depth, depth, self.skin)


def paint(image: F32, flat: F64, px: F64, depth: F64, skin: F32) -> None:
    """Capsules of a hand whose joints lie at `flat` [21, 2]; `px` pixels a metre at each."""
    bones = [(int(PARENT[at]), at, 0.010) for at in range(1, 21)]
    bones += [(0, at, 0.018) for at in (5, 9, 13, 17)]
    forearm = flat[0] + 2.2 * (flat[0] - flat[9])
    draw_capsule(image, flat[0], forearm, 0.026 * float(px[0]), skin * 0.93)
    for one, two, radius in sorted(bones, key=lambda bone: -(depth[bone[0]] + depth[bone[1]])):
        draw_capsule(image, flat[one], flat[two], radius * float(px[one] + px[two]) / 2, skin)


def textures(seed: int) -> tuple[F32, F32]:
    """Walls and table top, f32 [512, 512, 3] each, that repeat: smooth noise and rectangles of cool
    colours."""
    rng = np.random.default_rng([seed, 17])
    found = []
    for base in ((135, 140, 145), (95, 110, 118)):
        image = np.full((512, 512, 3), base, np.float32) * float(rng.uniform(0.85, 1.15))
        for scale in (4, 8, 32):
            coarse = rng.normal(0, 16, (512 // scale, 512 // scale, 1)).astype(np.float32)
            image += np.kron(coarse, np.ones((scale, scale, 1), np.float32))
        for _ in range(260):
            x, y, w, h = (
                int(rng.integers(low, high)) for low, high in ((0, 512), (0, 512), (6, 44), (6, 40))
            )
            colour = rng.uniform(40, 200, 3)
            colour[0] = min(colour[0], colour[1] - 8)
            image[y : y + h, x : x + w] = colour
        for _ in range(2):
            image = (image + np.roll(image, 1, 0) + np.roll(image, 1, 1) + np.roll(image, (1, 1), (0, 1))) / 4
        found.append(np.clip(image, 8, 245))
    return found[0], found[1]


def sampled(texture: F32, x: F64, y: F64) -> F32:
    """A texture that repeats at real coordinates, bilinear: f32 [n, 3]."""
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    a, b = (x - left).astype(np.float32)[:, None], (y - top).astype(np.float32)[:, None]
    size = len(texture)
    left, top = left % size, top % size
    right, low = (left + 1) % size, (top + 1) % size
    upper = texture[top, left] * (1 - a) + texture[top, right] * a
    lower = texture[low, left] * (1 - a) + texture[low, right] * a
    return np.asarray(upper * (1 - b) + lower * b, np.float32)
