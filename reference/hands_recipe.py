"""What `hands` learns from: rendered pictures of rooms and hands that no bench shows, and their anchors.

Pictures are those of the bench's synthetic days (haversack/bench/aoe/_world.py) under seeds of their own,
sampled as the detector samples them. A hand is a box about its 21 joints and their flesh, cut at the
picture's edge; what is left of less than a fifth is none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from haversack.bench.aoe._world import HEIGHT, WIDTH, Day

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
IN_WIDTH, IN_HEIGHT = 192, 108
STRIDES, SIZES, ASPECTS = (8, 16), (30.0, 58.0), (1.0, 0.7, 1.4)
SHAPES = ((14, 24), (7, 12))
FIRST_SEED, HELD_OUT_SEED = 70_000, 90_000
FLESH_M = 0.012
FIELDS = 8
"""Of a hand: x0, y0, x1, y1 (shares of the picture), side, contact, palm's direction x and y."""


@dataclass(frozen=True)
class Data:
    """Pictures u8 [n, 3, 108, 192], hands f32 [n, 2, 8], and which of them are there, bool [n, 2]."""

    pictures: U8
    hands: F32
    there: npt.NDArray[np.bool_]


def anchors() -> tuple[F32, F32, F32]:
    """Centres [n, 2], sizes [n, 2] and strides [n] in px, in the order of the network's rows: scale, aspect,
    row, column."""
    centres, sizes, strides = [], [], []
    for stride, base, (rows, columns) in zip(STRIDES, SIZES, SHAPES, strict=True):
        y, x = np.mgrid[0:rows, 0:columns]
        cells = np.stack([(x.ravel() + 0.5) * stride, (y.ravel() + 0.5) * stride], axis=1)
        for aspect in ASPECTS:
            centres.append(cells)
            sizes.append(np.tile([base * aspect**0.5, base / aspect**0.5], (len(cells), 1)))
            strides.append(np.full(len(cells), stride))
    joined = (np.concatenate(part).astype(np.float32) for part in (centres, sizes, strides))
    return tuple(joined)  # type: ignore[return-value]


def hand_row(joints: npt.NDArray[np.float64], K: npt.NDArray[np.float64], contact: bool) -> F32 | None:
    """The fields of a hand whose joints [21, 3] are in camera axes; None when it is out of the picture."""
    if joints[:, 2].min() < 0.08:
        return None
    flat = joints @ K.T
    flat = flat[:, :2] / flat[:, 2:]
    flesh = FLESH_M * K[0, 0] / joints[:, 2:]
    size = np.array([WIDTH, HEIGHT])
    low, high = (flat - flesh).min(0) / size, (flat + flesh).max(0) / size
    x0, y0 = np.clip(low, 0, 1)
    x1, y1 = np.clip(high, 0, 1)
    if (x1 - x0) * (y1 - y0) < 0.2 * float(np.prod(high - low)):
        return None
    palm = flat[9] - flat[0]
    palm /= max(float(np.linalg.norm(palm)), 1e-6)
    return np.array([x0, y0, x1, y1, 0.0, float(contact), *palm], np.float32)


def sampled(picture: U8) -> U8:
    """As the detector samples a picture: [3, 108, 192]."""
    rows = np.arange(IN_HEIGHT) * picture.shape[0] // IN_HEIGHT
    columns = np.arange(IN_WIDTH) * picture.shape[1] // IN_WIDTH
    return np.ascontiguousarray(picture[rows][:, columns].transpose(2, 0, 1))


def rendered(first_seed: int, days: int, each: int) -> Data:
    """`each` pictures of each of `days` days: three in five of work, the others of anything else."""
    count = days * each
    pictures = np.empty((count, 3, IN_HEIGHT, IN_WIDTH), np.uint8)
    hands, there = np.zeros((count, 2, FIELDS), np.float32), np.zeros((count, 2), bool)
    for number in range(days):
        day = Day(first_seed + number, 900.0)
        rng = np.random.default_rng([first_seed + number, 9])
        work = [part for part in day.stretches if part.kind == "work"] or day.stretches
        other = [part for part in day.stretches if part.kind != "work"]
        for take in range(each):
            parts = work if take % 5 < 3 else other
            part = parts[int(rng.integers(len(parts)))]
            t = float(rng.uniform(part.begin, part.end))
            at = number * each + take
            pictures[at] = sampled(day.picture(t))
            shown = day.shown(t)
            for side, joints in enumerate(shown.hands):
                row = None if joints is None else hand_row(joints, day.K, shown.contact[side])
                if row is not None:
                    row[4] = side
                    hands[at, side], there[at, side] = row, True
    return Data(pictures, hands, there)
