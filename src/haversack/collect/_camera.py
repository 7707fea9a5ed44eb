"""A camera as the pipeline has it: one focal length, the centre, one term of radial distortion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Camera:
    """`f`, `cx`, `cy` in pixels of a picture of `width` x `height`; a ray (x, y, 1) is seen at
    f (1 + k1 r^2) (x, y) + (cx, cy), r^2 = x^2 + y^2."""

    f: float
    cx: float
    cy: float
    width: int
    height: int
    k1: float = 0.0

    @classmethod
    def guess(cls, width: int, height: int) -> Camera:
        """What a camera of unknown make is taken for: f = 0.85 of the longer side."""
        return cls(0.85 * max(width, height), (width - 1) / 2, (height - 1) / 2, width, height)

    def scaled(self, width: int, height: int) -> Camera:
        """The same camera for pictures of another size."""
        s = width / self.width
        return Camera(
            self.f * s, (self.cx + 0.5) * s - 0.5, (self.cy + 0.5) * s - 0.5, width, height, self.k1
        )

    def project(self, points: F64) -> F64:
        """Pixels [..., 2] of points [..., 3] in camera axes, which lie before it."""
        flat = points[..., :2] / points[..., 2:]
        bent = flat * (1 + self.k1 * (flat**2).sum(-1, keepdims=True))
        return np.asarray(bent * self.f + (self.cx, self.cy), np.float64)

    def flat(self, pixels: F64) -> F64:
        """(x, y) [..., 2] of the rays (x, y, 1) that are seen at `pixels`; the distortion is inverted by
        iteration."""
        bent = (np.asarray(pixels, np.float64) - (self.cx, self.cy)) / self.f
        found = bent
        for _ in range(6 if self.k1 else 0):
            found = bent / (1 + self.k1 * (found**2).sum(-1, keepdims=True))
        return found

    def rays(self, pixels: F64) -> F64:
        """Unit vectors [..., 3]."""
        flat = self.flat(pixels)
        full = np.concatenate([flat, np.ones((*flat.shape[:-1], 1))], -1)
        return np.asarray(full / np.linalg.norm(full, axis=-1, keepdims=True), np.float64)
