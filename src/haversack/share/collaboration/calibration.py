"""Calibration of a verifier's scores: expected calibration error, Platt, isotonic, and a meta-verifier.

Papers: Guo et al., 2017 (error of calibration); Platt, 1999; Zadrozny and Elkan, 2002 (isotonic); AutoMix
(Madaan et al., 2023), whose meta-verifier decides by what noisy verification has meant before.
What is here: the equations as functions on arrays, and `MetaVerifier`: by bins of the score, what the device
and the cloud were right in before, and escalation where the expected gain is worth its cost. Verification
decides cascades (V2): an over-sure verifier never escalates, so its error is reported.
Limits: the meta-verifier looks one step ahead (one decision, no repeated verification of the same answer).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError

SYSTEM = 40

F64 = NDArray[np.float64]


def calibration_error(scores: F64, right: F64, bins: int = 10) -> float:
    """ECE: over bins of equal width, the mean distance of score and share of right, weighed by their
    counts."""
    scores, right = np.asarray(scores, np.float64), np.asarray(right, np.float64)
    place = np.minimum((scores * bins).astype(int), bins - 1)
    found = 0.0
    for one in range(bins):
        inside = place == one
        if inside.any():
            found += inside.mean() * abs(scores[inside].mean() - right[inside].mean())
    return float(found)


def fit_platt(scores: F64, right: F64, rounds: int = 100) -> tuple[float, float]:
    """(a, b) of P(right) = sigmoid(a score + b), by Newton steps on Platt's softened labels."""
    x, y = np.asarray(scores, np.float64), np.asarray(right, np.float64)
    hits = y.sum()
    soft = np.where(y > 0.5, (hits + 1) / (hits + 2), 1 / (len(y) - hits + 2))
    design = np.stack([x, np.ones_like(x)], 1)
    weights = np.zeros(2)
    for _ in range(rounds):
        p = _sigmoid(design @ weights)
        hessian = (design * (p * (1 - p))[:, None]).T @ design + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, design.T @ (p - soft))
        weights -= np.clip(step, -5, 5)
        if np.abs(step).max() < 1e-10:
            break
    return float(weights[0]), float(weights[1])


def platt(scores: F64, a: float, b: float) -> F64:
    """sigmoid(a score + b)."""
    return _sigmoid(a * np.asarray(scores, np.float64) + b)


def fit_isotonic(scores: F64, right: F64) -> tuple[F64, F64]:
    """(knots, values) of the rising step function nearest to `right`, by pooling adjacent violators."""
    order = np.argsort(scores, kind="stable")
    knots = np.asarray(scores, np.float64)[order]
    blocks: list[list[float]] = []  # mean, weight
    ends: list[int] = []
    for at, value in enumerate(np.asarray(right, np.float64)[order]):
        blocks.append([float(value), 1.0])
        ends.append(at)
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            mean, weight = blocks.pop()
            blocks[-1] = [
                (blocks[-1][0] * blocks[-1][1] + mean * weight) / (blocks[-1][1] + weight),
                blocks[-1][1] + weight,
            ]
            end = ends.pop()
            ends[-1] = end
    starts = [0, *(end + 1 for end in ends[:-1])]
    return knots[starts], np.array([mean for mean, _ in blocks])


def isotonic(scores: F64, knots: F64, values: F64) -> F64:
    """The step function at `scores`."""
    at = np.clip(np.searchsorted(knots, scores, side="right") - 1, 0, len(values) - 1)
    found: F64 = values[at]
    return found


@dataclass(frozen=True)
class MetaVerifier:
    """What a score meant before: by bin, how often the device and the cloud were right."""

    edges: tuple[float, ...]
    device: tuple[float, ...]
    cloud: tuple[float, ...]

    @classmethod
    def of(cls, scores: F64, device: F64, cloud: F64, bins: int = 5) -> MetaVerifier:
        """Learned of paired runs; bins hold equally many, counts are smoothed by the whole set's mean. Raises
        UserError for fewer than 20 of them."""
        if len(scores) < 20:
            raise UserError(
                f"{len(scores)} runs are too few for a meta-verifier.", field="scores", nearest=20
            )
        edges = np.unique(np.quantile(scores, np.linspace(0, 1, bins + 1)[1:-1]))
        place = np.searchsorted(edges, scores, side="right")
        rates = []
        for values in (np.asarray(device, np.float64), np.asarray(cloud, np.float64)):
            found = []
            for one in range(len(edges) + 1):
                inside = values[place == one]
                found.append((inside.sum() + 4 * values.mean()) / (len(inside) + 4))
            rates.append(tuple(float(value) for value in found))
        return cls(tuple(float(edge) for edge in edges), *rates)

    def escalate(self, score: float, cost: float = 0.0) -> bool:
        """Whether the cloud is expected to be right more often than the device by more than `cost` (what its
        call costs, in right answers)."""
        at = int(np.searchsorted(self.edges, score, side="right"))
        return self.cloud[at] - self.device[at] > cost


def _sigmoid(x: F64) -> F64:
    found: F64 = 0.5 * (1.0 + np.tanh(0.5 * x))
    return found
