"""What the bench learns from: digits of scikit-learn at 28 x 28, MNIST's files and ModelNet40's where they
are at hand, and ten kinds of generated bodies as clouds of points.

Digits are 1,797 pictures of 8 x 8; each dot becomes 3 x 3 of them within a border of two, its brightness
times 255 / 16. Each set is split once by a fixed order: rows to learn from, rows to choose rates by, rows to
judge by.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.bench._rows import Unavailable
from haversack.core.errors import MissingExtraError

BODIES = ("ball", "cube", "cylinder", "cone", "ring", "plate", "pyramid", "spiral", "cross", "two balls")
CLOUDS, POINTS = 200, 256


@dataclass(frozen=True)
class Set:
    """`inputs` and `labels` of three parts: learn, choose, judge."""

    name: str
    network: str
    learn: tuple[NDArray[Any], NDArray[np.int64]]
    choose: tuple[NDArray[Any], NDArray[np.int64]]
    judge: tuple[NDArray[Any], NDArray[np.int64]]


def divided(
    name: str, network: str, inputs: NDArray[Any], labels: NDArray[np.int64], counts: tuple[int, int]
) -> Set:
    """A set of `counts` rows to learn from and to choose by; all others judge."""
    order = np.random.default_rng(31).permutation(len(labels))
    learn, choose, judge = np.split(order, np.cumsum(counts))
    parts = [(inputs[rows], labels[rows]) for rows in (learn, choose, judge)]
    return Set(name, network, *parts)


@functools.cache
def digits() -> Set:
    """scikit-learn's digits. Raises MissingExtraError without it."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise MissingExtraError("bench elasticzo", "scikit-learn", "workshop") from error
    found = load_digits()
    small = (np.asarray(found.images) * 255 / 16).astype(np.uint8)
    large = np.pad(small.repeat(3, axis=1).repeat(3, axis=2), ((0, 0), (2, 2), (2, 2)))
    return divided("digits", "lenet5", large[..., None], np.asarray(found.target, np.int64), (1024, 173))


