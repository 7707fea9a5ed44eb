"""Boxes of published detectors on numpy arrays: from anchors and what a network says of them, and which stay.

A box is (x0, y0, x1, y1) in pixels.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
GROWTH = math.log(1000 / 16)
"""By what a side grows at most, as a logarithm."""


def moved(boxes: F32, deltas: F32, weights: tuple[float, ...] = (1, 1, 1, 1), growth: float = GROWTH) -> F32:
    """Boxes [n, 4] moved by deltas [n, 4] (dx, dy, dw, dh, each over its weight): the middle by shares of the
    sides, the sides by exponents."""
    sides = boxes[:, 2:] - boxes[:, :2]
    middles = boxes[:, :2] + 0.5 * sides
    shares = deltas / np.asarray(weights, np.float32)
    middles = shares[:, :2] * sides + middles
    half = 0.5 * np.exp(np.minimum(shares[:, 2:], np.float32(growth))) * sides
    return np.concatenate([middles - half, middles + half], 1).astype(np.float32)


def within(boxes: F32, side: float) -> F32:
    """Boxes cut off at the edges of a picture of `side`."""
    return np.clip(boxes, 0, side)


def wide_enough(boxes: F32, least: float) -> NDArray[np.bool_]:
    """Which boxes have both sides at least so long."""
    return np.asarray(((boxes[:, 2:] - boxes[:, :2]) >= least).all(1))


def standing(boxes: F32, scores: F32, kinds: I64, overlap: float, most: int) -> I64:
    """Non-maximum suppression by kind: the places of the at most `most` boxes that stay, the surest first.
    A box goes where it shares more than `overlap` (IoU) with a surer one of its kind that stays."""
    left = np.argsort(-scores, kind="stable")
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept: list[int] = []
    while len(left) and len(kept) < most:
        first, left = left[0], left[1:]
        kept.append(int(first))
        low = np.maximum(boxes[first, :2], boxes[left, :2])
        high = np.minimum(boxes[first, 2:], boxes[left, 2:])
        both = np.clip(high - low, 0, None).prod(1)
        union = areas[first] + areas[left] - both
        left = left[(both <= overlap * union) | (kinds[left] != kinds[first])]
    return np.array(kept, np.int64)


def rows_of(output: F32, numbers: int) -> F32:
    """A map [places * numbers, h, w] as [h * w * places, numbers], row by row."""
    channels, high, wide = output.shape
    split = output.reshape(channels // numbers, numbers, high, wide)
    return split.transpose(2, 3, 0, 1).reshape(-1, numbers)


def largest(scores: F32, most: int) -> I64:
    """The places of the `most` largest, the largest first."""
    return np.argsort(-scores, kind="stable")[:most]
