"""Made pictures whose objects are known exactly: cut-outs of real photographs over real photographs.

Six classes: handwritten digits (scikit-learn's, from UCI, CC BY 4.0), coins, and round or cornered pieces
of brick, grass, gravel and stained tissue (scikit-image's, CC0 or public domain). A picture shows one to
three of them, whole, before a photograph, with a change of light and the noise of a cheap sensor. Parts are
kept apart: training sees the upper parts of the textures, other coins, other digits and other photographs
than the test.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import MissingExtraError, not_allowed

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
CLASSES = ("digit", "coin", "brick", "grass", "gravel", "tissue")
SIDE = 96
LEAST, MOST = 22, 46
"""Of an object's side in pixels."""
NOISE = (2.0, 8.0)
PARTS = ("train", "test")
GROUNDS = {
    "train": ("astronaut", "chelsea", "coffee", "moon", "hubble_deep_field"),
    "test": ("camera", "rocket", "retina"),
}


@dataclass(frozen=True)
class Scenes:
    """Pictures u8 [n, 96, 96, 3] and of each the boxes f32 [m, 4] (x0, y0, x1, y1 in pixels) with their class
    numbers [m]."""

    pictures: U8
    boxes: tuple[F32, ...]
    labels: tuple[NDArray[np.int64], ...]

    def __len__(self) -> int:
        return len(self.pictures)


def scenes(count: int, seed: int, part: str = "train") -> Scenes:
    """`count` pictures of a part, drawn by `seed`. Raises MissingExtraError without scikit-image or
    scikit-learn."""
    if part not in PARTS:
        raise not_allowed("part", part, PARTS)
    draw = np.random.default_rng([seed, PARTS.index(part), 13])
    grounds, pieces = _photographs(part)
    pictures = np.empty((count, SIDE, SIDE, 3), np.uint8)
    boxes: list[F32] = []
    labels: list[NDArray[np.int64]] = []
    for at in range(count):
        pictures[at], found, kinds = _scene(grounds, pieces, draw)
        boxes.append(found)
        labels.append(kinds)
    return Scenes(pictures, tuple(boxes), tuple(labels))


def _scene(
    grounds: list[U8], pieces: list[list[U8]], draw: np.random.Generator
) -> tuple[U8, F32, NDArray[np.int64]]:
    ground = grounds[int(draw.integers(len(grounds)))]
    side = int(draw.integers(SIDE, min(min(ground.shape[:2]), 3 * SIDE) + 1))
    canvas = _resized(_window(ground, side, side, draw), SIDE, SIDE).astype(np.float32)
    canvas = canvas * draw.uniform(0.7, 1.15) + draw.uniform(-15, 15)
    boxes: list[tuple[int, ...]] = []
    kinds: list[int] = []
    for _ in range(int(draw.integers(1, 4))):
        for _ in range(20):
            size = int(draw.integers(LEAST, MOST + 1))
            left, top = (int(draw.integers(0, SIDE - size + 1)) for _ in range(2))
            box = (left, top, left + size, top + size)
            if all(_shared(box, other) < 0.1 for other in boxes):
                break
        else:
            continue
        kind = int(draw.integers(len(CLASSES)))
        patch, mask = _piece(CLASSES[kind], pieces[kind], size, draw)
        where = canvas[top : top + size, left : left + size]
        where += mask[..., None] * (patch - where)
        boxes.append(box)
        kinds.append(kind)
    canvas *= draw.uniform(0.85, 1.1)
    canvas += draw.normal(0, draw.uniform(*NOISE), canvas.shape).astype(np.float32)
    picture = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    return picture, np.array(boxes, np.float32).reshape(-1, 4), np.array(kinds, np.int64)