def mnist(name: str) -> Set:
    """`mnist` or `fashion-mnist` from the four files of its origin in HAVERSACK_DATA/images/NAME; of the
    first 11,000 rows ten parts of eleven to learn from, one to choose by. Raises Unavailable where they are
    absent."""
    from haversack.formats.idx import read_labelled_pictures

    folder = _data_folder(f"images/{name}")
    learn, judge = (
        read_labelled_pictures(
            *(_either(folder, f"{part}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
        )
        for part in ("train", "t10k")
    )
    x, y = learn[0][:11000], learn[1][:11000]
    cut = len(y) - len(y) // 11
    return Set(name, "lenet5", (x[:cut], y[:cut]), (x[cut:], y[cut:]), judge)


def modelnet() -> Set:
    """ModelNet40's OFF files, HAVERSACK_DATA/shapes/ModelNet40/CLASS/{train,test}/*.off, as clouds; a tenth
    of the files to learn from chooses. Raises Unavailable where they are absent."""
    from haversack.formats.off import read_off, surface_points

    folder = _data_folder("shapes/ModelNet40")
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    parts: dict[str, tuple[NDArray[Any], NDArray[np.int64]]] = {}
    for part in ("train", "test"):
        files = [
            (at, path)
            for at, name in enumerate(classes)
            for path in sorted((folder / name / part).glob("*.off"))
        ]
        clouds = [surface_points(*read_off(path), POINTS, seed) for seed, (_, path) in enumerate(files)]
        parts[part] = np.stack(clouds), np.array([at for at, _ in files], np.int64)
    x, y = parts["train"]
    order = np.random.default_rng(31).permutation(len(y))
    few, many = np.split(order, [len(y) // 10])
    return Set("ModelNet40", "pointnet", (x[many], y[many]), (x[few], y[few]), parts["test"])


def _data_folder(place: str) -> Path:
    named = os.environ.get("HAVERSACK_DATA")
    folder = Path(named) / place if named else None
    if folder is None or not folder.is_dir():
        raise Unavailable(f"$HAVERSACK_DATA/{place} is not at hand")
    return folder


def _either(folder: Path, name: str) -> Path:
    found = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
    if not found:
        raise Unavailable(f"{folder} has no {name}")
    return found[0]


def turned(pictures: NDArray[np.uint8], degrees: float) -> NDArray[np.uint8]:
    """u8 [n, h, w, 1] turned about their middle, between four dots linearly, black outside."""
    height, width = pictures.shape[1:3]
    angle = np.deg2rad(degrees)
    y, x = np.mgrid[:height, :width] - np.array([height - 1, width - 1])[:, None, None] / 2
    from_y = np.cos(angle) * y - np.sin(angle) * x + (height - 1) / 2
    from_x = np.sin(angle) * y + np.cos(angle) * x + (width - 1) / 2
    framed = np.pad(pictures[..., 0].astype(np.float32), ((0, 0), (1, 1), (1, 1)))
    top, left = np.floor(from_y).astype(int), np.floor(from_x).astype(int)
    down, right = from_y - top, from_x - left
    found = np.zeros((len(pictures), height, width), np.float32)
    for i, share_y in ((0, 1 - down), (1, down)):
        for j, share_x in ((0, 1 - right), (1, right)):
            row, column = np.clip(top + i + 1, 0, height + 1), np.clip(left + j + 1, 0, width + 1)
            found += framed[:, row, column] * (share_y * share_x)
    return np.rint(found).astype(np.uint8)[..., None]


@functools.cache
def bodies() -> Set:
    """Ten kinds of 200 clouds of 256 points: sizes, proportions and turns about the upright axis drawn, with
    a little noise."""
    rng = np.random.default_rng(40)
    clouds = np.stack([cloud(rng, kind) for kind in range(len(BODIES)) for _ in range(CLOUDS)])
    labels = np.repeat(np.arange(len(BODIES)), CLOUDS).astype(np.int64)
    return divided("generated bodies", "pointnet", clouds, labels, (1200, 200))


def cloud(rng: np.random.Generator, kind: int) -> NDArray[np.float32]:
    """f32 [256, 3] on the surface of one body, within the unit ball."""
    u, v, w = rng.random((3, POINTS))
    turn, side = 2 * np.pi * u, rng.choice([-1.0, 1.0], POINTS)
    direction = rng.standard_normal((POINTS, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    name = BODIES[kind]
    if name == "ball":
        points = direction
    elif name == "cube":
        points = np.stack([2 * u - 1, 2 * v - 1, side], 1)
        points = points[np.arange(POINTS)[:, None], rng.permuted(np.tile(np.arange(3), (POINTS, 1)), axis=1)]
    elif name == "cylinder":
        points = np.stack([np.cos(turn), np.sin(turn), 3 * v - 1.5], 1)
    elif name == "cone":
        points = np.stack([np.sqrt(v) * np.cos(turn), np.sqrt(v) * np.sin(turn), 1 - 2 * np.sqrt(v)], 1)
    elif name == "ring":
        thick = 1 + 0.35 * np.cos(2 * np.pi * v)
        points = np.stack([thick * np.cos(turn), thick * np.sin(turn), 0.35 * np.sin(2 * np.pi * v)], 1)
    elif name == "plate":
        points = np.stack([2 * u - 1, 2 * v - 1, 0.08 * side], 1)
    elif name == "pyramid":
        size = np.sqrt(w)
        edge = np.stack([2 * v - 1, side], 1)
        edge = np.where(u[:, None] < 0.5, edge, edge[:, ::-1])
        points = np.concatenate([edge * size[:, None], (1 - 2 * size)[:, None]], 1)
    elif name == "spiral":
        points = np.stack([np.cos(3 * turn), np.sin(3 * turn), 3 * u - 1.5], 1)
    elif name == "cross":
        points = 0.2 * (2 * rng.random((POINTS, 3)) - 1)
        points[np.arange(POINTS), rng.integers(0, 3, POINTS)] = 2 * v - 1
    else:
        points = 0.55 * direction + np.stack([0 * side, 0 * side, side], 1)
    points = points * rng.uniform(0.7, 1.3, 3) + 0.03 * rng.standard_normal((POINTS, 3))
    angle = rng.uniform(0, 2 * np.pi)
    points[:, :2] = points[:, :2] @ np.array(
        [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    )
    points -= points.mean(axis=0)
    found: NDArray[np.float32] = (points / np.linalg.norm(points, axis=1).max()).astype(np.float32)
    return found
