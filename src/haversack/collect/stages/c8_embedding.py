"""C8, deduplication: a vector for each clip, and which of clips that are alike is kept.

Paper: AoE (arXiv 2602.23893); the vector needs no network and is [inferred], eps = 0.1 and the clusters are
NeMo Curator's.

The vector has three parts of length 1, each without its own mean: 8 x 8 mean colours of four frames, 16 bins
of the gradient's direction in four quadrants, and how 8 x 8 mean brightnesses change between thirteen frames,
which tells two actions in the same place apart. It is made of pictures alone: hands that C4 finds in a clip
it may lose in the same clip compressed again. Two clips are alike when the mean of the parts' cosines is at
least 1 - eps.

The stage writes the vector. `chosen` decides over all clips at once, and so runs where all are known, when a
data set is written: k-means (cosine), within a cluster the one nearest the centre stays of those that are
alike. When a clip is forgotten its twin comes back. `spread` chooses a part of clips that stands for all:
greedy facility location.

Limits: below 257 clips all pairs are compared and there are no clusters. Cost: decoding the clip once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from haversack.collect._clip_data import ClipData
from haversack.collect._stages import Clip, Outcome, Stage

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
SYSTEM = 1
VECTOR = "embedding.npy"
EPS, SMALL = 0.1, 256
SHOTS, GRID = 13, 8
"""Frames of a clip, evenly placed, and cells along a side of each; colours are those of every fourth."""


# ---- the maths


def cells(picture: U8) -> F64:
    """8 x 8 mean colours of a picture [8, 8, 3]."""
    height, width = (side // GRID * GRID for side in picture.shape[:2])
    whole = picture[:height, :width].reshape(GRID, height // GRID, GRID, width // GRID, 3)
    return np.asarray(whole.mean((1, 3)), np.float64)


def directions(pictures: Sequence[U8]) -> F64:
    """16 bins of the gradient's direction in each quadrant, by its length, over all pictures [64]."""
    total = np.zeros((4, 16))
    for picture in pictures:
        gy, gx = np.gradient(picture.astype(np.float64).mean(2))
        bins = ((np.arctan2(gy, gx) / (2 * np.pi) + 0.5) * 16).astype(int) % 16
        length = np.hypot(gx, gy)
        rows, columns = np.indices(gx.shape)
        quadrant = 2 * (rows >= gx.shape[0] // 2) + (columns >= gx.shape[1] // 2)
        np.add.at(total, (quadrant, bins), length)
    return np.asarray((total / np.maximum(total.sum(1, keepdims=True), 1e-9)).ravel(), np.float64)


def changes(grids: Sequence[F64]) -> F64:
    """What is added to mean brightnesses from each of n grids [8, 8, 3] to the next [64 (n - 1)]."""
    return np.asarray(np.diff(np.stack(grids).mean(3), axis=0).ravel(), np.float64)


def vector(parts: Sequence[F64]) -> F64:
    """The parts without their means, each of length 1 (or 0), over the root of their number."""
    made = []
    for part in parts:
        centred = part - part.mean()
        length = float(np.linalg.norm(centred))
        made.append(centred / length if length > 1e-9 else centred * 0)
    return np.asarray(np.concatenate(made) / np.sqrt(len(made)), np.float64)


def clusters(vectors: F64, count: int, seed: int = 0, rounds: int = 20) -> I64:
    """k-means under the cosine: the cluster of each [n]."""
    rng = np.random.default_rng(seed)
    centres = vectors[rng.choice(len(vectors), count, replace=False)]
    member = np.zeros(len(vectors), np.int64)
    for _ in range(rounds):
        new = (vectors @ centres.T).argmax(1)
        if (new == member).all() and _:
            break
        member = new
        for at in range(count):
            if (member == at).any():
                mean = vectors[member == at].mean(0)
                centres[at] = mean / max(float(np.linalg.norm(mean)), 1e-9)
    return member


def chosen(vectors: F64, eps: float = EPS) -> list[bool]:
    """Which of [n, d] stay: of those that are alike, the one nearest their cluster's centre (the first of
    two)."""
    n = len(vectors)
    if not n:
        return []
    member = clusters(vectors, int(np.ceil(np.sqrt(n / 2)))) if n > SMALL else np.zeros(n, np.int64)
    kept = [True] * n
    for cluster in np.unique(member):
        inside = np.flatnonzero(member == cluster)
        centre = vectors[inside].mean(0)
        order = inside[np.argsort(-(vectors[inside] @ centre), kind="stable")]
        alike = vectors[order] @ vectors[order].T >= 1 - eps
        for at in range(1, len(order)):
            if any(kept[int(order[before])] for before in np.flatnonzero(alike[at, :at])):
                kept[int(order[at])] = False
    return kept


def spread(vectors: F64, seconds: F64, budget_s: float) -> list[int]:
    """Clips, best first, that stand for all within `budget_s`: each adds most to sum_i max_chosen cosine(i,
    .) for its length."""
    near = np.full(len(vectors), -1.0)
    like = vectors @ vectors.T
    left, order = budget_s, []
    free = np.ones(len(vectors), bool)
    while free.any():
        gain = np.maximum(like - near[:, None], 0).sum(0) / np.maximum(seconds, 1e-6)
        gain[~free | (seconds > left)] = -1
        best = int(gain.argmax())
        if gain[best] <= 0:
            break
        order.append(best)
        free[best] = False
        near = np.maximum(near, like[:, best])
        left -= float(seconds[best])
    return order


def run(clip: Clip, out: Path) -> Outcome:
    """Writes `embedding.npy` f32 [1600]."""
    data = ClipData.read(clip.path, clip.manifest)
    wanted = np.round(np.linspace(0, len(data.t_ns) - 1, SHOTS + 2)[1:-1]).astype(int)
    shots = {at: picture for at, picture in enumerate(data.pictures()) if at in wanted}
    pictures = [shots[int(at)] for at in wanted]
    grids = [cells(picture) for picture in pictures]
    few = slice(0, None, 4)
    parts = [np.stack(grids[few]).ravel(), directions(pictures[few]), changes(grids)]
    found = vector(parts).astype(np.float32)
    np.save(out / VECTOR, found)
    return Outcome({"length": float(np.linalg.norm(found))})


STAGE = Stage("c8-embedding", "2", run)