def _shared(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    """What two boxes share, of the smaller one."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    least = min((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return max(wide, 0) * max(high, 0) / least


def _piece(kind: str, sources: list[U8], size: int, draw: np.random.Generator) -> tuple[F32, F32]:
    """An object [size, size, 3] of a class and its mask [size, size] in 0..1."""
    source = sources[int(draw.integers(len(sources)))]
    y, x = (np.mgrid[0:size, 0:size] - (size - 1) / 2) / (size / 2)
    if kind == "digit":
        ink = _resized(source, size, size).astype(np.float32) / 255
        dark, light = draw.uniform(0, 90, 3), draw.uniform(150, 255, 3)
        patch = light + ink[..., None] * (dark - light)
        mask = ((np.abs(x) <= 1) & (np.abs(y) <= 1)).astype(np.float32)
        return patch.astype(np.float32), mask
    if kind == "coin":
        patch = _resized(source, size, size).astype(np.float32)
        mask = (x * x + y * y <= 1).astype(np.float32)
    else:
        side = int(size * draw.uniform(1.0, 2.0))
        patch = _resized(_window(source, side, side, draw), size, size).astype(np.float32)
        round_ = draw.random() < 0.5
        mask = ((x * x + y * y <= 1) if round_ else (np.abs(x) + np.abs(y) <= 1.5)).astype(np.float32)
    if patch.ndim == 2:
        patch = np.repeat(patch[..., None], 3, 2)
    turned = np.rot90(patch, int(draw.integers(4)))
    tint = draw.uniform(0.88, 1.12, 3).astype(np.float32)
    middle = np.float32(turned.mean())
    patch = (middle + (turned - middle) * draw.uniform(0.8, 1.3)) * tint + draw.uniform(-25, 25)
    return patch.astype(np.float32), mask


def _window(picture: U8, height: int, width: int, draw: np.random.Generator) -> U8:
    height, width = min(height, picture.shape[0]), min(width, picture.shape[1])
    top = int(draw.integers(picture.shape[0] - height + 1))
    left = int(draw.integers(picture.shape[1] - width + 1))
    cut = picture[top : top + height, left : left + width]
    return cut[:, ::-1] if draw.random() < 0.5 else cut


def _resized(picture: U8, height: int, width: int) -> U8:
    from PIL import Image

    made = Image.fromarray(np.ascontiguousarray(picture)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(made)


@functools.lru_cache(maxsize=2)
def _photographs(part: str) -> tuple[list[U8], list[list[U8]]]:
    """(photographs to stand behind, for each class what its objects are cut from)."""
    try:
        from skimage import data
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("making pictures", error.name or "scikit-image", "bench") from error
    training = part == "train"
    grounds: list[U8] = []
    for name in GROUNDS[part]:
        picture: Any = getattr(data, name)()
        grounds.append(picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, 2))
    digits = load_digits()
    held = np.arange(len(digits.images)) % 4 == 0
    numbers = [
        np.pad((each * 15.9).astype(np.uint8), 1)
        for each, out in zip(digits.images, held, strict=True)
        if out != training
    ]
    textures = []
    for name in ("brick", "grass", "gravel", "immunohistochemistry"):
        picture = getattr(data, name)()
        cut = int(picture.shape[0] * 0.65)
        textures.append([picture[:cut] if training else picture[cut:]])
    return grounds, [numbers, _coins(data.coins(), training), *textures]


def _coins(picture: U8, training: bool) -> list[U8]:
    """The coins of the picture's first three rows, or of its last row, cut square."""
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(picture.astype(np.float32), 1)
    found, _ = ndimage.label(ndimage.binary_opening(smooth > 125, iterations=2))
    coins = []
    for rows, columns in ndimage.find_objects(found):
        high, wide = rows.stop - rows.start, columns.stop - columns.start
        if not (28 <= high <= 80 and 28 <= wide <= 80):
            continue
        middle = (rows.start + rows.stop) / 2
        if (middle < picture.shape[0] * 0.74) != training:
            continue
        coins.append(picture[rows.start : rows.stop, columns.start : columns.stop])
    return coins
