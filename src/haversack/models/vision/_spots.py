"""What the detector's numbers mean: cells, boxes, and which of overlapping boxes stay."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from haversack.formats.coco import Detections

F32 = NDArray[np.float32]
STRIDE = 8
"""Pixels between the detector's cells."""
UNIT = 16.0
"""Pixels that exp(0) stands for."""
MOST = 100


def cell_middles(cells: int) -> F32:
    """The middles (x, y) of the cells in pixels [cells^2, 2], row by row."""
    y, x = np.mgrid[0:cells, 0:cells]
    return ((np.stack([x.ravel(), y.ravel()], 1) + 0.5) * STRIDE).astype(np.float32)


def detections(logits: F32, classes: int, *, least: float = 0.05, overlap: float = 0.5) -> Detections:
    """What logits [classes + 4, h, w] say: a box a cell and class whose score is at least `least`; of boxes
    of one class that share more than `overlap` (IoU) the surest."""
    flat = logits.reshape(logits.shape[0], -1).T.astype(np.float64)
    scores = 1 / (1 + np.exp(-np.clip(flat[:, :classes], -60, 60)))
    cells, kinds = np.nonzero(scores >= least)
    sure = scores[cells, kinds]
    order = np.argsort(-sure, kind="stable")[: 4 * MOST]
    cells, kinds, sure = cells[order], kinds[order], sure[order]
    reach = np.exp(np.clip(flat[cells, classes:], -3, 3)) * UNIT
    middles = cell_middles(logits.shape[1])[cells]
    side = logits.shape[1] * STRIDE
    boxes = np.clip(np.concatenate([middles - reach[:, :2], middles + reach[:, 2:]], 1), 0, side)
    kept = suppressed(boxes, kinds, overlap)[:MOST]
    return Detections(boxes[kept].astype(np.float32), sure[kept].astype(np.float32), kinds[kept])


def suppressed(boxes: NDArray[np.floating], kinds: NDArray[np.int64], overlap: float) -> NDArray[np.int64]:
    """The places of the boxes that stay; they come with the surest first."""
    if not len(boxes):
        return np.zeros(0, np.int64)
    shared = overlaps(boxes, boxes)
    same = kinds[:, None] == kinds[None]
    alive = np.ones(len(boxes), bool)
    for at in range(len(boxes)):
        if alive[at]:
            alive[at + 1 :] &= ~((shared[at, at + 1 :] > overlap) & same[at, at + 1 :])
    return np.flatnonzero(alive)


def overlaps(one: NDArray[np.floating], other: NDArray[np.floating]) -> NDArray[np.float64]:
    """IoU [n, m] of boxes [n, 4] and [m, 4]."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    both = np.clip(high - low, 0, None).prod(2)
    areas = [(box[:, 2:] - box[:, :2]).prod(1) for box in (one, other)]
    union = areas[0][:, None] + areas[1][None] - both
    return np.asarray(both / np.maximum(union, 1e-9), np.float64)
