"""The joints of hands in pictures: crops about skin, a small network in numpy, crops again about what it
found.

The network (the bundled `hand-landmarks`, trained by reference/train_hand_landmarks.py) takes 64 x 64 pixels
and gives x and y of 21 joints and their depth from the wrist. It knows rendered hands; hands on photographs
are for a model of your own (the contract of C4).
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import numpy as np
import numpy.typing as npt

from haversack.collect.detector import blobs

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]
SIDE, MAP = 64, 16
LEAST_AREA, LEAST_FILLED = 0.004, 0.15


@cache
def weights() -> dict[str, F32]:
    """Of the network, f32."""
    place = files("haversack").joinpath("reference_models", "hand-landmarks", "landmarks.npz")
    with place.open("rb") as file, np.load(file) as found:
        return {name: found[name].astype(np.float32) for name in found.files}


def network(crops: U8) -> F32:
    """(x, y, depth) [n, 21, 3] of crops [n, 64, 64, 3]: x and y in [-1, 1], depth in lengths of 95 mm.

    Down to 4 x 4 and up again to a map of 16 x 16 for each joint, whose place is the mean under the map's
    softmax.
    """
    x = crops.astype(np.float32) / np.float32(127.5) - 1
    fine = _step(_step(_step(x, "a", 2), "b", 2), "c")
    middle = _step(_step(fine, "d", 2), "e")
    coarse = _step(_step(middle, "f", 2), "g")
    up = _step(middle + _doubled(_across(coarse, "lift")), "h")
    up = _step(fine + _doubled(up), "i")
    maps = _across(up, "maps").reshape(len(x), -1, 21)
    share = np.exp(maps - maps.max(1, keepdims=True))
    share = (share / share.sum(1, keepdims=True)).reshape(len(x), MAP, MAP, 21)
    cells = (np.arange(MAP, dtype=np.float32) + 0.5) * 2 / MAP - 1
    places = np.stack([np.einsum("nxj,x->nj", share.sum(axis), cells) for axis in (1, 2)], 2)
    flat = coarse.transpose(0, 3, 1, 2).reshape(len(x), -1)
    depth = _across(np.maximum(_across(flat, "k"), 0), "l")
    return np.concatenate([places, depth[..., None]], 2)


def _step(x: F32, name: str, stride: int = 1) -> F32:
    """A 3 x 3 convolution of [n, height, width, channels], one pixel of zeros around, and a ReLU."""
    kernel = weights()[f"{name}_weight"]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))[:, ::stride, ::stride]
    n, height, width = windows.shape[:3]
    flat = windows.reshape(n * height * width, -1)
    found = np.maximum(flat @ kernel.reshape(len(kernel), -1).T + weights()[f"{name}_bias"], 0)
    return np.asarray(found.reshape(n, height, width, -1), np.float32)


def _across(x: F32, name: str) -> F32:
    """The same weights for every row of x [..., channels]."""
    kernel = weights()[f"{name}_weight"]
    return np.asarray(x @ kernel.reshape(len(kernel), -1).T + weights()[f"{name}_bias"], np.float32)


def _doubled(x: F32) -> F32:
    """Every pixel of [n, height, width, channels] four times."""
    return np.repeat(np.repeat(x, 2, 1), 2, 2)


def cut(picture: U8, square: F64) -> U8:
    """The square (x, y, side; x and y of its middle) of a picture as 64 x 64, bilinear, edges repeated."""
    x, y, side = (float(value) for value in square)
    steps = (np.arange(SIDE) + 0.5) / SIDE * side - side / 2
    columns = np.clip(x + steps, 0, picture.shape[1] - 1.001)
    rows = np.clip(y + steps, 0, picture.shape[0] - 1.001)
    left, top = columns.astype(np.int64), rows.astype(np.int64)
    a, b = (columns - left)[None, :, None], (rows - top)[:, None, None]
    upper = picture[top][:, left] * (1 - a) + picture[top][:, left + 1] * a
    lower = picture[top + 1][:, left] * (1 - a) + picture[top + 1][:, left + 1] * a
    return np.asarray(upper * (1 - b) + lower * b, np.uint8)


def boxes(mask: Bool) -> list[F64]:
    """At most two hands of a skin mask as (left, top, right, bottom) in pixels, the larger first."""
    step = max(1, mask.shape[1] // 160)
    found: list[F64] = []
    for top, left, bottom, right, pixels in blobs(mask[::step, ::step]):
        area = pixels * step * step / mask.size
        if area < LEAST_AREA or len(found) == 2:
            break
        if pixels / ((bottom - top) * (right - left)) >= LEAST_FILLED:
            found.append(np.array([left, top, right, bottom], np.float64) * step)
    return found


def sides(found: list[F64], before: list[F64 | None], width: int) -> list[F64 | None]:
    """Boxes as (left hand's, right hand's): of two the one further left is the left hand's; a single one is
    the hand's whose box was nearest, else its half of the picture's."""
    if len(found) == 2:
        one, two = sorted(found, key=lambda box: float(box[0] + box[2]))
        return [one, two]
    made: list[F64 | None] = [None, None]
    if found:
        middle = (found[0][:2] + found[0][2:]) / 2
        apart = [
            np.inf if box is None else float(np.linalg.norm((box[:2] + box[2:]) / 2 - middle))
            for box in before
        ]
        near = int(np.argmin(apart)) if min(apart) < width / 4 else int(middle[0] > width / 2)
        made[near] = found[0]
    return made


def first_square(box: F64) -> F64:
    """Where to look first: the far end of an arm, which comes from below."""
    width, height = box[2] - box[0], box[3] - box[1]
    side = 1.25 * float(np.clip(max(width, min(height, 1.1 * width)), 12, None))
    return np.array([(box[0] + box[2]) / 2, box[1] + min(height, side / 1.25) / 2, side])


VIEWS: tuple[tuple[float, float, float], ...] = (
    *((0.0, 0.0, 1.0), (0.06, 0.0, 1.0), (-0.06, 0.0, 1.0)),
    *((0.0, 0.06, 1.1), (0.0, -0.06, 0.92)),
)
"""Squares about a square: shifts as shares of its side, and scales; their answers are averaged at the end."""


def landmarks(pictures: list[U8], squares: F64, right: bool, rounds: int = 2) -> tuple[F64, F64, F64]:
    """Pixels [n, 21, 2], depths from the wrist [n, 21] and how much the views of the last square disagree, as
    a share of it, [n], for one picture and first square each."""
    at = np.zeros((len(pictures), 21, 2))
    for _ in range(rounds):
        at, _ = _looked(pictures, squares, right)
        low, high = at.min(1), at.max(1)
        squares = np.concatenate([(low + high) / 2, 1.45 * (high - low).max(1, keepdims=True)], 1)
        squares[:, 2] = np.maximum(squares[:, 2], 10)
    seen, deep = [], []
    for dx, dy, zoom in VIEWS:
        near = squares * np.array([1.0, 1.0, zoom])
        near[:, :2] += squares[:, 2:] * np.array([dx, dy])
        at, depth = _looked(pictures, near, right)
        seen.append(at)
        deep.append(depth)
    spread = np.std(seen, axis=0).mean((1, 2)) / squares[:, 2]
    return np.median(seen, axis=0), np.mean(deep, axis=0), spread


def _looked(pictures: list[U8], squares: F64, right: bool) -> tuple[F64, F64]:
    """Pixels and depths as the network sees them in one square each."""
    crops = np.stack([cut(picture, square) for picture, square in zip(pictures, squares, strict=True)])
    if not right:
        crops = crops[:, :, ::-1]
    out = np.concatenate([network(crops[begin : begin + 64]) for begin in range(0, len(crops), 64)])
    flat = out[..., :2].astype(np.float64)
    if not right:
        flat[..., 0] *= -1
    return squares[:, None, :2] + flat * squares[:, None, 2:] / 2, out[..., 2].astype(np.float64)
