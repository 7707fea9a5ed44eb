"""S3, the second gate: is the picture sharp and lit, and does something near move by itself.

Paper: AoE (arXiv 2602.23893); measures and thresholds are [inferred].

The picture is shrunk to 160 x 90 grey. Sharpness is the variance of its Laplacian (below 40: dropped), light
its mean (outside 25 to 230: dropped). Motion: blocks of 16 x 16 are matched between two pictures within 6
pixels (sum of absolute differences, refined by a parabola; blocks without texture or with a second best as
good are left out). What the camera's own turning explains is taken away: a pixel x goes to K R^T K^-1 x,
where R is the gyroscope's rotation between the two (without a gyroscope, the affine motion that most blocks
follow). What is left in the lower two thirds is the near field's own motion.

What we changed: of the blocks' residuals the 85th percentile is taken, not the median (hands cover less than
half of the picture, and the median is that of the room); it is in pixels per 0.1 s, so that it does not
depend on how far apart the two pictures are.

Cost: 169 shifts of a 160 x 90 picture, some milliseconds. Limits: motion beyond 6 pixels between the two is
not seen, so pictures one frame apart are given.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]
SYSTEM = 1
WIDTH, HEIGHT = 160, 90
BLOCK, REACH = 16, 6
FOCAL_GUESS = 0.85
"""Of the longer side, until a device is calibrated."""


@dataclass(frozen=True)
class MotionLimits:
    """Sharpness, light, and texture of a block below or outside which nothing is judged."""

    sharp: float = 40.0
    dark: float = 25.0
    bright: float = 230.0
    texture: float = 25.0
    unique: float = 1.1


@dataclass(frozen=True)
class Blocks:
    """Motion of blocks: centres [n, 2] and motion [n, 2] in px (x, y) of those that could be matched."""

    centres: F64
    motion: F64


def shrink(picture: U8) -> F32:
    """Grey f32 [90, 160] of an RGB or grey picture of any size: means of the pixels that fall together."""
    grey = picture if picture.ndim == 2 else picture[..., :3] @ np.array([0.299, 0.587, 0.114], np.float32)
    height, width = grey.shape
    if height < HEIGHT or width < WIDTH:
        rows, columns = np.arange(HEIGHT) * height // HEIGHT, np.arange(WIDTH) * width // WIDTH
        return np.asarray(grey[rows][:, columns], np.float32)
    if height % HEIGHT == 0 and width % WIDTH == 0:
        shape = (HEIGHT, height // HEIGHT, WIDTH, width // WIDTH)
        return np.asarray(np.asarray(grey, np.float32).reshape(shape).mean(axis=(1, 3)), np.float32)
    rows, columns = np.arange(HEIGHT) * height // HEIGHT, np.arange(WIDTH) * width // WIDTH
    whole = np.asarray(grey, np.float32)
    summed = np.add.reduceat(np.add.reduceat(whole, rows, axis=0), columns, axis=1)
    counts = np.diff([*rows, height])[:, None] * np.diff([*columns, width])[None]
    return np.asarray(summed / counts, np.float32)


def sharpness(grey: F32) -> float:
    """Variance of the Laplacian (4 neighbours)."""
    inner = grey[1:-1, 1:-1]
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((around - 4 * inner).var())


def usable(grey: F32, limits: MotionLimits) -> bool:
    """Whether a picture is sharp and lit."""
    return sharpness(grey) >= limits.sharp and limits.dark <= float(grey.mean()) <= limits.bright


def match_blocks(before: F32, after: F32, limits: MotionLimits) -> Blocks:
    """Where the blocks of `before` are in `after`."""
    rows, columns = (HEIGHT - 2 * REACH) // BLOCK, (WIDTH - 2 * REACH) // BLOCK
    top, left = HEIGHT - REACH - rows * BLOCK, (WIDTH - columns * BLOCK) // 2
    inner = before[top : top + rows * BLOCK, left : left + columns * BLOCK]
    size = 2 * REACH + 1
    sad = np.empty((size, size, rows, columns), np.float32)
    for dy in range(-REACH, REACH + 1):
        for dx in range(-REACH, REACH + 1):
            moved = after[top + dy : top + dy + rows * BLOCK, left + dx : left + dx + columns * BLOCK]
            sad[dy + REACH, dx + REACH] = np.add.reduceat(
                np.add.reduceat(np.abs(moved - inner), np.arange(0, rows * BLOCK, BLOCK), axis=0),
                np.arange(0, columns * BLOCK, BLOCK),
                axis=1,
            )
    texture = inner.reshape(rows, BLOCK, columns, BLOCK).var(axis=(1, 3))
    centres, motion = [], []
    for row in range(rows):
        for column in range(columns):
            costs = sad[:, :, row, column]
            y, x = divmod(int(costs.argmin()), size)
            if texture[row, column] < limits.texture or not _unique(costs, y, x, limits.unique):
                continue
            centres.append((left + (column + 0.5) * BLOCK - 0.5, top + (row + 0.5) * BLOCK - 0.5))
            motion.append((x - REACH + _between(costs[y], x), y - REACH + _between(costs[:, x], y)))
    return Blocks(
        np.asarray(centres, np.float64).reshape(-1, 2), np.asarray(motion, np.float64).reshape(-1, 2)
    )


def _unique(costs: F32, y: int, x: int, factor: float) -> bool:
    """Whether no place away from the best is nearly as good."""
    others = costs.copy()
    others[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = np.inf
    return float(others.min()) > factor * float(costs[y, x])


def _between(costs: F32, at: int) -> float:
    """The minimum of the parabola through a cost and its neighbours, from -0.5 to 0.5."""
    if not 0 < at < len(costs) - 1:
        return 0.0
    left, middle, right = (float(costs[at + step]) for step in (-1, 0, 1))
    bend = left - 2 * middle + right
    return float(np.clip((left - right) / (2 * bend), -0.5, 0.5)) if bend > 1e-9 else 0.0


def camera(width: int = WIDTH, height: int = HEIGHT, focal: float | None = None) -> F64:
    """K [3, 3] of a picture of `width` x `height`, its focal length (px) guessed where it is unknown."""
    f = FOCAL_GUESS * max(width, height) if focal is None else focal
    return np.array([[f, 0, (width - 1) / 2], [0, f, (height - 1) / 2], [0, 0, 1]], np.float64)


def turned_flow(points: F64, K: F64, R: F64) -> F64:
    """How far pixels [n, 2] move when the camera turns by R (its later axes in its earlier ones): the point
    goes to K R^T K^-1 x."""
    rays = np.concatenate([points, np.ones((len(points), 1))], axis=1) @ np.linalg.inv(K).T
    moved = rays @ R @ K.T  # rows: R^T applied to columns
    flow: F64 = moved[:, :2] / np.maximum(moved[:, 2:], 1e-9) - points
    return flow


def affine_flow(points: F64, motion: F64, rounds: int = 6) -> F64:
    """The affine motion that most blocks follow, at the same points: least squares, each round weighted down
    by the residuals (Cauchy, scale 0.5 px). The median motion for fewer than six blocks."""
    if len(points) < 6:
        return np.tile(np.median(motion, axis=0), (len(points), 1)) if len(points) else motion
    terms = np.concatenate([points / WIDTH, np.ones((len(points), 1))], axis=1)
    weights = np.ones(len(points))
    flow = motion
    for _ in range(rounds):
        root = np.sqrt(weights)[:, None]
        flow = terms @ np.linalg.lstsq(terms * root, motion * root, rcond=None)[0]
        weights = 1.0 / (1.0 + (np.linalg.norm(motion - flow, axis=1) / 0.5) ** 2)
    return flow


def residual(
    before: F32, after: F32, gap_s: float, limits: MotionLimits, R: F64 | None = None, K: F64 | None = None
) -> tuple[float, Blocks]:
    """The near field's own motion, px in 0.1 s, and every block's residual motion; `R` is the camera's
    rotation between the two pictures where it is known."""
    blocks = match_blocks(before, after, limits)
    if not len(blocks.centres) or gap_s <= 0:
        return 0.0, blocks
    if R is None:
        own = affine_flow(blocks.centres, blocks.motion)
    else:
        own = turned_flow(blocks.centres, camera() if K is None else K, R)
    left = blocks.motion - own
    if R is not None:  # the camera's travel, which a gyroscope does not feel
        left = left - np.median(left, axis=0)
    rest = Blocks(blocks.centres, left * (0.1 / gap_s))
    near = np.linalg.norm(rest.motion, axis=1)[blocks.centres[:, 1] > HEIGHT / 3]
    return (float(np.percentile(near, 85)) if len(near) else 0.0), rest
