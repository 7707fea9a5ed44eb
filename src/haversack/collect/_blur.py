"""Boxes that are made unrecognizable in the pixels themselves, before anything is stored."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 as shares of the picture."""


def gaussian(sigma: float) -> F32:
    """The kernel of +-3 sigma, of sum 1."""
    reach = max(1, round(3 * sigma))
    at = np.arange(-reach, reach + 1, dtype=np.float32)
    kernel = np.exp(-0.5 * (at / max(sigma, 0.5)) ** 2)
    return np.asarray(kernel / kernel.sum(), np.float32)


def blurred(picture: U8, boxes: Iterable[Box]) -> U8:
    """A copy of `picture` (u8 [height, width, 3]) in which each box is blurred with a Gaussian of a sixth of
    its longer side; edges of a box repeat outward, so that nothing of its inside leaks by ringing."""
    done = picture
    height, width = picture.shape[:2]
    for x0, y0, x1, y1 in boxes:
        left, right = max(0, int(x0 * width)), min(width, int(np.ceil(x1 * width)))
        top, bottom = max(0, int(y0 * height)), min(height, int(np.ceil(y1 * height)))
        if right - left < 1 or bottom - top < 1:
            continue
        if done is picture:
            done = picture.copy()
        sigma = round(max(right - left, bottom - top) / 6, 1)
        part = done[top:bottom, left:right].astype(np.float32)
        part = np.tensordot(_matrix(bottom - top, sigma), part, axes=(1, 0))
        part = np.tensordot(_matrix(right - left, sigma), part, axes=(1, 1)).transpose(1, 0, 2)
        done[top:bottom, left:right] = np.clip(np.rint(part), 0, 255).astype(np.uint8)
    return done


@functools.lru_cache(maxsize=64)
def _matrix(length: int, sigma: float) -> F32:
    """The blur along an axis of `length` as a matrix [length, length]; what lies outside repeats the edge."""
    kernel = gaussian(sigma)
    reach = len(kernel) // 2
    rows = np.arange(length)
    made = np.zeros((length, length), np.float32)
    for at, weight in enumerate(kernel):
        made[rows, np.clip(rows + at - reach, 0, length - 1)] += weight
    return made
