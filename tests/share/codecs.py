"""A small codec of drawn numbers, and pictures: what the tests of the pixel cut share. Nothing is trained."""

from __future__ import annotations

import numpy as np

from haversack.models.vision.frappe import PATCHES, DecoderShape, Encoder, Scale
from haversack.share._codec_pack import Codec
from haversack.share.seaotter import plain_pair

SHAPE = DecoderShape(8, 16, "C")


def encoder(count: int = 9, seed: int = 0) -> Encoder:
    """Smooth drawn filters, so that neighbours are alike."""
    rng = np.random.default_rng(seed)
    scales = []
    patches = PATCHES[:count]
    for patch in dict.fromkeys(patches):
        own = patches.count(patch)
        coarse = rng.standard_normal((own, 3, 2, 2)).repeat(patch // 2, 2).repeat(patch // 2, 3)
        weight = (coarse / patch / 1.7).astype(np.float32)
        ones = np.ones(own, np.float32)
        scales.append(Scale(weight, 0 * ones, 126 * ones, ones))
    return Encoder(scales)


def codec(count: int = 9, lengths: tuple[int, ...] = (4, 9), seed: int = 0, task: str = "") -> Codec:
    """Decoders of drawn numbers around grey."""
    rng = np.random.default_rng(seed + 1)
    own = encoder(count, seed)
    decoders = {
        length: {
            name: (rng.standard_normal(shape) * 0.05 + ("norm.weight" in name)).astype(np.float32)
            for name, shape in SHAPE.expected(own.patches[:length]).items()
        }
        for length in lengths
    }
    tables = np.stack([np.full((3, 8, 8), entry, np.uint8) for entry in (24, 12, 6)])
    counts = np.full((count, 255), 3, np.int64)
    counts[:, 100:155] = 400
    return Codec(own, SHAPE, decoders, plain_pair(), tables, counts, task=task, threads=1)


def picture(height: int = 60, width: int = 90, seed: int = 0) -> np.ndarray:
    """Blobs of colour, u8 [h, w, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    found = np.full((height, width, 3), 110.0)
    for _ in range(6):
        cy, cx, size = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(6, 25)
        blob = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * size**2))
        found += blob[..., None] * rng.uniform(-110, 110, 3)
    return np.clip(found + rng.normal(0, 2, found.shape), 0, 255).astype(np.uint8)
